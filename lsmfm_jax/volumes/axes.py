"""Which axis of an array is which, and one channel of it as a level in Z, Y, X."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lsmfm_jax.volumes.formats import Size, Unreadable
from lsmfm_jax.volumes.lazy import Box, Level, Voxels, Wanted, choose, plain_dtype

# Micrometres per unit, by the names that files use for lengths.
UNITS_UM = {
    "angstrom": 1e-4,
    "picometer": 1e-6,
    "pm": 1e-6,
    "nanometer": 1e-3,
    "nm": 1e-3,
    "micrometer": 1.0,
    "micron": 1.0,
    "um": 1.0,
    "µm": 1.0,
    "μm": 1.0,
    "millimeter": 1e3,
    "mm": 1e3,
    "centimeter": 1e4,
    "cm": 1e4,
    "meter": 1e6,
    "m": 1e6,
}
NAMES = {"z": "z", "y": "y", "x": "x", "c": "c", "channel": "c", "ch": "c", "s": "c", "t": "t", "time": "t"}


class Stored(NamedTuple):
    """An array as a file keeps it.

    Attributes:
        shape, dtype: of the array.
        axes: a name for each axis, such as "t", "c", "z"; what is none of those must be of length one.
        chunk: voxels that the file keeps together, along each axis.
        fetch: gives the voxels at a tuple of slices and integers, as numpy does.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[str, ...]
    chunk: tuple[int, ...]
    fetch: Callable[[tuple[slice | int, ...]], np.ndarray]


def level_of(
    stored: Stored,
    wanted: Wanted,
    *,
    levels: int = 1,
    voxel_size_um: Size | None = None,
    voxel_size_source: str = "unknown",
) -> Level:
    """Give one channel and time point of a stored array, its axes brought to Z, Y, X.

    Raises:
        Unreadable: no three space axes, several channels or time points of which none was chosen, or others.
    """
    roles = {NAMES.get(name.lower(), name): axis for axis, name in reversed(list(enumerate(stored.axes)))}
    missing = [name for name in "zyx" if name not in roles]
    shown = f"{''.join(stored.axes) if max(map(len, stored.axes)) == 1 else ', '.join(stored.axes)} of {stored.shape}"
    if missing:
        raise Unreadable(f"its axes are {shown}, without {', '.join(missing)}", "save it with axes Z, Y and X")
    place = {roles[name] for name in ("z", "y", "x")}
    index: list[slice | int] = [0] * len(stored.shape)
    channels, channel = 1, 0
    if "c" in roles:
        channels = stored.shape[roles["c"]]
    channel = choose(wanted.channel, channels, what="channel", option="--channel")
    times = stored.shape[roles["t"]] if "t" in roles else 1
    time = choose(wanted.time, times, what="time point", option="--time")
    for name, chosen in (("c", channel), ("t", time)):
        if name in roles:
            index[roles[name]] = chosen
            place.add(roles[name])
    other = [name for axis, name in enumerate(stored.axes) if axis not in place and stored.shape[axis] > 1]
    if other:
        raise Unreadable(f"its axes are {shown}, and {other[0]} is none of Z, Y, X, channel and time", "save it as 3D")
    space = [roles[name] for name in "zyx"]
    # The axes that are left stand in the file's order after the integers are gone.
    left = sorted(space)
    order = [left.index(axis) for axis in space]

    def read(box: Box) -> np.ndarray:
        where = list(index)
        for axis, one in zip(space, box, strict=True):
            where[axis] = one
        return stored.fetch(tuple(where)).transpose(order)

    return Level(
        shape=_three(stored.shape, space),
        dtype=plain_dtype(stored.dtype),
        voxel_size_um=voxel_size_um,
        voxel_size_source=voxel_size_source,
        chunk=_three([max(1, min(pair)) for pair in zip(stored.chunk, stored.shape, strict=True)], space),
        read=read,
        channels=channels,
        levels=levels,
        channel=channel,
    )


def guessed_axes(shape: Sequence[int]) -> tuple[str, ...]:
    """Name the axes of an array that does not: Z, Y, X, with channels at the shorter end, or T, C, Z, Y, X.

    Raises:
        Unreadable: fewer than three axes or more than five, or no end short enough to be channels.
    """
    if len(shape) == 4:
        last = shape[-1] == min(shape)
        channels, space = (shape[-1], shape[:-1]) if last else (shape[0], shape[1:])
        if channels >= min(space):
            raise Unreadable(
                f"of its four axes {tuple(shape)} neither the first nor the last is short enough to be channels",
                "name the axes in the file, or save each volume as a file of its own",
            )
        return ("z", "y", "x", "c") if last else ("c", "z", "y", "x")
    if len(shape) not in (3, 5):
        raise Unreadable(
            f"it has {len(shape)} axes {tuple(shape)}, expected Z, Y, X and at most channels", "make it 3D"
        )
    return ("z", "y", "x") if len(shape) == 3 else ("t", "c", "z", "y", "x")


def in_micrometres(size: Sequence[float], units: Sequence[str | None], *, where: str) -> tuple[Size | None, str]:
    """Turn a voxel size, ZYX with a unit each, to micrometres, and say where it is from.

    A size without a unit is taken as micrometres, and one of 1, 1, 1 is what stands there by default; both are
    given with a source that begins with "header (unverified".
    """
    if not all(math.isfinite(value) and value > 0 for value in size):
        return None, "unknown"
    factors = [UNITS_UM.get(_singular(unit)) if unit else None for unit in units]
    z, y, x = (float(f"{value * (factor or 1.0):.6g}") for value, factor in zip(size, factors, strict=True))
    if None in factors:
        named = sorted({unit for unit, factor in zip(units, factors, strict=True) if unit and factor is None})
        if (z, y, x) == (1.0, 1.0, 1.0):
            return (z, y, x), "header (unverified: 1, 1, 1 is what stands there by default)"
        unit = f"unit {named[0]}" if named else "no unit"
        return (z, y, x), f"header (unverified: {unit}, taken as micrometres)"
    return (z, y, x), f"header ({where})"


def _singular(unit: str) -> str:
    unit = unit.strip().lower().replace("metre", "meter").replace("\\u00b5", "µ")
    return unit.removesuffix("s") if len(unit) > 3 else unit


def _three(values: Sequence[int], space: Sequence[int]) -> Voxels:
    z, y, x = (int(values[axis]) for axis in space)
    return z, y, x
