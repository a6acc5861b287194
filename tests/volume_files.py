"""Writes volumes in the formats of microscopes and pipelines, by libraries that the readers are not made of."""

import json
import pathlib

import h5py
import numpy as np
import tensorstore
import tifffile


def voxels(shape: tuple[int, ...], dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    """Random numbers over the type's range, no two boxes alike."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(0, 1e3, shape).astype(kind)
    low, high = (np.iinfo(kind).min, np.iinfo(kind).max)
    return rng.integers(low, high, shape, dtype=kind.newbyteorder("="), endpoint=True).astype(kind)


def write_array(folder: pathlib.Path, driver: str, array: np.ndarray, metadata: dict, **spec) -> None:
    where = {"driver": "file", "path": f"{folder}/"}
    created = tensorstore.open(
        {"driver": driver, "kvstore": where, "metadata": metadata, **spec},
        create=True,
        delete_existing=True,
        dtype=array.dtype.newbyteorder("="),
        shape=array.shape,
    ).result()
    created.write(array).result()


def ome_zarr(
    folder: pathlib.Path,
    levels: list[np.ndarray],
    *,
    version: str,
    axes: str = "zyx",
    scale: tuple[float, ...] = (2.0, 0.5, 0.5),
    unit: str | None = "micrometer",
    chunk: int = 16,
    shard: int | None = None,
) -> pathlib.Path:
    """An OME-Zarr of version 0.4 (zarr 2) or 0.5 (zarr 3), metadata written by hand as the specification has them."""
    folder.mkdir(parents=True)
    datasets = []
    for number, level in enumerate(levels):
        chunks = [min(chunk, size) for size in level.shape]
        if version == "0.4":
            code = level.dtype.str if level.dtype.itemsize > 1 else level.dtype.str.replace("<", "|")
            meta = {"chunks": chunks, "dtype": code, "compressor": {"id": "zlib", "level": 1}}
            write_array(folder / str(number), "zarr", level, meta | {"dimension_separator": "/"})
        else:
            write_array(folder / str(number), "zarr3", level, zarr3_metadata(chunks, shard))
        factor = 2**number
        sizes = [value * factor for value in scale]
        along = dict(zip("zyx", sizes, strict=True))
        transforms = [{"type": "scale", "scale": [along.get(name, 1.0) for name in axes]}]
        datasets.append({"path": str(number), "coordinateTransformations": transforms})
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": name, "type": kinds.get(name, "space")} for name in axes]
    for axis in named:
        if axis["type"] == "space" and unit:
            axis["unit"] = unit
    multiscales = [{"axes": named, "datasets": datasets, "name": "brain"}]
    if version == "0.4":
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text(json.dumps({"multiscales": [multiscales[0] | {"version": "0.4"}]}))
    else:
        ome = {"version": "0.5", "multiscales": multiscales}
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
        (folder / "zarr.json").write_text(json.dumps(group))
    return folder


def zarr3_metadata(chunks: list[int], shard: int | None) -> dict:
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd", "configuration": {"level": 1}}]
    if shard is None:
        return {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}}, "codecs": codecs}
    outer = [size * shard for size in chunks]
    sharding = {"name": "sharding_indexed", "configuration": {"chunk_shape": chunks, "codecs": codecs}}
    return {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": outer}}, "codecs": [sharding]}


def precomputed(folder: pathlib.Path, levels: list[np.ndarray], *, offset: tuple[int, int, int] = (0, 0, 0)) -> None:
    """(C, Z, Y, X) levels; sizes 500 x 500 x 2000 nm in X, Y, Z, doubled a level."""
    for number, level in enumerate(levels):
        array = level.transpose(3, 2, 1, 0)
        scale = {
            "size": list(array.shape[:3]),
            "encoding": "raw",
            "chunk_size": [16, 16, 8],
            "resolution": [500 * 2**number, 500 * 2**number, 2000 * 2**number],
            "voxel_offset": list(offset),
            "key": f"level{number}",
        }
        multi = {"data_type": str(array.dtype), "num_channels": array.shape[3], "type": "image"}
        created = tensorstore.open(
            {
                "driver": "neuroglancer_precomputed",
                "kvstore": {"driver": "file", "path": f"{folder}/"},
                "multiscale_metadata": multi,
                "scale_metadata": scale,
            },
            create=True,
            open=True,
        ).result()
        created[tensorstore.d[:].translate_to[0]].write(array).result()


def n5(folder: pathlib.Path, array: np.ndarray, **attributes) -> None:
    """An array with its axes as N5 has them (X first) and further attributes of the programs that use it."""
    blocks = [min(16, size) for size in array.shape]
    meta = {"dimensions": list(array.shape), "blockSize": blocks, "dataType": str(array.dtype)}
    write_array(folder, "n5", array, meta | {"compression": {"type": "gzip"}})
    add_attributes(folder, **attributes)


def add_attributes(folder: pathlib.Path, **attributes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "attributes.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | attributes))


def characters(text: str) -> np.ndarray:
    """As Imaris writes attributes."""
    return np.array([letter.encode() for letter in text], dtype="S1")


def imaris(path: pathlib.Path, levels: list[np.ndarray]) -> pathlib.Path:
    """(T, C, Z, Y, X) levels, each dataset filled up to whole chunks as Imaris does; 2 x 0.5 x 0.5 um."""
    with h5py.File(path, "w") as file:
        _, _, z, y, x = levels[0].shape
        image = file.create_group("DataSetInfo/Image")
        for axis, (low, size, um) in enumerate([(10.0, x, 0.5), (-4.0, y, 0.5), (0.0, z, 2.0)]):
            image.attrs[f"ExtMin{axis}"] = characters(f"{low:.3f}")
            image.attrs[f"ExtMax{axis}"] = characters(f"{low + size * um:.3f}")
        image.attrs["Unit"] = characters("um")
        for number, level in enumerate(levels):
            for time in range(level.shape[0]):
                for channel in range(level.shape[1]):
                    group = file.create_group(f"DataSet/ResolutionLevel {number}/TimePoint {time}/Channel {channel}")
                    pixels = level[time, channel]
                    padded = np.pad(pixels, [(0, -size % 8) for size in pixels.shape])
                    group.create_dataset("Data", data=padded, chunks=(8, 8, 8), compression="gzip")
                    for name, size in zip("ZYX", pixels.shape, strict=True):
                        group.attrs[f"ImageSize{name}"] = characters(str(size))
    return path


VIEW_SETUP = """<ViewSetup><id>{number}</id><name>channel {number}</name><size>1 1 1</size>
<voxelSize><unit>{unit}</unit><size>{x} {y} {z}</size></voxelSize></ViewSetup>"""


def view_setups(path: pathlib.Path, count: int, *, unit: str = "µm", zyx: tuple[float, ...] = (2.0, 0.5, 0.25)) -> None:
    z, y, x = zyx
    setups = "".join(VIEW_SETUP.format(number=i, unit=unit, z=z, y=y, x=x) for i in range(count))
    text = f'<?xml version="1.0" encoding="UTF-8"?><SpimData><ViewSetups>{setups}</ViewSetups></SpimData>'
    path.write_text(text, encoding="utf-8")


def bigdataviewer_h5(path: pathlib.Path, levels: list[np.ndarray]) -> pathlib.Path:
    """(T, S, Z, Y, X) uint16 levels, kept in signed 16 bits as BigDataViewer does."""
    with h5py.File(path, "w") as file:
        for setup in range(levels[0].shape[1]):
            file[f"s{setup:02d}/resolutions"] = np.array([[2.0**i, 2.0**i, 1.0] for i in range(len(levels))])
            for number, level in enumerate(levels):
                for time in range(level.shape[0]):
                    name = f"t{time:05d}/s{setup:02d}/{number}/cells"
                    file.create_dataset(name, data=level[time, setup].view(np.int16), chunks=(4, 8, 8))
    return path


def planes(folder: pathlib.Path, array: np.ndarray, pattern: str = "img_{:d}.tif", **options) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, plane in enumerate(array):
        tifffile.imwrite(folder / pattern.format(number), plane, **options)
    return folder
