"""UNet weights to and from MONAI's state dict, bit for bit."""

from collections.abc import Mapping

import numpy as np

from lsmfm_jax.convert.convolutional import (
    Entry,
    batch_norm_entries,
    conv_entries,
    flatten,
    gather,
    scatter,
    shape_of,
)

NETWORK = "UNet"


def infer_unet(state: Mapping[str, np.ndarray]) -> dict[str, object]:
    """Read the network's size off its tensors: the keyword arguments of `UNet`.

    A strided block has a 3x3x3 shortcut, so whether a level is strided shows; by how much does not, and is
    taken to be 2, the only factor in this family. Give `strides` yourself where a network was built otherwise.

    Raises:
        ValueError: the state is not that of a MONAI UNet with residual units.
    """
    levels = 0
    while f"{_level(levels)}0.conv.unit0.conv.weight" in state:
        levels += 1
    bottom_block = _level(levels).removesuffix(".")
    bottom = f"{bottom_block}.conv.unit0.conv.weight"
    if levels == 0 or bottom not in state:
        raise ValueError(
            f"not the state dict of a MONAI UNet with residual units: no tensor "
            f"{bottom if levels else 'model.0.conv.unit0.conv.weight'}"
        )
    blocks = [f"{_level(level)}0" for level in range(levels)]
    widths = [shape_of(state, f"{block}.conv.unit0.conv.weight", rank=5)[0] for block in (*blocks, bottom_block)]
    shortcuts = [f"{block}.residual.weight" for block in blocks]
    strides = tuple(1 if key not in state or shape_of(state, key, rank=5)[2:] == (1, 1, 1) else 2 for key in shortcuts)
    units = 0
    while f"model.0.conv.unit{units}.conv.weight" in state:
        units += 1
    return {
        "channels": tuple(widths),
        "strides": strides,
        "num_res_units": units,
        "out_channels": shape_of(state, "model.2.0.conv.weight", rank=5)[1],
        "norm": "batch" if "model.0.conv.unit0.adn.N.running_mean" in state else "instance",
    }


def from_torch(state: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Convert a MONAI UNet state dict to Flax variables.

    The batch norms' `num_batches_tracked`, which PyTorch does not use at a fixed momentum, are dropped.

    Raises:
        ValueError: keys are missing or left over.
    """
    sizes = infer_unet(state)
    shortcuts = {key.removesuffix(".residual.weight") for key in state if key.endswith(".residual.weight")}
    levels, units = len(sizes["strides"]), sizes["num_res_units"]
    with_shortcut = {level for level in range(levels + 1) if _encoder_block(level, levels) in shortcuts}
    entries = _entries(levels, units, with_shortcut, norm=sizes["norm"])
    return gather(state, entries, network=NETWORK)


def to_torch(variables: Mapping[str, Mapping], *, batches_tracked: int = 0) -> dict[str, np.ndarray]:
    """Convert Flax variables to a MONAI UNet state dict: inverse of `from_torch`.

    Args:
        variables: "params", and "batch_stats" where the norm is batch norm.
        batches_tracked: what the batch norms' `num_batches_tracked` are set to.

    Raises:
        ValueError: variables are missing or left over.
    """
    return scatter(variables, entries_of(variables), network=NETWORK, batches_tracked=batches_tracked)


def entries_of(variables: Mapping[str, Mapping]) -> list[Entry]:
    """List the tensors of our variables, or of their shapes and dtypes."""
    params = variables["params"]
    levels = sum(name.startswith("down_") for name in params)
    units = sum(name.startswith("unit_") for name in params["bottom"])
    with_shortcut = {level for level in range(levels + 1) if "residual" in params[_ours(level, levels)]}
    norm = "batch" if flatten(variables.get("batch_stats", {})) else "instance"
    return _entries(levels, units, with_shortcut, norm=norm)


def _level(level: int) -> str:
    """Name the part of MONAI's nested model at a level: `0` is its encoder block, `2` its decoder."""
    return "model." + "1.submodule." * level


def _encoder_block(level: int, levels: int) -> str:
    return _level(level).removesuffix(".") if level == levels else f"{_level(level)}0"


def _ours(level: int, levels: int) -> str:
    return "bottom" if level == levels else f"down_{level}"


def _unit(theirs: str, ours: str, *, norm: str, kind: str = "conv", conv_only: bool = False) -> list[Entry]:
    entries = conv_entries(f"{theirs}.conv", f"{ours}/conv", kind=kind)
    if conv_only:
        return entries
    if norm == "batch":
        entries += batch_norm_entries(f"{theirs}.adn.N", f"{ours}/norm")
    return [*entries, Entry(f"{theirs}.adn.A.weight", f"params/{ours}/activation/slope", "scalar")]


def _entries(levels: int, units: int, with_shortcut: set[int], *, norm: str) -> list[Entry]:
    entries = []
    for level in range(levels + 1):
        theirs, ours = _encoder_block(level, levels), _ours(level, levels)
        for unit in range(units):
            entries += _unit(f"{theirs}.conv.unit{unit}", f"{ours}/unit_{unit}", norm=norm)
        if level in with_shortcut:
            entries += conv_entries(f"{theirs}.residual", f"{ours}/residual")
    for level in range(levels):
        theirs, ours = f"{_level(level)}2", f"up_{level}"
        entries += _unit(f"{theirs}.0", f"{ours}/upsample", norm=norm, kind="transposed")
        entries += _unit(f"{theirs}.1.conv.unit0", f"{ours}/unit_0", norm=norm, conv_only=level == 0)
    return entries
