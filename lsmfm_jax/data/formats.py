"""What every reader of an image format gives back, and how far its word on voxel sizes is believed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Size = tuple[float, float, float]

# No light-sheet voxel is coarser than this or finer than that; a header that says so means another unit.
COARSEST_UM = 100.0
FINEST_UM = 0.05
MICROMETRES = {"mm": 1e3, "micron": 1.0, "meter": 1e6}


class Unreadable(ValueError):
    """An image file cannot be used; says why, and what to do about it."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason, hint)
        self.reason, self.hint = reason, hint


class Decoded(NamedTuple):
    """An image as read: channels first (C, Z, Y, X), voxel size ZYX in micrometres, and a NIfTI's header."""

    channels: np.ndarray
    voxel_size_um: Size | None
    voxel_size_source: str
    affine: np.ndarray | None = None
    header: Any = None


def channels_first(array: np.ndarray) -> np.ndarray:
    """Bring a (Z, Y, X) volume, or one with a channel axis last or first, to (C, Z, Y, X).

    Further axes of length one at the end are dropped. The channel axis is the last if that is the shortest,
    else the first.

    Raises:
        Unreadable: fewer than three axes longer than one, or no axis short enough to be channels.
    """
    shape = array.shape
    while array.ndim > 4 and array.shape[-1] == 1:
        array = array[..., 0]
    # NIfTI keeps vectors in a fifth axis behind an unused time axis.
    if array.ndim == 5 and array.shape[-2] == 1:
        array = array[..., 0, :]
    if array.ndim == 3:
        array = array[None]
    elif array.ndim == 4:
        last = array.shape[-1] == min(array.shape)
        array = np.moveaxis(array, -1, 0) if last else array
        if array.shape[0] > min(array.shape[1:]):
            raise Unreadable(
                f"of its four axes {shape} neither the first nor the last is short enough to be channels",
                "save each volume or time point as a file of its own",
            )
    else:
        raise Unreadable(f"it has {array.ndim} axes {shape}, expected Z, Y, X and at most channels", "save it as 3D")
    if min(array.shape[1:]) < 2:
        raise Unreadable(f"it is not 3D: its shape is {shape}", "stack the planes of one volume into one file")
    return array


def judge_voxel_size(size: Sequence[float], unit: str) -> tuple[Size | None, str]:
    """Turn a header's voxel size (ZYX, in `unit`) to micrometres, and say how far it can be believed.

    Headers often hold the default of 1, no unit, or micrometres under the name of millimetres; such sizes are
    given as they most likely are meant, with a source that begins with "header (unverified".
    """
    size = [float(value) for value in size]
    if not all(np.isfinite(value) and value > 0 for value in size):
        return None, "unknown"
    if size == [1.0, 1.0, 1.0]:
        return (1.0, 1.0, 1.0), "header (unverified: 1, 1, 1 is what stands there by default)"
    factor = MICROMETRES.get(unit)
    source = f"header ({unit})"
    if factor is None:
        named = f"unit {unit}" if unit and unit != "unknown" else "no unit"
        factor, meant = (1e3, "millimetres") if max(size) < FINEST_UM else (1.0, "micrometres")
        source = f"header (unverified: {named}, taken as {meant})"
    elif max(size) * factor > COARSEST_UM >= max(size):
        factor, source = 1.0, f"header (unverified: says {unit}, taken as micrometres)"
    # Headers keep 32-bit floats: seven digits are all there is.
    z, y, x = (float(f"{value * factor:.6g}") for value in size)
    return (z, y, x), source
