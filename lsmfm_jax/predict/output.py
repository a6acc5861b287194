"""The result of a whole volume: OME-Zarr 0.5 (zarr 3, sharded), an image with its labels, all with pyramids.

Metadata follow https://ngff.openmicroscopy.org/0.5/: `multiscales` of the image in the root group, the label images
in `labels/`, as many levels for each label image as for the image, the names of dimensions in each array. All arrays
are described before the first voxel is written; what is not written reads as zero.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorstore
from jaxtyping import Num, Shaped

from lsmfm_jax.files import canonical_json
from lsmfm_jax.predict.alike import write_alike
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.memory import give_back
from lsmfm_jax.predict.plan import Size

Box = tuple[slice, slice, slice]

OME_VERSION = "0.5"
AXES = ("z", "y", "x")
# The coarsest level is no larger than this, in voxels along its longest axis.
COARSEST = 256
# An axis is halved together with the others unless its voxels are this much longer than the shortest side.
ANISOTROPIC = 1.5
_MASK_COLOUR = [255, 140, 0, 255]


@dataclasses.dataclass(frozen=True)
class Image:
    """One image of a result.

    Attributes:
        name: of the image, as viewers show it.
        group: path of its group in the result; "" is the root.
        dtype: of its voxels.
        is_label: an image of integers that stand for objects.
    """

    name: str
    group: str
    dtype: str
    is_label: bool

    def array(self, level: int) -> str:
        """Path of a level in the result."""
        return f"{self.group}/{level}" if self.group else str(level)


PROBABILITY = Image("probability", "", "uint8", False)
MASK = Image("mask", "labels/mask", "uint8", True)
INSTANCES = Image("instances", "labels/instances", "uint64", True)


def deblurred(dtype: str) -> Image:
    """The image of a deblurred volume, in the type of its input."""
    return Image("deblurred", "", dtype, False)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Levels of a pyramid.

    Attributes:
        shapes: ZYX voxels of each level, the finest first.
        factors: ZYX, voxels of the finest level in one of each level.
        voxel_size_um: ZYX of the finest level; None: unknown.
        origin_um: ZYX, of the middle of the first voxel of the finest level.
    """

    shapes: tuple[Size, ...]
    factors: tuple[Size, ...]
    voxel_size_um: tuple[float, float, float] | None
    origin_um: tuple[float, float, float]


def make_geometry(shape: Size, voxel_size_um: tuple[float, float, float] | None, origin: Size = (0, 0, 0)) -> Geometry:
    """Halves a volume until it is small; an axis with long voxels waits until the others are as coarse.

    Args:
        shape: ZYX voxels.
        voxel_size_um: ZYX; None: unknown.
        origin: ZYX voxel at which this volume begins in a larger one.
    """
    size = voxel_size_um or (1.0, 1.0, 1.0)
    shapes, factors = [shape], [(1, 1, 1)]
    while max(shapes[-1]) > COARSEST:
        sides = [side * factor for side, factor in zip(size, factors[-1], strict=True)]
        divisible = [
            side <= ANISOTROPIC * min(sides) and length > 1 for side, length in zip(sides, shapes[-1], strict=True)
        ]
        divisible = divisible if any(divisible) else [length > 1 for length in shapes[-1]]
        z, y, x = (factor * (2 if half else 1) for factor, half in zip(factors[-1], divisible, strict=True))
        factors.append((z, y, x))
        z, y, x = (
            math.ceil(length / 2) if half else length for length, half in zip(shapes[-1], divisible, strict=True)
        )
        shapes.append((z, y, x))
    z, y, x = (side * start for side, start in zip(size, origin, strict=True))
    return Geometry(tuple(shapes), tuple(factors), voxel_size_um, (z, y, x))


