"""How a BERT's tensors are called in PyTorch files, and where each lives in our parameter tree."""

import numpy as np

# (our path inside a layer, PyTorch's name there). PyTorch stores dense kernels as [out, in].
_LAYER_DENSE = (
    ("attention/query", "attention.self.query"),
    ("attention/key", "attention.self.key"),
    ("attention/value", "attention.self.value"),
    ("attention/output", "attention.output.dense"),
    ("feed_forward/up", "intermediate.dense"),
    ("feed_forward/down", "output.dense"),
)
_LAYER_NORM = (
    ("attention/norm", "attention.output.LayerNorm"),
    ("feed_forward/norm", "output.LayerNorm"),
)


def torch_names(num_layers: int) -> dict[str, tuple[str, bool]]:
    """Map each of our parameter paths (joined by `/`) to its PyTorch name and whether it is transposed."""
    names = {
        "embeddings/word": ("embeddings.word_embeddings.weight", False),
        "embeddings/position": ("embeddings.position_embeddings.weight", False),
        "embeddings/token_type": ("embeddings.token_type_embeddings.weight", False),
    }
    dense = [("pooler", "pooler.dense")]
    norms = [("embeddings/norm", "embeddings.LayerNorm")]
    for layer in range(num_layers):
        dense += [(f"layer_{layer}/{ours}", f"encoder.layer.{layer}.{theirs}") for ours, theirs in _LAYER_DENSE]
        norms += [(f"layer_{layer}/{ours}", f"encoder.layer.{layer}.{theirs}") for ours, theirs in _LAYER_NORM]
    for ours, theirs in dense:
        names[f"{ours}/kernel"] = (f"{theirs}.weight", True)
        names[f"{ours}/bias"] = (f"{theirs}.bias", False)
    for ours, theirs in norms:
        names[f"{ours}/scale"] = (f"{theirs}.weight", False)
        names[f"{ours}/bias"] = (f"{theirs}.bias", False)
    return names


def count_layers(state: dict[str, np.ndarray]) -> int:
    """Number of transformer layers that a PyTorch BERT state holds.

    Raises:
        ValueError: their numbers are not 0, 1, 2, ... without a gap; the message has the odd one.
    """
    numbers = {key.split(".")[2] for key in state if key.startswith("encoder.layer.")}
    left_over = sorted(numbers - {str(layer) for layer in range(len(numbers))})
    if left_over:
        raise ValueError(f"encoder.layer.{left_over[0][:40]}: {len(numbers)} layers are numbered from 0 without a gap")
    return len(numbers)


def torch_shapes(
    *, vocab_size: int, hidden_size: int, num_layers: int, intermediate_size: int, max_positions: int, token_types: int
) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a BERT, by PyTorch's names."""
    rows = {"word": vocab_size, "position": max_positions, "token_type": token_types}
    shapes = {}
    for ours, (theirs, _) in torch_names(num_layers).items():
        *folders, leaf = ours.split("/")
        outputs, inputs = hidden_size, hidden_size
        if folders[-1] == "up":
            outputs = intermediate_size
        elif folders[-1] == "down":
            inputs = intermediate_size
        if leaf in rows:
            shapes[theirs] = (rows[leaf], hidden_size)
        else:
            shapes[theirs] = (outputs, inputs) if leaf == "kernel" else (outputs,)
    return shapes


def tree_from_state(state: dict[str, np.ndarray]) -> dict:
    """Nested parameter tree of a PyTorch BERT state.

    Raises:
        ValueError: a tensor is missing, or one is left over; the message names them.
    """
    names = torch_names(count_layers(state))
    expected = {theirs for theirs, _ in names.values()}
    missing, left_over = sorted(expected - state.keys()), sorted(state.keys() - expected)
    if missing or left_over:
        raise ValueError(f"not a BERT encoder's state: missing {missing[:6]}, left over {left_over[:6]}")
    tree: dict = {}
    for ours, (theirs, transposed) in names.items():
        *folders, leaf = ours.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = state[theirs].T if transposed else state[theirs]
    return tree


def state_from_tree(tree: dict) -> dict[str, np.ndarray]:
    """PyTorch BERT state of a parameter tree: the exact inverse of `tree_from_state`.

    Raises:
        ValueError: a parameter is missing, or one is left over; the message names them.
    """
    flat = dict(_flatten(tree))
    names = torch_names(sum(key.startswith("layer_") for key in tree))
    missing, left_over = sorted(names.keys() - flat.keys()), sorted(flat.keys() - names.keys())
    if missing or left_over:
        raise ValueError(f"not a text tower's parameters: missing {missing}, left over {left_over}")
    state = {}
    for ours, (theirs, transposed) in names.items():
        value = np.asarray(flat[ours])
        state[theirs] = np.ascontiguousarray(value.T if transposed else value)
    return state


def _flatten(tree: dict, prefix: str = ""):
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{path}/")
        else:
            yield path, value
