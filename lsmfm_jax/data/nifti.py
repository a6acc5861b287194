"""NIfTI files in memory to arrays and back.

NIfTI keeps X, Y, Z (X fastest); here arrays are Z, Y, X, so reading and writing both reverse the axes, and
nothing
else: voxels are neither flipped nor reoriented, and the affine stays the one of the X, Y, Z array.
"""

import gzip
import os
import pathlib
import zlib
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Shaped

from lsmfm_jax.data.formats import Decoded, Unreadable, channels_first, judge_voxel_size
from lsmfm_jax.data.sealed import TEMPORARY


def decode_nifti(data: bytes, *, compressed: bool) -> Decoded:
    """Decode a single-file NIfTI-1 or NIfTI-2; a scaled one (slope, intercept) becomes float32.

    Raises:
        Unreadable: truncated or damaged, not NIfTI, not 3D, or of a pixel type that is no number.
    """
    if compressed:
        data = _gunzip(data)
    image = _parse(data)
    header = image.header
    if header.get_data_dtype().kind not in "iuf":
        raise Unreadable(f"its pixel type is {header.get_data_dtype()}", "convert it to integers or float32")
    # The proxy's word, as nibabel clears offset and scaling in the header that it hands out.
    proxy = image.dataobj
    expected = int(proxy.offset) + proxy.dtype.itemsize * int(np.prod(image.shape, dtype=np.int64))
    if len(data) < expected:
        raise Unreadable(
            f"it is truncated: {len(data)} bytes where its header promises {expected}", "copy the file again"
        )
    scaled = (proxy.slope, proxy.inter) != (1.0, 0.0)
    pixels = np.asarray(proxy) if scaled else proxy.get_unscaled()
    axes = tuple(reversed(range(min(3, pixels.ndim)))) + tuple(range(3, pixels.ndim))
    zooms = [float(zoom) for zoom in (*header.get_zooms(), 0.0, 0.0, 0.0)[:3]]
    size, source = judge_voxel_size(zooms[::-1], header.get_xyzt_units()[0])
    channels = channels_first(pixels.transpose(axes))
    return Decoded(channels.astype(np.float32) if scaled else channels, size, source, image.affine, header)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + TEMPORARY)
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _gunzip(data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except gzip.BadGzipFile as error:
        if data[:2] != b"\x1f\x8b":
            raise Unreadable("its name ends in .gz but it is not compressed", "rename it to .nii") from None
        raise Unreadable(f"its gzip data is damaged ({error})", "copy the file again") from None
    except (EOFError, zlib.error) as error:
        raise Unreadable(f"its gzip data is truncated or damaged ({error})", "copy the file again") from None


def _parse(data: bytes) -> Any:
    magic1, magic2 = data[344:348], data[4:12]
    if magic1 == b"n+1\0":
        kind = nibabel.Nifti1Image
    elif magic2 == b"n+2\0\r\n\x1a\n":
        kind = nibabel.Nifti2Image
    elif magic1 == b"ni1\0":
        raise Unreadable("it is half of an .hdr/.img pair", "save it as one .nii file")
    else:
        raise Unreadable("it is not NIfTI: the magic number is missing", "convert it, or check its name")
    try:
        return kind.from_bytes(data)
    # A damaged header can fail anywhere in the parser, so every exception of it means the same.
    except Exception as error:
        raise Unreadable(f"its NIfTI header is damaged ({error})", "copy the file again") from None
