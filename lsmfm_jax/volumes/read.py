"""Image files to arrays: NIfTI, TIFF and .npy, as (Z, Y, X) in the file's own integer type, checked.

Axes: an array here is always Z, Y, X. NIfTI files keep X, Y, Z and are transposed on reading and on writing;
TIFF stacks and .npy files are taken as they are. Nothing is flipped or resampled. What a file holds beside what was
read is told in `VolumeInfo.notes`, or refused.
"""

import dataclasses
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.volumes import nifti
from lsmfm_jax.volumes.formats import Decoded, Size, Unreadable, one_line
from lsmfm_jax.volumes.nifti import read_nifti
from lsmfm_jax.volumes.npy import read_npy
from lsmfm_jax.volumes.tiff import read_tiff


class VolumeError(LsmfmError, ValueError):
    """An image file cannot be used: which, why, and what to do about it.

    `blank` tells that nothing is wrong with the file but that every voxel of it is the same.
    """

    def __init__(self, path: str, reason: str, hint: str, blank: bool = False) -> None:
        super().__init__(path, reason, hint, blank)
        self.path, self.reason, self.hint, self.blank = path, reason, hint, blank

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; {self.hint}."


@dataclasses.dataclass(frozen=True, eq=False)
class VolumeInfo:
    """What a file says of itself beside its pixels.

    Attributes:
        voxel_size_um: ZYX in micrometres, None if unknown; `voxel_size_source` says where it is from, and
            begins with "header (unverified" where the header's word is doubtful.
        affine: voxel (X, Y, Z) to world, 4 by 4, and `header`: from a NIfTI, else None.
        channel_numbers: which channel of the file, from 0, each of `Volume.channels` is.
        channels_in_file: how many the file has; one for a grey image that is stored as RGB.
        notes: what was assumed, filled or left out in reading, a line each.
    """

    path: pathlib.Path
    voxel_size_um: Size | None
    voxel_size_source: str
    affine: np.ndarray | None = None
    header: Any = None
    channel_numbers: tuple[int, ...] = (0,)
    channels_in_file: int = 1
    notes: tuple[str, ...] = ()


class Volume(NamedTuple):
    """The channels of a file, each (Z, Y, X) and contiguous, and what the file says of itself."""

    channels: tuple[np.ndarray, ...]
    info: VolumeInfo


def read_volume(
    path: str | pathlib.Path,
    *,
    allow_constant: bool = False,
    channel: int | None = None,
    axes: str | None = None,
    series: int | None = None,
    nan_fill: float | None = None,
    mask: bool = False,
) -> Volume:
    """Read an image file, its channels taken apart.

    Integers of up to 32 bits keep their type, wider ones are narrowed if they fit, bool becomes uint8, any
    float float32. Of several channels those that are constant are left out, and noted; channels that are all
    the same (grey saved as RGB) become one.

    Args:
        path: the file; its name ends in one of `names.SUFFIXES`.
        allow_constant: keep constant channels: an empty mask is a fact and not a fault, and so is the prediction
            of a blank volume.
        channel: the only channel to read, from 0.
        axes: what the axes are in the file's own order, such as `CZYX` (for NIfTI `XYZ` is usual).
        series: which image of a TIFF with several, from 0.
        nan_fill: what stands for NaN, such as 0 for the borders that a registration leaves; by default refused.
        mask: it is a mask, label image or probability: constant ones are kept, and what a TIFF calls the colours of one
            plane are planes.

    Raises:
        VolumeError: missing, empty, truncated or damaged, of an unknown format, not 3D, larger than the memory,
            holding more than can be read without a choice, with NaN or Inf, or constant.
    """
    path = pathlib.Path(path)
    try:
        if nan_fill is not None and not math.isfinite(nan_fill):
            raise Unreadable(f"nan_fill is {nan_fill}", "give a finite number")
        decoded = _decode(path, axes=axes, series=series, mask=mask)
        return _volume(path, decoded, keep_constant=allow_constant or mask, channel=channel, nan_fill=nan_fill)
    except Unreadable as error:
        raise VolumeError(str(path), error.reason, error.hint, error.blank) from None
    except OSError as error:
        raise VolumeError(str(path), f"cannot be read ({error.strerror or error})", "check the path") from None
    except MemoryError:
        raise VolumeError(str(path), "it needs more memory than there is", "cut it into smaller files") from None
    # Other people's files fail in ways that no reader foresees; one of them must not end the work on the others.
    except Exception as error:
        reason = f"it cannot be read ({type(error).__name__}: {one_line(error)})"
        raise VolumeError(str(path), reason, "export it again") from error


