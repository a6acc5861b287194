"""What is measured of a volume once, before any of it is predicted: percentiles, range, and where there is nothing.

One pass over boxes of a volume of any size. Percentiles are exact, as `numpy.percentile` of the whole volume: of
types of up to 16 bits from one histogram; 32-bit types take a second pass, for the lower halves of the few values
that are looked for.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Integer, Num

from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.scale import Levels, Scale, Survey

Box = tuple[slice, slice, slice]
Size = tuple[int, int, int]

# Side of the cells of which the largest value is kept, in voxels.
CELL = 32
# Voxels read at a time.
STEP_VOXELS = 2**24
# A projection has at most so many pixels along an axis, unless its pixels would be larger than cells.
PROJECTION = 1024


@runtime_checkable
class Readable(Protocol):
    """What is needed of a volume: see `lsmfm_jax.volumes.lazy.LazyVolume`."""

    shape: Any
    dtype: Any
    chunk: Any

    def read(self, box: Box) -> np.ndarray:
        """Voxels of a box, ZYX."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class VolumeStatistics:
    """Facts of a whole volume that scaling and skipping need, in its own counts.

    Attributes:
        levels: by which tiles are scaled; its `low` and `high` are the counts that become 0 and 1.
        minimum, maximum: of all voxels.
        cell_maxima: largest value of each cell of `CELL` voxels a side, from the volume's first voxel on.
        projection: largest value along Z, of squares of `projection_side` voxels of Y and X.
    """

    levels: Levels
    minimum: float
    maximum: float
    cell_maxima: Float[np.ndarray, "cz cy cx"]
    projection: Float[np.ndarray, "py px"]

    @property
    def low(self) -> float:
        """The count that becomes 0."""
        return self.levels.low

    @property
    def high(self) -> float:
        """The count that becomes 1."""
        return self.levels.high


