"""What every reader of an image format gives back, and how far its word on voxel sizes is believed."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lsmfm_jax.errors import LsmfmError

Size = tuple[float, float, float]

# No light-sheet voxel is coarser than this or finer than that; a header that says so means another unit.
COARSEST_UM = 100.0
FINEST_UM = 0.05
MICROMETRES = {"nm": 1e-3, "micron": 1.0, "mm": 1e3, "cm": 1e4, "inch": 25400.0, "meter": 1e6}
# The names that ImageJ has for them, in lower case.
IMAGEJ_UNITS = {
    **dict.fromkeys(("um", "µm", "μm", "micrometer", "micrometre", "microns"), "micron"),
    **dict.fromkeys(("nanometer", "nanometre"), "nm"),
    **dict.fromkeys(("millimeter", "millimetre"), "mm"),
    **dict.fromkeys(("centimeter", "centimetre"), "cm"),
    **dict.fromkeys(("in", "inches", '"'), "inch"),
    **dict.fromkeys(("m", "metre"), "meter"),
}
# What ImageJ calls the unit of an image that nobody calibrated.
NO_LENGTHS = ("pixel", "pixels", "px", "voxel", "voxels")
# Sizes outside this range are noise in a header, whatever the unit.
ABSURD_UM = (1e-4, 1e5)
# A stack without a named Z axis whose first axis is longer than this is a stack of planes and not of channels.
MOST_CHANNELS = 4
CONTAINER_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")


class Unreadable(LsmfmError, ValueError):
    """An image file cannot be used; says why, and what to do about it."""

    def __init__(self, reason: str, hint: str, *, blank: bool = False) -> None:
        super().__init__(reason, hint)
        self.reason, self.hint, self.blank = reason, hint, blank


class Decoded(NamedTuple):
    """An image as read: channels first (C, Z, Y, X), voxel size ZYX in micrometres, and a NIfTI's header.

    `notes` tell what was assumed or left out, a line each.
    """

    channels: np.ndarray
    voxel_size_um: Size | None
    voxel_size_source: str
    affine: np.ndarray | None = None
    header: Any = None
    notes: tuple[str, ...] = ()


def memory_bytes() -> int:
    """Give the physical memory of this machine, or of the container that the process runs in."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):
        return machine


def check_size(promised_bytes: int, *, file_bytes: int, largest_ratio: int = 1) -> None:
    """Compare what a header promises with the file that has to hold it and with the memory, before allocating it.

    Args:
        promised_bytes: voxels and what lies before them, uncompressed.
        file_bytes: size of the file.
        largest_ratio: how many bytes one byte of the file can expand to at most.

    Raises:
        Unreadable: the file is too small for the promise, or the promise too large for this machine.
    """
    if promised_bytes > file_bytes * largest_ratio:
        raise Unreadable(
            f"it is truncated or its header is wrong: {file_bytes} bytes where the header promises {promised_bytes}",
            "copy the file again",
        )
    # A second copy is needed wherever the type or the order of the axes changes.
    if 2 * promised_bytes > memory_bytes():
        raise Unreadable(
            f"it is too large to read at once: {promised_bytes / 2**30:.1f} GiB, with {memory_bytes() / 2**30:.1f} GiB "
            "of memory",
            "cut it into smaller files",
        )


def one_line(error: BaseException, longest: int = 200) -> str:
    """Give the message of a library's error on one line, or its type where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 1] + "…"


def file_bytes(path: pathlib.Path) -> int:
    """Give the size of a file.

    Raises:
        Unreadable: it is empty.
    """
    size = path.stat().st_size
    if size == 0:
        raise Unreadable("the file is empty", "copy the file again")
    return size


def arrange(array: np.ndarray, axes: str) -> np.ndarray:
    """Bring an array whose axes a person named, such as `CYXZ`, to (C, Z, Y, X).

    Axes of length one that are not named are dropped.

    Raises:
        Unreadable: letters other than Z, Y, X and C, one twice or missing, or another number of axes.
    """
    letters = axes.upper().replace("S", "C")
    if len(set(letters)) < len(letters) or not set("ZYX") <= set(letters) <= set("CZYX"):
        raise Unreadable(f"axes {axes!r} were given", "name Z, Y, X and at most C, each once, as in ZYX or CZYX")
    shape = array.shape
    for axis in reversed(range(array.ndim)):
        if array.ndim > len(letters) and array.shape[axis] == 1:
            array = array.squeeze(axis)
    if array.ndim != len(letters):
        raise Unreadable(f"axes {axes!r} were given, but its shape is {shape}", "name each axis longer than one")
    order = [letters.index(letter) for letter in "CZYX" if letter in letters]
    array = array.transpose(order)
    return _check_3d(array if "C" in letters else array[None], shape)


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
        if array.shape[0] >= min(array.shape[1:]):
            raise Unreadable(
                f"of its four axes {shape} neither the first nor the last is short enough to be channels",
                "say what they are (lsmfm data ingest --axes), or save each volume or time point as a file of its own",
            )
    else:
        raise Unreadable(f"it has {array.ndim} axes {shape}, expected Z, Y, X and at most channels", "save it as 3D")
    return _check_3d(array, shape)


def _check_3d(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.size == 0 or min(array.shape[1:]) < 2:
        raise Unreadable(f"it is not 3D: its shape is {shape}", "stack the planes of one volume into one file")
    return array


def judge_voxel_size(size: Sequence[float], unit: str) -> tuple[Size | None, str]:
    """Turn a header's voxel size (ZYX, in `unit`) to micrometres, and say how far it can be believed.

    Headers often hold the default of 1, no unit, or micrometres under the name of millimetres; such sizes are
    given as they most likely are meant, with a source that begins with "header (unverified". Without a unit of length a
    size that no microscope has along some axis, such as the inches of 72 dots each that a printer has, is none.
    """
    size = [float(value) for value in size]
    if unit in NO_LENGTHS or not all(np.isfinite(value) and value > 0 for value in size):
        return None, "unknown"
    if size == [1.0, 1.0, 1.0]:
        return (1.0, 1.0, 1.0), "header (unverified: 1, 1, 1 is what stands there by default)"
    factor = MICROMETRES.get(unit)
    source = f"header ({unit})"
    if factor is None:
        named = f"unit {unit}" if unit and unit != "unknown" else "no unit"
        factor, meant = (1e3, "millimetres") if max(size) < FINEST_UM else (1.0, "micrometres")
        source = f"header (unverified: {named}, taken as {meant})"
        if not all(FINEST_UM <= value * factor <= COARSEST_UM for value in size):
            return None, "unknown"
    elif max(size) * factor > COARSEST_UM >= max(size) or max(size) * factor < FINEST_UM <= max(size):
        factor, source = 1.0, f"header (unverified: says {unit}, taken as micrometres)"
    # Headers keep 32-bit floats: seven digits are all there is.
    z, y, x = (float(f"{value * factor:.6g}") for value in size)
    if not all(ABSURD_UM[0] <= value <= ABSURD_UM[1] for value in (z, y, x)):
        return None, "unknown"
    return (z, y, x), source
