"""NIfTI files to arrays and back.

NIfTI keeps X, Y, Z (X fastest); here arrays are Z, Y, X, so reading and writing both reverse the axes, and
nothing else: voxels are neither flipped nor reoriented, and the affine stays the one of the X, Y, Z array.

A file is read as a stream: the header first, then as many bytes as it promises and no more, so that neither a wrong
header nor a gzip that expands without end can fill the memory.
"""

import gzip
import io
import logging
import pathlib
import zlib
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Shaped
from nibabel.volumeutils import apply_read_scaling

from lsmfm_jax.files import replace_file
from lsmfm_jax.volumes.formats import (
    Decoded,
    Unreadable,
    arrange,
    channels_first,
    check_size,
    file_bytes,
    judge_voxel_size,
    one_line,
)

# One byte of a deflate stream gives at most 1032 (a match of 258 bytes in two bits).
DEFLATE_RATIO = 1032
# Some tools pad a file; more than this behind the voxels is something that the header does not tell of.
SLACK_BYTES = 64 * 2**10
# Header extensions (comments, DICOM tags) lie before the voxels.
LARGEST_HEADER_BYTES = 16 * 2**20

# nibabel logs what it mends in a header; what matters of it is told by the readers themselves.
_SILENT = logging.Logger("nifti", logging.CRITICAL + 1)


def read_nifti(path: pathlib.Path, *, axes: str | None = None) -> Decoded:
    """Read a single-file NIfTI-1 or NIfTI-2; a scaled one (slope, intercept) becomes float32.

    Args:
        path: the file; compressed if its name ends in `.gz`.
        axes: what the array's axes are in the order of the header, `XYZ` by default.

    Raises:
        Unreadable: truncated or damaged, not NIfTI, not 3D, or of a pixel type that is no number.
        OSError: the file cannot be opened.
    """
    size = file_bytes(path)
    compressed = path.name.lower().endswith(".gz")
    with gzip.open(path) if compressed else open(path, "rb") as stream:
        header, offset = _header(stream)
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        voxel_bytes = dtype.itemsize * int(np.prod(shape, dtype=object))
        check_size(offset + voxel_bytes, file_bytes=size, largest_ratio=DEFLATE_RATIO if compressed else 1)
        pixels = np.empty(voxel_bytes, np.uint8)
        got = _read_into(stream, memoryview(pixels))
        if got < voxel_bytes:
            promise = f"{offset + got} bytes where its header promises {offset + voxel_bytes}"
            raise Unreadable(f"it is truncated: {promise}", "copy the file again")
        # Reading to the end also compares the checksum of the gzip.
        if len(_read(stream, SLACK_BYTES + 1)) > SLACK_BYTES:
            raise Unreadable(
                f"it holds more than its header promises ({offset + voxel_bytes} bytes, shape {tuple(shape)})",
                "its header is wrong, or it is several files in one: export it again",
            )
    array = pixels.view(dtype).reshape(shape, order="F")
    slope, intercept = _scaling(header)
    scaled = (slope, intercept) != (1.0, 0.0)
    if scaled:
        with np.errstate(all="ignore"):
            array = apply_read_scaling(array, slope, intercept).astype(np.float32)
    return _decoded(array, header, axes)


def write_nifti(
    path: str | pathlib.Path,
    array: Shaped[np.ndarray, "z y x"],
    *,
    affine: np.ndarray | None = None,
    header: Any = None,
) -> None:
    """Write a (Z, Y, X) array so that it lies over the image whose affine and header are given.

    The header gives units, codes and descriptions; shape, pixel type and scaling are the array's. Without an
    affine, the voxels count from zero. `.gz` names are compressed. The file appears whole or not at all, and
    the same array gives the same bytes.
    """
    path = pathlib.Path(path)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    kind = nibabel.Nifti2Image if max(array.shape) > np.iinfo(np.int16).max else nibabel.Nifti1Image
    image = kind(array.T, np.eye(4) if affine is None else affine, header, dtype=array.dtype)
    image.header.set_slope_inter(1, 0)
    image.header["cal_min"] = image.header["cal_max"] = 0
    data = image.to_bytes()
    if path.name.endswith(".gz"):
        data = gzip.compress(data, compresslevel=5, mtime=0)
    replace_file(path, data)