def measure(
    volume: Readable, scale: Scale, *, progress: Callable[[int], None] = lambda voxels: None
) -> VolumeStatistics:
    """Reads all of a volume, a few planes at a time, and gives its statistics.

    Args:
        volume: of any size; integers or floats.
        scale: by which its tiles are to be scaled.
        progress: is told how many voxels more have been read.

    Raises:
        PredictionError: a voxel is NaN or infinite, or an integer needs more than 32 bits.
    """
    shape = tuple(volume.shape)
    cells = tuple(math.ceil(size / CELL) for size in shape)
    maxima = np.full(cells, -np.inf)
    side = projection_side(shape)
    projection = np.full((math.ceil(shape[1] / side), math.ceil(shape[2] / side)), -np.inf)
    counts = np.zeros(2**16, np.int64)
    minimum, maximum = math.inf, -math.inf
    kind = None
    survey = None if scale.name == "percentile" else Survey(scale, shape, getattr(volume, "voxel_size_um", None))
    for box in steps(volume):
        tile = narrowed(volume.read(box), box)
        kind = kind or tile.dtype
        corner = tuple(slice(one.start // CELL, math.ceil(one.stop / CELL)) for one in box)
        maxima[corner] = _maxima(tile, CELL, axes=(0, 1, 2))
        seen = tuple(slice(one.start // side, math.ceil(one.stop / side)) for one in box[1:])
        np.maximum(projection[seen], _maxima(tile.max(axis=0), side, axes=(0, 1)), out=projection[seen])
        least, most = float(tile.min()), float(maxima[corner].max())
        minimum, maximum = min(minimum, least), max(maximum, most)
        if survey is None:
            _count(_keys(tile), counts, constant=least == most)
        else:
            survey.add(tile, [one.start for one in box])
        progress(tile.size)
    if survey is not None:
        return VolumeStatistics(survey.levels(), minimum, maximum, maxima, projection)
    ranks = [percentile / 100 * (math.prod(shape) - 1) for percentile in scale.percentiles]
    wanted = sorted({bound for rank in ranks for bound in (math.floor(rank), math.ceil(rank))})
    found = _values(volume, kind, counts, wanted)
    low, high = (_between(found[math.floor(rank)], found[math.ceil(rank)], rank % 1) for rank in ranks)
    return VolumeStatistics(Levels(scale, low, high), minimum, maximum, maxima, projection)


def steps(volume: Readable) -> Iterator[Box]:
    """Boxes that cover a volume, whose corners are multiples of `CELL` and, where that fits, of its chunks."""
    shape = tuple(volume.shape)
    sides = [_side(chunk) for chunk in volume.chunk]
    # Whole rows of chunks: planes of files that are kept plane by plane are then read once.
    for axis in (2, 1, 0):
        others = math.prod(side for place, side in enumerate(sides) if place != axis)
        fitting = STEP_VOXELS // max(1, others) // sides[axis] * sides[axis]
        sides[axis] = min(max(sides[axis], fitting), math.ceil(shape[axis] / CELL) * CELL)
    for z in range(0, shape[0], sides[0]):
        for y in range(0, shape[1], sides[1]):
            for x in range(0, shape[2], sides[2]):
                ends = (min(start + side, size) for start, side, size in zip((z, y, x), sides, shape, strict=True))
                yield tuple(slice(start, end) for start, end in zip((z, y, x), ends, strict=True))


def _side(chunk: int) -> int:
    common = math.lcm(int(chunk), CELL)
    return common if common <= 4 * CELL else CELL


def narrowed(tile: np.ndarray, box: Box) -> np.ndarray:
    """A tile in a type of at most 32 bits, as files that are read whole are narrowed.

    Raises:
        PredictionError: NaN, infinity, or an integer beyond 32 bits.
    """
    kind = tile.dtype.kind
    if kind == "b":
        return tile.astype(np.uint8)
    if kind == "f":
        with np.errstate(over="ignore"):
            tile = tile.astype(np.float32, copy=False)
        if not np.isfinite(tile).all():
            raise PredictionError(f"the voxels {_text(box)} (ZYX) have NaN or infinite values: export the volume again")
        return tile
    if kind in "iu" and tile.dtype.itemsize <= 4:
        return tile
    if kind in "iu":
        # One type for all tiles of a volume, so that their values can be compared.
        if np.iinfo(np.int32).min <= int(tile.min()) and int(tile.max()) <= np.iinfo(np.int32).max:
            return tile.astype(np.int32)
        raise PredictionError(f"the voxels {_text(box)} (ZYX) have values beyond 31 bits: scale the volume down")
    raise PredictionError(f"pixels of type {tile.dtype}: integers or floats are needed")


def _text(box: Box) -> str:
    return ", ".join(f"{one.start}:{one.stop}" for one in box)


def projection_side(shape: tuple[int, ...]) -> int:
    """Voxels along Y and X in a pixel of a projection: a power of 2, so that cells are whole pixels."""
    return next((side for side in (1, 2, 4, 8, 16) if max(shape[1:]) <= side * PROJECTION), CELL)


def _maxima(values: np.ndarray, side: int, *, axes: tuple[int, ...]) -> np.ndarray:
    """The largest value of each cube of `side` along these axes."""
    for axis in axes if side > 1 else ():
        parts = np.split(values, range(side, values.shape[axis], side), axis=axis)
        values = np.stack([part.max(axis=axis) for part in parts], axis=axis)
    return values


def _keys(tile: Num[np.ndarray, "z y x"]) -> Integer[np.ndarray, " n"]:
    """Unsigned integers in the order of the values: 16 bits for types of up to 16 bits, else 32."""
    flat = tile.reshape(-1)
    if flat.dtype in (np.uint8, np.uint16, np.uint32):
        return flat
    if flat.dtype == np.int8:
        flat = flat.astype(np.int16)
    if flat.dtype == np.int16:
        return flat.view(np.uint16) ^ np.uint16(0x8000)
    bits = np.ascontiguousarray(flat).view(np.uint32)
    if flat.dtype == np.int32:
        return bits ^ np.uint32(0x80000000)
    # IEEE floats: positive ones are in the order of their bits, negative ones in the opposite order. Minus zero,
    # which equals zero, is taken for it.
    bits = (flat + np.float32(0)).view(np.uint32)
    return bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))


def _value(key: int, kind: np.dtype) -> float:
    if kind in (np.uint8, np.uint16, np.uint32):
        return float(key)
    if kind in (np.int8, np.int16):
        return float(key - 0x8000)
    if kind == np.int32:
        return float(key - 0x80000000)
    bits = key ^ (0x80000000 if key >> 31 else 0xFFFFFFFF)
    return float(np.array(bits, np.uint32).view(np.float32))


def _count(keys: Integer[np.ndarray, " n"], counts: np.ndarray, *, constant: bool) -> None:
    if keys.dtype == np.uint32:
        keys = (keys >> np.uint32(16)).astype(np.uint16)
    if constant:
        counts[int(keys[0])] += keys.size
        return
    # In pieces: the histogram converts its input to 64 bits.
    for start in range(0, keys.size, 2**18):
        counts += np.bincount(keys[start : start + 2**18], minlength=2**16)


def _values(
    volume: Readable, kind: np.dtype, counts: Integer[np.ndarray, " n"], ranks: Sequence[int]
) -> dict[int, float]:
    """The values that have these ranks, from 0 on, among all voxels."""
    ends = np.cumsum(counts)
    bins = [int(np.searchsorted(ends, rank, side="right")) for rank in ranks]
    if kind.itemsize <= 2:
        return {rank: _value(bin_, kind) for rank, bin_ in zip(ranks, bins, strict=True)}
    lower = {bin_: np.zeros(2**16, np.int64) for bin_ in bins}
    for box in steps(volume):
        keys = _keys(narrowed(volume.read(box), box))
        upper = (keys >> np.uint32(16)).astype(np.uint16)
        for bin_, histogram in lower.items():
            histogram += np.bincount(keys[upper == bin_] & np.uint32(0xFFFF), minlength=2**16)
    found = {}
    for rank, bin_ in zip(ranks, bins, strict=True):
        before = int(ends[bin_]) - int(counts[bin_])
        place = int(np.searchsorted(np.cumsum(lower[bin_]), rank - before, side="right"))
        found[rank] = _value((bin_ << 16) | place, kind)
    return found


def _between(below: float, above: float, share: float) -> float:
    """Interpolates as numpy does, whose result is rounded alike from both sides."""
    return above - (above - below) * (1 - share) if share >= 0.5 else below + (above - below) * share
