"""Swin UNETR weights to and from MONAI's state dict, bit for bit."""

import re
from collections.abc import Mapping

import numpy as np

from lsmfm_jax.models.window_attention import relative_position_index

# How each kind of tensor is laid out in PyTorch (first) and here (second): a permutation of the axes.
AXES = {
    "plain": None,
    "linear": (1, 0),  # out in -> in out
    "conv": (2, 3, 4, 1, 0),  # out in z y x -> z y x in out
    "transposed": (2, 3, 4, 0, 1),  # in out z y x -> z y x in out
}
Entry = tuple[str, str, str]  # PyTorch key, our path, kind
INDEX = "attn.relative_position_index"


def _block_entries(theirs: str, ours: str) -> list[Entry]:
    entries = []
    for norm in ("norm1", "norm2"):
        entries.append((f"{theirs}.{norm}.weight", f"{ours}/{norm}/scale", "plain"))
        entries.append((f"{theirs}.{norm}.bias", f"{ours}/{norm}/bias", "plain"))
    for layer in ("linear1", "linear2"):
        entries.append((f"{theirs}.mlp.{layer}.weight", f"{ours}/{layer}/kernel", "linear"))
        entries.append((f"{theirs}.mlp.{layer}.bias", f"{ours}/{layer}/bias", "plain"))
    for layer, name in (("qkv", "qkv"), ("proj", "out")):
        entries.append((f"{theirs}.attn.{layer}.weight", f"{ours}/attention/{name}_kernel", "linear"))
        entries.append((f"{theirs}.attn.{layer}.bias", f"{ours}/attention/{name}_bias", "plain"))
    table = f"{theirs}.attn.relative_position_bias_table"
    return [*entries, (table, f"{ours}/attention/relative_position_bias", "plain")]


def _transformer_entries(depths: tuple[int, ...]) -> list[Entry]:
    embedding = "transformer/patch_embedding"
    entries = [
        ("swinViT.patch_embed.proj.weight", f"{embedding}/kernel", "conv"),
        ("swinViT.patch_embed.proj.bias", f"{embedding}/bias", "plain"),
    ]
    for i, depth in enumerate(depths):
        theirs, ours = f"swinViT.layers{i + 1}.0", f"transformer/stage_{i}"
        for j in range(depth):
            entries += _block_entries(f"{theirs}.blocks.{j}", f"{ours}/block_{j}")
        entries += [
            (f"{theirs}.downsample.norm.weight", f"{ours}/merging/norm/scale", "plain"),
            (f"{theirs}.downsample.norm.bias", f"{ours}/merging/norm/bias", "plain"),
            (f"{theirs}.downsample.reduction.weight", f"{ours}/merging/kernel", "linear"),
        ]
    return entries


def _convolution_entries() -> list[Entry]:
    entries = []

    def residual(theirs: str, ours: str, convolutions: int) -> None:
        for k in range(1, convolutions + 1):
            entries.append((f"{theirs}.conv{k}.conv.weight", f"{ours}/conv{k}/kernel", "conv"))

    for i in range(4):
        residual(f"encoder{i + 1}.layer", f"encoder_{i}", 3 if i == 0 else 2)
    residual("encoder10.layer", "bottleneck", 2)
    for i in range(5):
        entries.append((f"decoder{i + 1}.transp_conv.conv.weight", f"decoder_{i}/up/kernel", "transposed"))
        residual(f"decoder{i + 1}.conv_block", f"decoder_{i}/block", 3)
    entries.append(("out.conv.conv.weight", "out/kernel", "conv"))
    return [*entries, ("out.conv.conv.bias", "out/bias", "plain")]


def _entries(depths: tuple[int, ...]) -> list[Entry]:
    return _transformer_entries(depths) + _convolution_entries()


