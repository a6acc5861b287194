"""One way to open a volume of any size: a file, a folder or a URL, of which only boxes are read.

What fits into memory and what does not are opened alike: `open_volume(path).read(box)`.
"""

import os
import pathlib
from collections.abc import Callable

import numpy as np

from lsmfm_jax.volumes.bigdataviewer import view_setups
from lsmfm_jax.volumes.formats import Unreadable
from lsmfm_jax.volumes.hdf5 import ENDINGS as HDF5_ENDINGS
from lsmfm_jax.volumes.hdf5 import open_hdf5, split_dataset
from lsmfm_jax.volumes.lazy import Box, LazyVolume, Level, Wanted, bounded, box_text, choose, parse_box
from lsmfm_jax.volumes.n5 import METADATA as N5_METADATA
from lsmfm_jax.volumes.n5 import open_n5
from lsmfm_jax.volumes.pages import open_tiff
from lsmfm_jax.volumes.planes import is_plane_folder, open_planes, plane_files, terastitcher
from lsmfm_jax.volumes.precomputed import METADATA as PRECOMPUTED_METADATA
from lsmfm_jax.volumes.precomputed import open_precomputed
from lsmfm_jax.volumes.read import VolumeError
from lsmfm_jax.volumes.remote import is_address, key_values, without_format
from lsmfm_jax.volumes.whole import open_nifti, open_npy
from lsmfm_jax.volumes.zarr import MARKERS as ZARR_MARKERS
from lsmfm_jax.volumes.zarr import open_zarr

__all__ = ["Box", "LazyVolume", "VolumeError", "box_text", "is_volume", "open_volume", "parse_box"]

FILES: dict[tuple[str, ...], Callable[[pathlib.Path, Wanted], Level]] = {
    (".nii", ".nii.gz"): open_nifti,
    (".npy",): open_npy,
    (".tif", ".tiff", ".btf", ".tf8"): open_tiff,
}


def open_volume(
    path: str | os.PathLike[str],
    *,
    channel: int | None = None,
    level: int = 0,
    time: int | None = None,
    box: Box | None = None,
    mask: bool = False,
) -> LazyVolume:
    """Open one channel of a volume at one level; no voxel is read yet, but of a .nii.gz file.

    Args:
        path: a file (NIfTI, TIFF, .npy, HDF5, or a dataset in one as FILE.h5/NAME), a folder (zarr, N5,
            precomputed, planes) or a URL (http, https, s3, gs) of a chunked store.
        channel: counted from 0; None where there is only one.
        level: of the pyramid, 0 is the finest.
        time: time point counted from 0; None where there is only one.
        box: ZYX slices in voxels of that level, what lies outside is cut off; None for all of it.
        mask: it is a mask, label image or probability: what a TIFF calls the colours of one plane are planes.

    Raises:
        VolumeError: missing, damaged, of an unknown format, not 3D; or there are several channels or time
            points and none was chosen; or there is no such channel, level or box.
    """
    try:
        opened = _level(os.fspath(path), Wanted(channel, level, time, mask))
        inside = _inside(box, opened.shape)
    except Unreadable as error:
        raise VolumeError(os.fspath(path), error.reason, error.hint) from None
    z, y, x = (one.stop - one.start for one in inside)
    return LazyVolume(
        path=os.fspath(path),
        shape=(z, y, x),
        dtype=opened.dtype,
        voxel_size_um=opened.voxel_size_um,
        voxel_size_source=opened.voxel_size_source,
        chunk=opened.chunk,
        channels=opened.channels,
        levels=opened.levels,
        channel=opened.channel,
        level=level,
        origin=(inside[0].start, inside[1].start, inside[2].start),
        source=_named_errors(opened.read, os.fspath(path)),
        affine=opened.affine,
        header=opened.header,
    )


def is_volume(path: str | os.PathLike[str]) -> bool:
    """Whether a path is one volume by its name or, for a folder, its content; not whether it is a good one.

    Folders that are volumes: zarr, N5, precomputed, planes (and TeraStitcher's tiles, which `open_volume` refuses
    with what to do), as against a folder of volumes. URLs are volumes, and so is a dataset in an HDF5 file.
    """
    text = os.fspath(path)
    if is_address(text):
        return True
    where = pathlib.Path(without_format(text))
    if not where.is_dir():
        return _reader(where.name) is not None or split_dataset(text) is not None
    named = where.name.lower().endswith((".zarr", ".n5", ".precomputed"))
    return named or _is_chunked(where) or terastitcher(where) or is_plane_folder(where)


def _level(path: str, wanted: Wanted) -> Level:
    where = pathlib.Path(without_format(path))
    if is_address(path):
        level = _chunked(path, wanted)
        if level is None:
            raise Unreadable(
                "there is no zarr, N5 or precomputed volume at the address",
                "check it, or download the file: other formats are read from a disk",
            )
    elif where.is_dir():
        level = _folder(where, path, wanted)
    elif (found := split_dataset(path)) is not None:
        level = open_hdf5(found[0], wanted, dataset=found[1])
    elif not where.exists():
        raise Unreadable("there is no such file or folder", "check the path")
    else:
        reader = _reader(where.name)
        if reader is None:
            known = ", ".join((*(ending for endings in FILES for ending in endings), *HDF5_ENDINGS))
            raise Unreadable("its format is unknown", f"use {known}, zarr, N5, precomputed or a folder of planes")
        level = reader(where, wanted)
    choose(wanted.level, level.levels, what="level", option="--level")
    return level


def _folder(where: pathlib.Path, path: str, wanted: Wanted) -> Level:
    level = _chunked(path, wanted, local=where)
    if level is not None:
        return level
    if terastitcher(where) or len(plane_files(where)) > 1:
        return open_planes(where, wanted)
    raise Unreadable(
        "the folder is no volume: it holds neither zarr, N5 or precomputed metadata nor 2D planes",
        "name one file or the folder of one volume",
    )


def _chunked(path: str, wanted: Wanted, *, local: pathlib.Path | None = None) -> Level | None:
    store = key_values(path)
    level = open_zarr(store, wanted) or open_precomputed(store, wanted)
    return level or open_n5(store, wanted, setups=view_setups(local) if local else None)


def _is_chunked(folder: pathlib.Path) -> bool:
    if any((folder / name).is_file() for name in ZARR_MARKERS):
        return True
    if any((folder / name / N5_METADATA).is_file() for name in (".", "s0", "setup0")):
        return True
    info = folder / PRECOMPUTED_METADATA
    return info.is_file() and b'"scales"' in info.read_bytes()


def _reader(name: str) -> Callable[[pathlib.Path, Wanted], Level] | None:
    return next((reader for endings, reader in FILES.items() if name.lower().endswith(endings)), None)


def _inside(box: Box | None, shape: tuple[int, int, int]) -> Box:
    if box is None:
        return bounded((slice(None),) * 3, shape)
    inside = bounded(box, shape)
    if any(one.stop <= one.start for one in inside):
        raise Unreadable(f"the box {box_text(box)} lies outside its {shape} voxels", "give a --box inside, Z, Y, X")
    return inside


def _named_errors(read: Callable[[Box], np.ndarray], path: str) -> Callable[[Box], np.ndarray]:
    def named(box: Box) -> np.ndarray:
        try:
            return read(box)
        except Unreadable as error:
            raise VolumeError(path, error.reason, error.hint) from None
        except (OSError, ValueError, RuntimeError) as error:
            reason = f"the voxels {box_text(box)} cannot be read ({' '.join(str(error).split())[:300]})"
            raise VolumeError(path, reason, "copy it again, or check the connection") from None

    return named
