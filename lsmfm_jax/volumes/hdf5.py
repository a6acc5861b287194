"""HDF5 files: Imaris, BigDataViewer, and any with one dataset or a dataset named after the file's path."""

import contextlib
import dataclasses
import json
import pathlib
from typing import Any

import h5py
import numpy as np

from lsmfm_jax.volumes.axes import Stored, guessed_axes, in_micrometres, level_of
from lsmfm_jax.volumes.bigdataviewer import view_setups
from lsmfm_jax.volumes.formats import Size, Unreadable
from lsmfm_jax.volumes.lazy import Level, Wanted, choose

ENDINGS = (".h5", ".hdf5", ".hdf", ".ims", ".he5")
LISTED = 5

# Filters such as LZ4 in Imaris files are read where this package is installed.
with contextlib.suppress(ImportError):
    import hdf5plugin  # noqa: F401


def split_dataset(path: str) -> tuple[pathlib.Path, str] | None:
    """Part `FILE.h5/group/name` into file and dataset; None where no part of the path is an HDF5 file."""
    where = pathlib.Path(path)
    for file in (where, *where.parents):
        if file.name.lower().endswith(ENDINGS) and file.is_file():
            return file, where.relative_to(file).as_posix().strip(".")
    return None


def open_hdf5(path: pathlib.Path, wanted: Wanted, *, dataset: str = "") -> Level:
    """Open an Imaris or BigDataViewer file, or one dataset of any HDF5 file.

    Raises:
        Unreadable: no HDF5, damaged, or with several datasets of which none was named.
    """
    try:
        # It stays open as long as the volume is used. Locks fail on many network disks, and nothing is written.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise Unreadable(f"it is no readable HDF5 file ({error})", "copy the file again, or check its name") from None
    try:
        if not dataset and "DataSet/ResolutionLevel 0" in file:
            return _imaris(file, wanted)
        if not dataset and "t00000" in file:
            return _bigdataviewer(file, path, wanted)
        return _plain(file, wanted, dataset)
    except Unreadable:
        raise
    except (KeyError, TypeError, IndexError, ValueError, OSError) as error:
        raise Unreadable(f"its HDF5 structure is damaged ({error})", "export it again") from None


def _stored(dataset: Any, axes: tuple[str, ...], *, shape: tuple[int, ...] | None = None) -> Stored:
    if not isinstance(dataset, h5py.Dataset):
        raise Unreadable(f"{dataset.name} is a group, not a dataset", "add the name of one of its datasets to the path")
    return Stored(
        shape=shape or dataset.shape,
        dtype=dataset.dtype,
        axes=axes,
        chunk=dataset.chunks or (*[1] * (dataset.ndim - 1), dataset.shape[-1] if dataset.ndim else 1),
        fetch=lambda index: dataset[index],
    )


def _imaris(file: Any, wanted: Wanted) -> Level:
    levels = _count(file["DataSet"], "ResolutionLevel {}")
    number = choose(wanted.level, levels, what="level", option="--level")
    times = file["DataSet"][f"ResolutionLevel {number}"]
    time = choose(wanted.time, _count(times, "TimePoint {}"), what="time point", option="--time")
    channels = times[f"TimePoint {time}"]
    count = _count(channels, "Channel {}")
    channel = choose(wanted.channel, count, what="channel", option="--channel")
    group = channels[f"Channel {channel}"]
    # The dataset is filled up to whole chunks; the attributes know where the image ends.
    shape = tuple(int(_text(group.attrs[f"ImageSize{axis}"])) for axis in "ZYX")
    level = level_of(_stored(group["Data"], ("z", "y", "x"), shape=shape), Wanted(), levels=levels)
    size, source = _imaris_voxel_size(file, shape)
    return dataclasses.replace(level, channels=count, channel=channel, voxel_size_um=size, voxel_size_source=source)


