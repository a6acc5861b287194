"""Tensors to and from PyTorch's names and layouts, for networks of convolutions and batch norms."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# The axes of a PyTorch tensor in our order; None where the order is the same.
AXES: dict[str, tuple[int, ...] | None] = {
    "plain": None,
    "scalar": None,  # PyTorch keeps one number as shape (1,), we as ()
    "linear": (1, 0),  # out in -> in out
    "conv": (2, 3, 4, 1, 0),  # out in z y x -> z y x in out
    "transposed": (2, 3, 4, 0, 1),  # in out z y x -> z y x in out
}
# The number of axes of each kind where it is fixed.
RANKS = {"linear": 2, "conv": 5, "transposed": 5}
_NAMED = 6
COUNTER = "num_batches_tracked"


class Entry(NamedTuple):
    """One tensor: its PyTorch key, our path (collection first), and how its axes are permuted."""

    key: str
    path: str
    kind: str


def conv_entries(theirs: str, ours: str, *, kind: str = "conv", bias: bool = True) -> list[Entry]:
    """List the tensors of a convolution or linear layer."""
    kernel = Entry(f"{theirs}.weight", f"params/{ours}/kernel", kind)
    return [kernel, Entry(f"{theirs}.bias", f"params/{ours}/bias", "plain")] if bias else [kernel]


def batch_norm_entries(theirs: str, ours: str) -> list[Entry]:
    """List the tensors of a batch norm, its counter of batches left out."""
    return [
        Entry(f"{theirs}.weight", f"params/{ours}/scale", "plain"),
        Entry(f"{theirs}.bias", f"params/{ours}/bias", "plain"),
        Entry(f"{theirs}.running_mean", f"batch_stats/{ours}/mean", "plain"),
        Entry(f"{theirs}.running_var", f"batch_stats/{ours}/var", "plain"),
    ]


def shape_of(state: Mapping[str, np.ndarray], key: str, *, rank: int) -> tuple[int, ...]:
    """Give the shape of a tensor that a network's sizes are read off.

    Raises:
        ValueError: there is no such tensor, or it has another number of axes.
    """
    if key not in state:
        raise ValueError(f"no tensor {key!r}")
    shape = tuple(int(size) for size in state[key].shape)
    if len(shape) != rank:
        raise ValueError(f"{key} has shape {shape}; it must have {rank} axes")
    return shape


def torch_shapes(variables: Mapping[str, Mapping], entries: Sequence[Entry]) -> dict[str, tuple[int, ...]]:
    """Give the shapes that PyTorch's tensors have for our variables, or for their shapes and dtypes."""
    flat = flatten({name: variables.get(name, {}) for name in ("params", "batch_stats")})
    shapes = {}
    for entry in entries:
        shape, axes = flat[entry.path].shape, AXES[entry.kind]
        shape = (1,) if entry.kind == "scalar" else shape
        shapes[entry.key] = shape if axes is None else tuple(shape[axis] for axis in np.argsort(axes))
    return shapes


def gather(state: Mapping[str, np.ndarray], entries: Sequence[Entry], *, network: str) -> dict[str, dict]:
    """Build nested Flax variables from a state dict; batch norms' counters of batches are dropped.

    Raises:
        ValueError: keys are missing or left over, or a tensor has the wrong number of axes or values.
    """
    expected = {entry.key for entry in entries}
    given = {key for key in state if not key.endswith(f".{COUNTER}")}
    _compare(expected, given, f"{network} state dict")
    variables: dict[str, dict] = {"params": {}, "batch_stats": {}}
    for entry in entries:
        value = np.asarray(state[entry.key])
        axes = AXES[entry.kind]
        if value.ndim != RANKS.get(entry.kind, value.ndim) or (entry.kind == "scalar" and value.size != 1):
            wanted = "one value" if entry.kind == "scalar" else f"{RANKS[entry.kind]} axes"
            raise ValueError(f"{entry.key} has shape {value.shape}; it must have {wanted}")
        value = value.reshape(()) if entry.kind == "scalar" else value
        value = value if axes is None else np.ascontiguousarray(value.transpose(axes))
        *folders, leaf = entry.path.split("/")
        tree = variables
        for folder in folders:
            tree = tree.setdefault(folder, {})
        tree[leaf] = value
    return variables


def scatter(
    variables: Mapping[str, Mapping], entries: Sequence[Entry], *, network: str, batches_tracked: int
) -> dict[str, np.ndarray]:
    """Build a state dict from Flax variables, batch norms' counters of batches set to `batches_tracked`.

    Raises:
        ValueError: variables are missing or left over.
    """
    flat = flatten({name: variables.get(name, {}) for name in ("params", "batch_stats")})
    _compare({entry.path for entry in entries}, set(flat), f"{network} variables")
    state = {}
    for entry in entries:
        value = np.asarray(flat[entry.path])
        axes = AXES[entry.kind]
        value = value.reshape(1) if entry.kind == "scalar" else value
        value = value if axes is None else np.ascontiguousarray(value.transpose(np.argsort(axes)))
        state[entry.key] = value
        if entry.key.endswith(".running_var"):
            counter = entry.key.removesuffix("running_var") + COUNTER
            state[counter] = np.asarray(batches_tracked, np.int64)
    return state


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Spell nested variables out as `folder/.../leaf` paths."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def compare_names(expected: set[str], given: set[str]) -> None:
    """Refuse names that are missing or unknown, the first ones of each named.

    Raises:
        ValueError: there are such names.
    """
    missing, unknown = sorted(expected - given), sorted(given - expected)
    if missing or unknown:
        parts = [f"{what} {_first(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
        raise ValueError(", ".join(parts))


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{[name[:200] for name in names[:_NAMED]]}{more}"


def _compare(expected: set[str], given: set[str], what: str) -> None:
    try:
        compare_names(expected, given)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
