"""Swin UNETR weights to and from MONAI's state dict, bit for bit."""

import re
from collections.abc import Mapping

import numpy as np

from lsmfm_jax.convert.convolutional import Entry, conv_entries, flatten, gather, scatter, shape_of
from lsmfm_jax.models.window_attention import relative_position_index

NETWORK = "SwinUNETR"
OUT = "out.conv.conv.weight"


def infer_swin_unetr(state: Mapping[str, np.ndarray]) -> dict[str, object]:
    """Read the network's size off its tensors: the keyword arguments of `SwinUNETR` that they decide.

    The form of patch merging leaves no trace in the weights: it must be known from the MONAI version.

    Raises:
        ValueError: the state is not a Swin UNETR's.
    """
    keys = [f"swinViT.layers{i + 1}.0.blocks.0.attn.relative_position_bias_table" for i in range(4)]
    try:
        tables = [shape_of(state, key, rank=2) for key in keys]
        feature_size = shape_of(state, "swinViT.patch_embed.proj.weight", rank=5)[0]
        out_channels = shape_of(state, OUT, rank=5)[0]
    except ValueError as error:
        raise ValueError(f"not the state dict of a MONAI SwinUNETR: {error}") from error
    blocks = [re.match(r"swinViT\.layers(\d)\.0\.blocks\.(\d+)\.norm1\.weight$", key) for key in state]
    stages = [int(found[1]) for found in blocks if found]
    return {
        "out_channels": out_channels,
        "feature_size": feature_size,
        "depths": tuple(stages.count(i + 1) for i in range(4)),
        "num_heads": tuple(shape[1] for shape in tables),
        "window": _window(tables[0][0]),
    }


def from_torch(state: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Convert a MONAI SwinUNETR state dict (3D, first version of the blocks, patch size 2) to Flax variables.

    Raises:
        ValueError: keys are missing or left over, or a relative position index is not the one we compute.
    """
    known = infer_swin_unetr(state)
    depths, window = known["depths"], known["window"]
    tensors = dict(state)
    indices = {key: tensors.pop(key, np.empty(0)) for key in _index_keys(depths)}
    # Compared before the index is made: of a wide window it is large.
    wrong = [key for key, value in indices.items() if value.shape != (window**3, window**3)]
    index = None if wrong else relative_position_index(window)
    wrong = wrong or [key for key, value in indices.items() if not np.array_equal(value, index)]
    if wrong:
        raise ValueError(f"{wrong[0]} is missing, or not the relative position index of a window of {window}")
    if tensors[OUT].shape[2:] != (1, 1, 1):
        raise ValueError(f"{OUT} has shape {tensors[OUT].shape}; its last three axes must be 1")
    tensors[OUT] = tensors[OUT][:, :, 0, 0, 0]
    return gather(tensors, _entries(depths), network=NETWORK)


def to_torch(variables: Mapping[str, Mapping]) -> dict[str, np.ndarray]:
    """Convert Flax variables to a MONAI state dict, position indices included: inverse of `from_torch`.

    Raises:
        ValueError: parameters are missing or left over.
    """
    depths = _depths(variables)
    state = scatter(variables, _entries(depths), network=NETWORK, batches_tracked=0)
    state[OUT] = state[OUT][..., None, None, None]
    rows = state["swinViT.layers1.0.blocks.0.attn.relative_position_bias_table"].shape[0]
    index = relative_position_index(_window(rows)).astype(np.int64)
    return state | {key: index.copy() for key in _index_keys(depths)}


def entries_of(variables: Mapping[str, Mapping]) -> list[Entry]:
    """List the tensors of our variables, or of their shapes and dtypes; position indices are none of them."""
    return _entries(_depths(variables))


def _depths(variables: Mapping[str, Mapping]) -> tuple[int, ...]:
    flat = flatten(variables["params"])
    blocks = [re.match(r"transformer/stage_(\d)/block_\d+/norm1/scale$", path) for path in flat]
    stages = [int(found[1]) for found in blocks if found]
    return tuple(stages.count(i) for i in range(4))


def _window(rows: int) -> int:
    side = round(rows ** (1 / 3))
    if side**3 != rows or side % 2 == 0:
        raise ValueError(f"a relative position bias table has (2 * window - 1)^3 rows, not {rows}")
    return (side + 1) // 2


def _index_keys(depths: tuple[int, ...]) -> list[str]:
    return [
        f"swinViT.layers{i + 1}.0.blocks.{j}.attn.relative_position_index"
        for i, depth in enumerate(depths)
        for j in range(depth)
    ]


def _entries(depths: tuple[int, ...]) -> list[Entry]:
    entries = conv_entries("swinViT.patch_embed.proj", "transformer/patch_embedding")
    for i, depth in enumerate(depths):
        theirs, ours = f"swinViT.layers{i + 1}.0", f"transformer/stage_{i}"
        for j in range(depth):
            entries += _block_entries(f"{theirs}.blocks.{j}", f"{ours}/block_{j}")
        entries += _layer_norm_entries(f"{theirs}.downsample.norm", f"{ours}/merging/norm")
        entries += conv_entries(f"{theirs}.downsample.reduction", f"{ours}/merging", kind="linear", bias=False)
    for i in range(4):
        entries += _residual_entries(f"encoder{i + 1}.layer", f"encoder_{i}", convolutions=3 if i == 0 else 2)
    entries += _residual_entries("encoder10.layer", "bottleneck", convolutions=2)
    for i in range(5):
        theirs, ours = f"decoder{i + 1}", f"decoder_{i}"
        entries += conv_entries(f"{theirs}.transp_conv.conv", f"{ours}/up", kind="transposed", bias=False)
        entries += _residual_entries(f"{theirs}.conv_block", f"{ours}/block", convolutions=3)
    return entries + conv_entries("out.conv.conv", "out", kind="linear")


def _block_entries(theirs: str, ours: str) -> list[Entry]:
    attention = f"params/{ours}/attention"
    entries = [
        Entry(f"{theirs}.attn.qkv.weight", f"{attention}/qkv_kernel", "linear"),
        Entry(f"{theirs}.attn.qkv.bias", f"{attention}/qkv_bias", "plain"),
        Entry(f"{theirs}.attn.relative_position_bias_table", f"{attention}/relative_position_bias", "plain"),
        Entry(f"{theirs}.attn.proj.weight", f"{attention}/out_kernel", "linear"),
        Entry(f"{theirs}.attn.proj.bias", f"{attention}/out_bias", "plain"),
    ]
    for norm in ("norm1", "norm2"):
        entries += _layer_norm_entries(f"{theirs}.{norm}", f"{ours}/{norm}")
    for layer in ("linear1", "linear2"):
        entries += conv_entries(f"{theirs}.mlp.{layer}", f"{ours}/{layer}", kind="linear")
    return entries


def _layer_norm_entries(theirs: str, ours: str) -> list[Entry]:
    scale, bias = f"params/{ours}/scale", f"params/{ours}/bias"
    return [Entry(f"{theirs}.weight", scale, "plain"), Entry(f"{theirs}.bias", bias, "plain")]


def _residual_entries(theirs: str, ours: str, *, convolutions: int) -> list[Entry]:
    numbers = range(1, convolutions + 1)
    return [e for k in numbers for e in conv_entries(f"{theirs}.conv{k}.conv", f"{ours}/conv{k}", bias=False)]