def read_single(
    path: str | pathlib.Path,
    *,
    allow_constant: bool = False,
    channel: int | None = None,
    axes: str | None = None,
    series: int | None = None,
    nan_fill: float | None = None,
    mask: bool = False,
) -> tuple[Shaped[np.ndarray, "z y x"], VolumeInfo]:
    """Read a file of one channel, or one channel of a file; arguments as `read_volume`.

    Raises:
        VolumeError: as `read_volume`, or if there are several channels.
    """
    volume = read_volume(
        path, allow_constant=allow_constant, channel=channel, axes=axes, series=series, nan_fill=nan_fill, mask=mask
    )
    if len(volume.channels) > 1:
        raise VolumeError(
            str(path),
            f"it has {len(volume.channels)} channels, expected one",
            "name one where the command has --channel, or save the channels as single files",
        )
    return volume.channels[0], volume.info


def checked_array(array: Any, *, name: str = "the array", allow_constant: bool = False) -> Shaped[np.ndarray, "z y x"]:
    """An array in memory, checked and in the type that reading a file of these voxels would give.

    Args:
        array: raw counts (Z, Y, X), of any integer type, bool or float; whatever NumPy takes for an array.
        name: of the array, for messages.
        allow_constant: take a volume whose voxels are all the same.

    Raises:
        VolumeError: not of three axes, without a voxel, not of numbers, masked, with NaN or Inf, or constant.
    """
    if isinstance(array, str | pathlib.Path):
        raise VolumeError(name, f"it is the name {str(array)!r}", "read the file first, and give its voxels")
    try:
        voxels = np.asarray(array)
    except (ValueError, TypeError) as error:
        raise VolumeError(name, f"it is no array ({one_line(error)})", "give a NumPy array (Z, Y, X)") from None
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        # What lies under the mask would be seen as if it were there.
        hint = "fill them, as with array.filled(0)"
        raise VolumeError(name, f"{int(np.ma.getmaskarray(array).sum())} of its voxels are masked", hint)
    if voxels.ndim != 3:
        hint = "give one channel as (Z, Y, X), such as array[0] of (C, Z, Y, X)"
        raise VolumeError(name, f"its shape is {voxels.shape}, with {voxels.ndim} axes in place of 3", hint)
    if not voxels.size:
        raise VolumeError(name, f"its shape is {voxels.shape}: it has no voxel", "give a volume with voxels")
    try:
        plain, _ = _filled(_plain(voxels), which="it", nan_fill=None)
    except Unreadable as error:
        # The hints for files speak of commands that fill and export them.
        hint = "replace them, as with numpy.nan_to_num" if "NaN" in error.reason else error.hint
        raise VolumeError(name, error.reason, hint) from None
    if not allow_constant and plain.min() == plain.max():
        raise VolumeError(name, f"it is constant: every voxel is {plain.flat[0]}", "leave it out", blank=True)
    return plain


def write_nifti(path: str | pathlib.Path, array: Shaped[np.ndarray, "z y x"], *, like: VolumeInfo | None) -> None:
    """Write a (Z, Y, X) array as NIfTI with the affine and header of the volume that it was made from.

    For a TIFF or .npy input the affine holds the voxel size in micrometres; for None voxels count from zero.
    """
    affine, header = (like.affine, like.header) if like else (None, None)
    if affine is None and like is not None and like.voxel_size_um is not None:
        affine = np.diag([*like.voxel_size_um[::-1], 1.0])
    nifti.write_nifti(path, array, affine=affine, header=header)


