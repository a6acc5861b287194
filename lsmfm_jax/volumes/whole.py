"""Single files of one volume: NIfTI and .npy, from the disk where they are not compressed, else from memory."""

import dataclasses
import pathlib

import nibabel
import numpy as np

from lsmfm_jax.volumes.formats import Unreadable, channels_first, judge_voxel_size
from lsmfm_jax.volumes.lazy import Box, Level, Wanted, choose, plain_dtype
from lsmfm_jax.volumes.read import read_volume


def open_npy(path: pathlib.Path, wanted: Wanted) -> Level:
    """Map a .npy file; only the parts of it that are asked for are read from the disk.

    Raises:
        Unreadable: it is no .npy file of numbers with three axes and at most channels.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise Unreadable(f"it is not a readable .npy file ({error})", "save it with numpy.save") from None
    return mapped_level(channels_first(array), wanted)


def open_nifti(path: pathlib.Path, wanted: Wanted) -> Level:
    """Map a .nii file; a .nii.gz one is unpacked into memory.

    Raises:
        Unreadable: it is damaged or not 3D.
        VolumeError: the same of a compressed one.
    """
    if path.name.lower().endswith(".gz"):
        return _in_memory(path, wanted)
    try:
        image = nibabel.load(path, mmap=True)
        proxy, header = image.dataobj, image.header
        pixels = proxy.get_unscaled()
        zooms = [float(zoom) for zoom in (*header.get_zooms(), 0.0, 0.0, 0.0)[:3]]
        unit = header.get_xyzt_units()[0]
    # A damaged header can fail anywhere in the parser, and only the whole reader knows what to say of each.
    except Exception:
        return _in_memory(path, wanted)
    scale = (float(proxy.slope), float(proxy.inter))
    size, source = judge_voxel_size(zooms[::-1], unit)
    axes = tuple(reversed(range(min(3, pixels.ndim)))) + tuple(range(3, pixels.ndim))
    level = mapped_level(channels_first(pixels.transpose(axes)), wanted, scale=scale)
    return dataclasses.replace(level, voxel_size_um=size, voxel_size_source=source, affine=image.affine, header=header)


def mapped_level(channels: np.ndarray, wanted: Wanted, *, scale: tuple[float, float] = (1.0, 0.0)) -> Level:
    """Give one channel of a (C, Z, Y, X) array that lies on the disk; `scale` is slope and intercept."""
    channel = choose(wanted.channel, len(channels), what="channel", option="--channel")
    pixels = channels[channel]
    dtype = plain_dtype(pixels.dtype) if scale == (1.0, 0.0) else np.dtype(np.float32)

    def read(box: Box) -> np.ndarray:
        voxels = pixels[box]
        return voxels.astype(dtype) if scale == (1.0, 0.0) else voxels * scale[0] + scale[1]

    z, y, x = pixels.shape
    # What the disk reads at once is a run along the fastest axis.
    fastest = int(np.argmin(np.abs(pixels.strides)))
    chunk = tuple(size if axis == fastest else 1 for axis, size in enumerate((z, y, x)))
    return Level(
        shape=(z, y, x),
        dtype=dtype,
        voxel_size_um=None,
        voxel_size_source="unknown",
        chunk=chunk,
        read=read,
        channels=len(channels),
        channel=channel,
    )


def _in_memory(path: pathlib.Path, wanted: Wanted) -> Level:
    volume = read_volume(path, allow_constant=True)
    channel = choose(wanted.channel, len(volume.channels), what="channel", option="--channel")
    pixels, info = volume.channels[channel], volume.info
    z, y, x = pixels.shape
    return Level(
        shape=(z, y, x),
        dtype=pixels.dtype,
        voxel_size_um=info.voxel_size_um,
        voxel_size_source=info.voxel_size_source,
        chunk=(1, 1, 1),
        read=lambda box: pixels[box],
        channels=len(volume.channels),
        channel=channel,
        affine=info.affine,
        header=info.header,
    )