def _imaris_voxel_size(file: Any, shape: tuple[int, ...]) -> tuple[Size | None, str]:
    try:
        image = file["DataSetInfo/Image"].attrs
        # Imaris numbers its axes X, Y, Z.
        extents = [float(_text(image[f"ExtMax{i}"])) - float(_text(image[f"ExtMin{i}"])) for i in (2, 1, 0)]
        unit = _text(image["Unit"]) if "Unit" in image else None
    except (KeyError, ValueError):
        return None, "unknown"
    sizes = [extent / voxels for extent, voxels in zip(extents, shape, strict=True)]
    return in_micrometres(sizes, [unit] * 3, where="Imaris")


def _bigdataviewer(file: Any, path: pathlib.Path, wanted: Wanted) -> Level:
    times = _count(file, "t{:05d}")
    time = choose(wanted.time, times, what="time point", option="--time")
    names = sorted(name for name in file[f"t{time:05d}"] if name.startswith("s"))
    number = choose(wanted.channel, len(names), what="view setup", option="--channel")
    setup = file[f"t{time:05d}"][names[number]]
    levels = _count(setup, "{}")
    which = choose(wanted.level, levels, what="level", option="--level")
    stored = _stored(setup[str(which)]["cells"], ("z", "y", "x"))
    if stored.dtype == np.int16:
        # BigDataViewer stores its unsigned 16 bits in HDF5's signed ones.
        signed = stored.fetch
        stored = stored._replace(dtype=np.dtype(np.uint16), fetch=lambda index: signed(index).view(np.uint16))
    size: Size | None = None
    source = "unknown"
    known = {one.number: one for one in view_setups(path)}.get(int(names[number][1:]))
    if known is not None and known.voxel_size_um is not None:
        factors = file[names[number]]["resolutions"][which][::-1]
        z, y, x = (value * float(factor) for value, factor in zip(known.voxel_size_um, factors, strict=True))
        size, source = (z, y, x), known.voxel_size_source
    level = level_of(stored, Wanted(), levels=levels, voxel_size_um=size, voxel_size_source=source)
    return dataclasses.replace(level, channels=len(names), channel=number)


def _plain(file: Any, wanted: Wanted, name: str) -> Level:
    if not name:
        name = _only_dataset(file)
    if name not in file:
        raise Unreadable(f"it has no dataset {name}", f"name one of {_listed(_volumes(file))}")
    dataset = file[name]
    stored = _stored(dataset, ())
    labels = _axis_names(dataset)
    named = len(labels) == len(stored.shape) and {"z", "y", "x"} <= set(labels)
    stored = stored._replace(axes=tuple(labels) if named else guessed_axes(stored.shape))
    # The attribute of ImageJ's HDF5 plugin, Z first.
    element = np.ravel(dataset.attrs.get("element_size_um", ()))
    size: Size | None = None
    source = "unknown"
    if len(element) == 3:
        size, source = in_micrometres([float(value) for value in element], ["um"] * 3, where="element_size_um")
    return level_of(stored, wanted, voxel_size_um=size, voxel_size_source=source)


def _axis_names(dataset: Any) -> list[str]:
    tags = dataset.attrs.get("axistags")
    if tags is not None:
        try:  # as ilastik writes them
            return [axis["key"].lower() for axis in json.loads(_text(tags))["axes"]]
        except (ValueError, KeyError, TypeError):
            return []
    return [dimension.label.lower() for dimension in dataset.dims]


def _only_dataset(file: Any) -> str:
    names = _volumes(file)
    if not names:
        raise Unreadable("it has no dataset of three axes or more", "check the file, or name a dataset after its path")
    if len(names) > 1:
        raise Unreadable(
            f"it has {len(names)} datasets ({_listed(names)})", "name one after the path, as in FILE.h5/" + names[0]
        )
    return names[0]


def _volumes(file: Any) -> list[str]:
    names: list[str] = []

    def look(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.ndim >= 3:
            names.append(name)

    file.visititems(look)
    return names


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def _count(group: Any, pattern: str) -> int:
    number = 0
    while pattern.format(number) in group:
        number += 1
    return number


def _text(value: Any) -> str:
    """An attribute as text: Imaris writes an array of single characters."""
    if isinstance(value, np.ndarray):
        value = b"".join(value.ravel().astype("S1").tolist())
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