def _decode(path: pathlib.Path, *, axes: str | None, series: int | None, mask: bool) -> Decoded:
    name = path.name.lower()
    if name.endswith((".tif", ".tiff")):
        return read_tiff(path, axes=axes, series=series, mask=mask)
    if series not in (None, 0):
        raise Unreadable(f"series {series} was asked for", "only TIFF files hold several images")
    if name.endswith((".nii", ".nii.gz")):
        return read_nifti(path, axes=axes)
    if name.endswith(".npy"):
        return read_npy(path, axes=axes)
    raise Unreadable("its format is unknown", "use .nii, .nii.gz, .tif, .tiff or .npy")


def _volume(
    path: pathlib.Path, decoded: Decoded, *, keep_constant: bool, channel: int | None, nan_fill: float | None
) -> Volume:
    found, notes = decoded.channels, list(decoded.notes)
    if len(found) > 1 and all(np.array_equal(found[0], other) for other in found[1:]):
        notes.append(f"its {len(found)} channels are all the same (grey saved as colour): one is kept")
        found = found[:1]
    numbers = range(len(found))
    if channel is not None:
        if not 0 <= channel < len(found):
            raise Unreadable(f"channel {channel} was asked for, it has {len(found)}", "the first channel is 0")
        numbers = [channel]
    channels: dict[int, np.ndarray] = {}
    blank = {}
    for number in numbers:
        which = f"channel {number}" if len(found) > 1 else "it"
        array, filled = _filled(_plain(found[number]), which=which, nan_fill=nan_fill)
        if filled:
            notes.append(f"{which} had {filled} NaN voxels, filled with {nan_fill:g}")
        if not keep_constant and array.min() == array.max():
            blank[number] = f"{which} is constant: every voxel is {array.flat[0]}"
        else:
            channels[number] = array
    if not channels:
        raise Unreadable("; ".join(blank.values()), "leave it out", blank=True)
    notes += [f"{reason}; it is left out" for reason in blank.values()]
    info = VolumeInfo(
        path,
        decoded.voxel_size_um,
        decoded.voxel_size_source,
        decoded.affine,
        decoded.header,
        channel_numbers=tuple(channels),
        channels_in_file=len(found),
        notes=tuple(notes),
    )
    return Volume(tuple(channels.values()), info)


def _plain(array: np.ndarray) -> np.ndarray:
    kind = array.dtype.kind
    if kind == "b":
        target = "uint8"
    elif kind == "f":
        target = "float32"
    elif kind not in "iu":
        raise Unreadable(f"its pixel type is {array.dtype}", "convert it to integers or float32")
    elif array.dtype.itemsize <= 4:
        target = array.dtype.newbyteorder("=").name
    else:
        low, high = int(array.min()), int(array.max())
        fitting = [n for n in ("int32", "uint32") if np.iinfo(n).min <= low and high <= np.iinfo(n).max]
        if not fitting:
            raise Unreadable(f"its values from {low} to {high} need more than 32 bits", "scale them down")
        target = fitting[0]
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes Inf, and that is refused below
        return np.ascontiguousarray(array, dtype=target)


def _filled(array: np.ndarray, *, which: str, nan_fill: float | None) -> tuple[np.ndarray, int]:
    """Fill NaN where a value is given; whatever else is not finite is refused."""
    if array.dtype.kind != "f":
        return array, 0
    missing = np.isnan(array)
    endless = int(np.isinf(array).sum())
    count = int(missing.sum())
    if endless or (count and nan_fill is None):
        hint = "export it again"
        if not endless:
            hint = "fill them (lsmfm data ingest --nan-fill 0) if they are a border, or export it again"
        raise Unreadable(f"{which} has {count + endless} voxels that are NaN or Inf", hint)
    if count:
        array = np.where(missing, np.float32(nan_fill), array)
    return array, count