def infer_swin_unetr(state: Mapping[str, np.ndarray]) -> dict[str, object]:
    """Read the network's size off its tensors: the keyword arguments of `SwinUNETR` that they decide.

    The form of patch merging leaves no trace in the weights: it must be known from the MONAI version.

    Raises:
        ValueError: the state is not a Swin UNETR's.
    """
    try:
        tables = [state[f"swinViT.layers{i + 1}.0.blocks.0.attn.relative_position_bias_table"].shape for i in range(4)]
        feature_size = int(state["swinViT.patch_embed.proj.weight"].shape[0])
        out_channels = int(state["out.conv.conv.weight"].shape[0])
    except KeyError as error:
        raise ValueError(f"not the state dict of a MONAI SwinUNETR: no tensor {error}") from error
    blocks = [re.match(r"swinViT\.layers(\d)\.0\.blocks\.(\d+)\.norm1\.weight$", key) for key in state]
    stages = [int(found[1]) for found in blocks if found]
    side = round(tables[0][0] ** (1 / 3))
    if side**3 != tables[0][0] or side % 2 == 0:
        raise ValueError(f"a relative position bias table has (2 * window - 1)^3 rows, not {tables[0][0]}")
    return {
        "out_channels": out_channels,
        "feature_size": feature_size,
        "depths": tuple(stages.count(i + 1) for i in range(4)),
        "num_heads": tuple(int(shape[1]) for shape in tables),
        "window": (side + 1) // 2,
    }


def from_torch(state: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Convert a MONAI SwinUNETR state dict (3D, first version of the blocks, patch size 2) to Flax variables.

    Raises:
        ValueError: keys are missing or left over, or a relative position index is not the one we compute.
    """
    known = infer_swin_unetr(state)
    entries = _entries(known["depths"])
    expected = {key for key, _, _ in entries} | set(_index_keys(known["depths"]))
    missing, leftover = sorted(expected - set(state)), sorted(set(state) - expected)
    if missing or leftover:
        raise ValueError(f"SwinUNETR state dict: missing keys {missing}, unknown keys {leftover}")
    index = relative_position_index(known["window"])
    for key in _index_keys(known["depths"]):
        if not np.array_equal(state[key], index):
            raise ValueError(f"{key} is not the relative position index of a window of {known['window']}")
    params: dict = {}
    for key, path, kind in entries:
        value = np.asarray(state[key])
        if AXES[kind] is not None:
            value = value.transpose(AXES[kind])
        _put(params, path, np.ascontiguousarray(value[0, 0, 0] if path == "out/kernel" else value))
    return {"params": params, "batch_stats": {}}


def to_torch(variables: Mapping[str, Mapping]) -> dict[str, np.ndarray]:
    """Convert Flax variables to a MONAI state dict, position indices included: inverse of `from_torch`.

    Raises:
        ValueError: parameters are missing or left over.
    """
    flat = _flatten(variables["params"])
    depths = tuple(
        sum(bool(re.fullmatch(rf"transformer/stage_{i}/block_\d+/norm1/scale", path)) for path in flat)
        for i in range(4)
    )
    entries = _entries(depths)
    expected = {path for _, path, _ in entries}
    missing, leftover = sorted(expected - set(flat)), sorted(set(flat) - expected)
    if missing or leftover:
        raise ValueError(f"SwinUNETR parameters: missing {missing}, unknown {leftover}")
    state = {}
    for key, path, kind in entries:
        value = np.asarray(flat[path])
        value = value[None, None, None] if path == "out/kernel" else value
        if AXES[kind] is not None:
            value = value.transpose(np.argsort(AXES[kind]))
        state[key] = np.ascontiguousarray(value)
    rows = flat["transformer/stage_0/block_0/attention/relative_position_bias"].shape[0]
    index = relative_position_index((round(rows ** (1 / 3)) + 1) // 2).astype(np.int64)
    return state | {key: index.copy() for key in _index_keys(depths)}


def _index_keys(depths: tuple[int, ...]) -> list[str]:
    return [f"swinViT.layers{i + 1}.0.blocks.{j}.{INDEX}" for i, depth in enumerate(depths) for j in range(depth)]


def _put(tree: dict, path: str, value: np.ndarray) -> None:
    *folders, leaf = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[leaf] = value


def _flatten(tree: Mapping, prefix: str = "") -> dict[str, np.ndarray]:
    flat = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
