"""Image files to arrays: NIfTI, TIFF and .npy, as (Z, Y, X) in the file's own integer type, checked.

Axes: an array here is always Z, Y, X. NIfTI files keep X, Y, Z and are transposed on reading and on writing;
TIFF stacks and .npy files are taken as they are. Nothing is flipped or resampled.
"""

import dataclasses
import io
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from lsmfm_jax.data import nifti
from lsmfm_jax.data.formats import Decoded, Size, Unreadable, channels_first
from lsmfm_jax.data.nifti import decode_nifti
from lsmfm_jax.data.tiff import decode_tiff


class VolumeError(ValueError):
    """An image file cannot be used: which, why, and what to do about it."""

    def __init__(self, path: str, reason: str, hint: str) -> None:
        super().__init__(path, reason, hint)
        self.path, self.reason, self.hint = path, reason, hint

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; {self.hint}."


@dataclasses.dataclass(frozen=True, eq=False)
class VolumeInfo:
    """What a file says of itself beside its pixels.

    Attributes:
        voxel_size_um: ZYX in micrometres, None if unknown; `voxel_size_source` says where it is from, and
            begins with "header (unverified" where the header's word is doubtful.
        affine: voxel (X, Y, Z) to world, 4 by 4, and `header`: from a NIfTI, else None.
    """

    path: pathlib.Path
    voxel_size_um: Size | None
    voxel_size_source: str
    affine: np.ndarray | None = None
    header: Any = None


class Volume(NamedTuple):
    """The channels of a file, each (Z, Y, X) and contiguous, and what the file says of itself."""

    channels: tuple[np.ndarray, ...]
    info: VolumeInfo


def read_volume(path: str | pathlib.Path, *, allow_constant: bool = False) -> Volume:
    """Read an image file, its channels taken apart.

    Integers of up to 32 bits keep their type, wider ones are narrowed if they fit, bool becomes uint8, any
    float float32. `allow_constant` is for label images, where an empty mask is a fact and not a fault.

    Raises:
        VolumeError: missing, empty, truncated or damaged, of an unknown format, not 3D, with NaN or Inf, or
            constant.
    """
    path = pathlib.Path(path)
    try:
        return decode_volume(path.read_bytes(), path=path, allow_constant=allow_constant)
    except OSError as error:
        raise VolumeError(str(path), f"cannot be read ({error.strerror or error})", "check the path") from None


def decode_volume(data: bytes, *, path: pathlib.Path, allow_constant: bool = False) -> Volume:
    """Do what `read_volume` does with bytes that are already in memory; `path` gives the format."""
    try:
        if not data:
            raise Unreadable("the file is empty", "copy the file again")
        decoded = _decode(data, path.name.lower())
        channels = tuple(_plain(channel) for channel in decoded.channels)
        for number, channel in enumerate(channels):
            _check(channel, which=f"channel {number}" if len(channels) > 1 else "it", constant=allow_constant)
    except Unreadable as error:
        raise VolumeError(str(path), error.reason, error.hint) from None
    info = VolumeInfo(path, decoded.voxel_size_um, decoded.voxel_size_source, decoded.affine, decoded.header)
    return Volume(channels, info)


def read_single(
    path: str | pathlib.Path, *, allow_constant: bool = False
) -> tuple[Shaped[np.ndarray, "z y x"], VolumeInfo]:
    """Read a file of one channel.

    Raises:
        VolumeError: as `read_volume`, or if there are several channels.
    """
    volume = read_volume(path, allow_constant=allow_constant)
    if len(volume.channels) > 1:
        raise VolumeError(
            str(path),
            f"it has {len(volume.channels)} channels, expected one",
            "save the channels as single files",
        )
    return volume.channels[0], volume.info


def write_nifti(path: str | pathlib.Path, array: Shaped[np.ndarray, "z y x"], *, like: VolumeInfo | None) -> None:
    """Write a (Z, Y, X) array as NIfTI with the affine and header of the volume that it was made from.

    For a TIFF or .npy input the affine holds the voxel size in micrometres; for None voxels count from zero.
    """
    affine, header = (like.affine, like.header) if like else (None, None)
    if affine is None and like is not None and like.voxel_size_um is not None:
        affine = np.diag([*like.voxel_size_um[::-1], 1.0])
    nifti.write_nifti(path, array, affine=affine, header=header)


def _decode(data: bytes, name: str) -> Decoded:
    if name.endswith((".nii", ".nii.gz")):
        return decode_nifti(data, compressed=name.endswith(".gz"))
    if name.endswith((".tif", ".tiff")):
        return decode_tiff(data)
    if name.endswith(".npy"):
        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise Unreadable(f"it is not a readable .npy file ({error})", "save it with numpy.save") from None
        return Decoded(channels_first(array), None, "unknown")
    raise Unreadable("its format is unknown", "use .nii, .nii.gz, .tif, .tiff or .npy")


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


def _check(array: np.ndarray, *, which: str, constant: bool) -> None:
    if array.dtype.kind == "f":
        finite = int(np.isfinite(array).sum())
        if finite < array.size:
            raise Unreadable(f"{which} has {array.size - finite} voxels that are NaN or Inf", "export it again")
    if not constant and array.min() == array.max():
        raise Unreadable(f"{which} is constant: every voxel is {array.flat[0]}", "leave it out")