def _decoded(array: np.ndarray, header: Any, axes: str | None) -> Decoded:
    try:
        affine, zooms = header.get_best_affine(), header.get_zooms()
    except Exception as error:
        raise Unreadable(f"its NIfTI header is damaged ({one_line(error)})", "copy the file again") from None
    zooms = [float(zoom) for zoom in (*zooms, 0.0, 0.0, 0.0)[:3]]
    if axes is None:
        order = tuple(reversed(range(min(3, array.ndim)))) + tuple(range(3, array.ndim))
        channels = channels_first(array.transpose(order))
    else:
        channels = arrange(array, axes)
        stored = [letter for letter in axes.upper() if letter in "ZYX"]
        columns = [stored.index(letter) for letter in "XYZ"]
        affine, zooms = affine[:, [*columns, 3]], [zooms[column] for column in columns]
    code = int(header["xyzt_units"]) & 7
    unit = {0: "unknown", 1: "meter", 2: "mm", 3: "micron"}.get(code, f"code {code}")
    size, source = judge_voxel_size(zooms[::-1], unit)
    # As nibabel hands a header out: place and scaling of the voxels are those of the file, not of the array.
    header.set_data_offset(0)
    header["scl_slope"] = header["scl_inter"] = np.nan
    return Decoded(channels, size, source, affine, header)


def _header(stream: io.BufferedIOBase) -> tuple[Any, int]:
    """Read up to the first voxel; give the header and the number of bytes before the voxels."""
    start = _read(stream, 348)
    if start[:2] == b"\x1f\x8b":
        raise Unreadable("it is compressed, though its name ends in .nii", "rename it to .nii.gz")
    if start[344:348] == b"n+1\0":
        kind, length = nibabel.Nifti1Header, 348
    elif start[4:12] == b"n+2\0\r\n\x1a\n":
        kind, length = nibabel.Nifti2Header, 540
        start += _read(stream, length - len(start))
    elif start[344:348] == b"ni1\0":
        raise Unreadable("it is half of an .hdr/.img pair", "save it as one .nii file")
    else:
        raise Unreadable("it is not NIfTI: the magic number is missing", "convert it, or check its name")
    if len(start) < length:
        raise Unreadable(f"it is truncated: {len(start)} bytes, its header alone has {length}", "copy the file again")
    try:
        bare = kind(start, check=False)
        _check_shape(bare)
        offset = float(bare["vox_offset"])
        if not length + 4 <= offset <= LARGEST_HEADER_BYTES:
            raise Unreadable(f"its header says that the voxels begin at byte {offset:g}", "export it again")
        start += _read(stream, int(offset) - length)
        if len(start) < int(offset):
            raise Unreadable(f"it is truncated: {len(start)} bytes, its voxels begin at {offset:g}", "copy it again")
        header = kind.from_fileobj(io.BytesIO(start), check=False)
        header.check_fix(logger=_SILENT)
        if header.get_data_dtype().kind not in "iuf":
            raise Unreadable(f"its pixel type is {header.get_data_dtype()}", "convert it to integers or float32")
    except Unreadable:
        raise
    # A damaged header can fail anywhere in the parser, so every exception of it means the same.
    except Exception as error:
        raise Unreadable(f"its NIfTI header is damaged ({one_line(error)})", "copy the file again") from None
    return header, int(offset)


def _check_shape(header: Any) -> None:
    dims = [int(value) for value in header["dim"]]
    if not 1 <= dims[0] <= 7 or min(dims[1 : dims[0] + 1]) < 1:
        raise Unreadable(f"its header's dimensions are {dims}", "export it again: each must be at least one")


def _scaling(header: Any) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isnan(slope) or slope == 0:
        return 1.0, 0.0
    if not np.isfinite([slope, intercept]).all():
        raise Unreadable(f"its header scales by {slope} and adds {intercept}", "export it again")
    return slope, intercept


def _read(stream: io.BufferedIOBase, count: int) -> bytes:
    buffer = bytearray(count)
    return bytes(buffer[: _read_into(stream, memoryview(buffer))])


def _read_into(stream: io.BufferedIOBase, view: memoryview) -> int:
    """Fill a buffer from a stream that may give less at a time; give the number of bytes."""
    done = 0
    try:
        while done < len(view) and (count := stream.readinto(view[done : done + 2**26])):
            done += count
    except gzip.BadGzipFile as error:
        if "Not a gzipped file" in str(error):
            raise Unreadable("its name ends in .gz but it is not compressed", "rename it to .nii") from None
        raise Unreadable(f"its gzip data is damaged ({one_line(error)})", "copy the file again") from None
    except (EOFError, zlib.error) as error:
        reason = f"its gzip data is truncated or damaged ({one_line(error)})"
        raise Unreadable(reason, "copy the file again") from None
    return done