def describe(root: pathlib.Path, images: Sequence[Image], *, geometry: Geometry, shard: Size, chunk: Size) -> None:
    """Writes the metadata of groups and arrays; writing them again changes nothing.

    Where no image is in the root group, the root shows the first label image.
    """
    labels = [image for image in images if image.is_label]
    for image in images:
        for level, shape in enumerate(geometry.shapes):
            _write(root / image.array(level), array_metadata(shape, image.dtype, shard=shard, chunk=chunk))
    for image in labels:
        facts: dict[str, Any] = {"version": OME_VERSION, "source": {"image": "../../"}}
        if image is MASK:
            facts["colors"] = [{"label-value": 1, "rgba": _MASK_COLOUR}]
        _write(root / image.group, _group({"multiscales": [_multiscale(image, geometry)], "image-label": facts}))
    if labels:
        _write(root / "labels", _group({"labels": [image.name for image in labels]}))
    shown = next((image for image in images if image.group == ""), None)
    multiscale = _multiscale(shown or labels[0], geometry, prefix="" if shown else f"{labels[0].group}/")
    _write(root, _group({"multiscales": [multiscale]}))


def _write(folder: pathlib.Path, metadata: dict[str, Any]) -> None:
    write_alike(folder / "zarr.json", canonical_json(metadata, indent=1))


def _group(facts: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": OME_VERSION, **facts}}}


def _multiscale(image: Image, geometry: Geometry, *, prefix: str = "") -> dict[str, Any]:
    unit = {} if geometry.voxel_size_um is None else {"unit": "micrometer"}
    size = geometry.voxel_size_um or (1.0, 1.0, 1.0)
    datasets = []
    for level, factors in enumerate(geometry.factors):
        scale = [float(side * factor) for side, factor in zip(size, factors, strict=True)]
        # A voxel of a level is the mean of its voxels in the finest: its middle lies between theirs.
        moved = [
            float(start + side * (factor - 1) / 2)
            for start, side, factor in zip(geometry.origin_um, size, factors, strict=True)
        ]
        transformations = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": moved}]
        datasets.append({"path": f"{prefix}{level}", "coordinateTransformations": transformations})
    how = "maximum" if image.is_label else "mean"
    return {
        "name": image.name,
        "axes": [{"name": name, "type": "space", **unit} for name in AXES],
        "datasets": datasets,
        "type": how,
        "metadata": {"description": f"{how} of the voxels of the level before, two along each axis that is halved"},
    }


def array_metadata(shape: Size, dtype: str, *, shard: Size, chunk: Size) -> dict[str, Any]:
    """The `zarr.json` of an array: one file for each shard, in it compressed chunks, each with its checksum."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    itemsize = np.dtype(dtype).itemsize
    plain = {"name": "bytes"} if itemsize == 1 else little
    shuffle = "noshuffle" if itemsize == 1 else "shuffle"
    blosc = {"cname": "zstd", "clevel": 1, "shuffle": shuffle, "typesize": itemsize, "blocksize": 0}
    sharding = {
        "chunk_shape": list(chunk),
        "codecs": [plain, {"name": "blosc", "configuration": blosc}, {"name": "crc32c"}],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": list(AXES),
        "attributes": {},
    }


def shard_file(root: pathlib.Path, image: Image, shard: Sequence[int], *, level: int = 0) -> pathlib.Path:
    """The file of a shard; it is absent where all of it is zero."""
    return root / image.array(level) / "c" / "/".join(map(str, shard))


class Array:
    """A level of an image of a result, for reading boxes and writing shards whole."""

    def __init__(self, root: pathlib.Path, image: Image, *, level: int = 0) -> None:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(root / image.array(level))}}
        try:
            self._array = tensorstore.open(spec, open=True).result()
        except ValueError as error:
            raise PredictionError(f"{root / image.array(level)}: cannot be opened ({_one_line(error)})") from None
        self.path = root / image.array(level)
        self.shape: tuple[int, ...] = tuple(self._array.shape)
        self.dtype: np.dtype = self._array.dtype.numpy_dtype
        self.shard: tuple[int, ...] = tuple(self._array.chunk_layout.write_chunk.shape)
        self.chunk: tuple[int, ...] = tuple(self._array.chunk_layout.read_chunk.shape)

    def read(self, box: Box) -> Shaped[np.ndarray, "z y x"]:
        """The voxels of a box.

        Raises:
            PredictionError: a shard is damaged.
        """
        try:
            return self._array[box].read().result()
        except ValueError as error:
            raise PredictionError(
                f"{self.path}: damaged ({_one_line(error)}); predict again with the same --out, which finds it, or "
                "take a copy"
            ) from None

    def write(self, box: Box, values: Num[np.ndarray, "z y x"]) -> None:
        """Writes a whole shard in one step, without reading what is there.

        Raises:
            PredictionError: the disk does not take it.
        """
        try:
            # Without a transaction each chunk would rewrite the file of its shard.
            with tensorstore.Transaction() as transaction:
                self._array.with_transaction(transaction)[box] = values
        except (ValueError, OSError, RuntimeError) as error:
            raise PredictionError(
                f"{self.path}: could not be written ({_one_line(error)}); make room or mend the disk, then start the "
                "same command again: finished shards are kept"
            ) from None
        # Writing takes several times the memory of a shard for a moment, which would stay with the process.
        give_back()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def build_pyramid(
    root: pathlib.Path, image: Image, geometry: Geometry, *, progress: Callable[[int], None] = lambda voxels: None
) -> None:
    """Makes all levels of an image but the finest, each from the one before, a shard at a time.

    Images are averaged, labels take the largest value, so that sparse objects stay visible.
    """
    for level in range(1, len(geometry.shapes)):
        fine, coarse = Array(root, image, level=level - 1), Array(root, image, level=level)
        step = tuple(b // a for a, b in zip(geometry.factors[level - 1], geometry.factors[level], strict=True))
        for shard in _boxes(coarse.shape, coarse.shard):
            shape = tuple(one.stop - one.start for one in shard)
            values = np.zeros(shape, coarse.dtype)
            # In pieces of a shard: the finer level has eight times as many voxels.
            for piece in _boxes(shape, tuple(max(1, side // 2) for side in coarse.shard)):
                z, y, x = (
                    slice((one.start + start.start) * f, min((one.stop + start.start) * f, size))
                    for one, start, f, size in zip(piece, shard, step, fine.shape, strict=True)
                )
                values[piece] = downsampled(fine.read((z, y, x)), step, largest=image.is_label)
            coarse.write(shard, values)
            progress(values.size)


def _boxes(shape: Sequence[int], sides: Sequence[int]) -> Iterator[Box]:
    for z in range(0, shape[0], sides[0]):
        for y in range(0, shape[1], sides[1]):
            for x in range(0, shape[2], sides[2]):
                ends = [min(start + side, size) for start, side, size in zip((z, y, x), sides, shape, strict=True)]
                yield slice(z, ends[0]), slice(y, ends[1]), slice(x, ends[2])


def downsampled(values: Num[np.ndarray, "z y x"], step: Sequence[int], *, largest: bool) -> Num[np.ndarray, "cz cy cx"]:
    """Each voxel from those it covers, `step` (1 or 2) along each axis, in the type of the input; edges repeat."""
    if not values.any():
        return np.zeros([math.ceil(size / side) for size, side in zip(values.shape, step, strict=True)], values.dtype)
    missing = [(0, size % side) for size, side in zip(values.shape, step, strict=True)]
    padded = np.pad(values, missing, mode="edge") if any(after for _, after in missing) else values
    coarse = np.empty([size // side for size, side in zip(padded.shape, step, strict=True)], values.dtype)
    # A plane at a time, whose sums stay in the cache.
    for number, plane in enumerate(coarse):
        parts = [
            padded[number * step[0] + z, y :: step[1], x :: step[2]]
            for z in range(step[0])
            for y in range(step[1])
            for x in range(step[2])
        ]
        if largest:
            np.maximum.reduce(parts, out=plane)
            continue
        total = np.zeros(plane.shape, np.float64 if values.dtype.itemsize >= 4 else np.float32)
        for part in parts:
            total += part
        total /= len(parts)
        plane[:] = total if values.dtype.kind == "f" else np.rint(total, out=total)
    return coarse
