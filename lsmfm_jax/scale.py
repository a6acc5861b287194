"""Intensity scales: what becomes of raw counts before a network sees them, the same in training and prediction.

Brains differ in gain, background and staining, so raw counts mean something else in each. Four scales:

    percentile   two percentiles of the volume become 0 and 1 (paper, section 3.1)
    log_ratio    log2 of the ratio to the tissue's median level, from -1 (half of it) at 0 to 4 (16 times) at 1
    local        the same to the background around each voxel: a Gaussian mean of the tissue near it
    z_score      standard deviations from the tissue's mean, from -3 at 0 to 12 at 1

The last three look at the tissue alone. A patch can lie mostly outside of it, where a camera records a few hundred
counts: a median over all voxels would then be that of nothing. Tissue is told from the outside by Otsu's threshold on
the logarithm of a coarse map, if the two sides differ at least twofold; else all is tissue. No number in this rule
belongs to a microscope. Tissue thinner than a block of the map (half a sigma) is not seen.

What these need of a volume comes from one pass over it, in `Survey`, of which a map of block means is kept. So a whole
brain is measured once, in memory that is a small part of it, and each tile gets the values that its voxels have in
the whole.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Num, Shaped
from scipy import ndimage
from skimage.filters import threshold_otsu

from lsmfm_jax.errors import LsmfmError

SCALES = ("percentile", "log_ratio", "local", "z_score")
# What becomes 0 and 1: octaves above the background, and standard deviations.
OCTAVES = (-1.0, 4.0)
DEVIATIONS = (-3.0, 12.0)
# Tissue is at least this many octaves brighter than what is outside of it: twice.
TISSUE_OCTAVES = 1.0
# Below this share of tissue around a voxel the level of the whole volume stands in for the local one.
LEAST_SHARE = 0.05
# Tiles are scaled so many voxels at a time, which stay in the processor's cache from one operation to the next.
_VOXELS_AT_A_TIME = 2**17

# Sums and counts of each block while a volume is read, then maps of means, tissue and background made of them.
_SURVEY_BYTES_A_BLOCK = 64

Volume = Num[np.ndarray, "z y x"]
Map = Float[np.ndarray, "a b c"]
Size = tuple[int, int, int]


class ScaleError(LsmfmError, ValueError):
    """An intensity scale cannot be used as asked; the message names the key, the value and what to do."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """Which scale, and its settings.

    Attributes:
        name: one of `SCALES`.
        percentiles: of `percentile`, that become 0 and 1.
        sigma_voxels: of the Gaussian that a `local` background is a mean over, in voxels; several times an object.
        sigma_um: the same in micrometres; where it is not 0 and the voxel size is known it is used instead.
        offset_counts: what the camera records in the dark, taken off before any ratio.
    """

    name: str = "percentile"
    percentiles: tuple[float, float] = (1.0, 99.0)
    sigma_voxels: float = 12.0
    sigma_um: float = 0.0
    offset_counts: float = 0.0

    def record(self) -> dict[str, Any]:
        """What a run writes down of it; `scale_of` reads it."""
        return {
            "name": self.name,
            "lower": f"{self.percentiles[0]:g}",
            "upper": f"{self.percentiles[1]:g}",
            "sigma_voxels": self.sigma_voxels,
            "sigma_um": self.sigma_um,
            "offset_counts": self.offset_counts,
        }


def scale_of(record: dict[str, Any]) -> Scale:
    """The scale of a run, from what it wrote down; runs that named none used percentiles.

    Raises:
        ScaleError: the record names a scale that does not exist.
    """
    if record.get("name", "percentile") not in SCALES:
        raise ScaleError(f"scaling: {record['name']!r} is unknown; allowed: {', '.join(SCALES)}")
    defaults = Scale()
    return Scale(
        name=record.get("name", "percentile"),
        percentiles=(float(record.get("lower", 1)), float(record.get("upper", 99))),
        sigma_voxels=float(record.get("sigma_voxels", defaults.sigma_voxels)),
        sigma_um=float(record.get("sigma_um", 0.0)),
        offset_counts=float(record.get("offset_counts", 0.0)),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """What one volume measured: enough to scale any tile of it.

    Attributes:
        scale: by which tiles are scaled.
        low: count that becomes 0 (for `local`, where the background is the volume's level).
        high: count that becomes 1, likewise.
        level: log2 of the tissue's median counts, of block means, above the camera's offset; of the ratios alone.
        background: log2 of the counts around the middle of each block, for `local`; else None.
        block: voxels of a block along Z, Y, X.
        tissue_frac: share of the volume that is tissue.
    """

    scale: Scale
    low: float
    high: float
    level: float = 0.0
    background: Map | None = None
    block: Size = (1, 1, 1)
    tissue_frac: float = 1.0

    def apply(
        self, tile: Volume, origin: Sequence[int] = (0, 0, 0), *, clip: bool = True
    ) -> Float[np.ndarray, "z y x"]:
        """A tile of the volume, scaled to float32.

        Args:
            tile: raw counts.
            origin: where in the volume its first voxel is.
            clip: to [0, 1].
        """
        scaled = np.empty(tile.shape, np.float32)
        rows = max(1, _VOXELS_AT_A_TIME // max(1, math.prod(tile.shape[1:])))
        for first in range(0, len(tile), rows):
            some = scaled[first : first + rows]
            self._scale(tile[first : first + rows], (origin[0] + first, *origin[1:]), some)
            if clip:
                np.clip(some, 0.0, 1.0, out=some)
        return scaled

    def _scale(self, tile: Volume, origin: Sequence[int], scaled: Float[np.ndarray, "z y x"]) -> None:
        """Writes a scaled tile."""
        if self.scale.name in ("percentile", "z_score"):
            scaled[...] = tile
            low, span = self.low, self.high - self.low if self.high > self.low else 1.0
        else:
            scaled[...] = log_counts(tile, self.scale.offset_counts)
            scaled -= np.float32(self.level) if self.background is None else self._around(tile.shape, origin)
            low, span = OCTAVES[0], OCTAVES[1] - OCTAVES[0]
        scaled -= np.float32(low)
        scaled /= np.float32(span)

    def facts(self) -> dict[str, Any]:
        """All but the background, in plain numbers; `levels_of` puts both together again."""
        return {
            "scale": self.scale.record(),
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "block": list(self.block),
            "tissue_frac": self.tissue_frac,
        }

    def _around(self, shape: Sequence[int], origin: Sequence[int]) -> Float[np.ndarray, "z y x"]:
        """The background of each voxel of a tile: linear between the middles of blocks."""
        field = self.background
        assert field is not None
        for axis, (size, start, block) in enumerate(zip(shape, origin, self.block, strict=True)):
            place = (np.arange(start, start + size) + 0.5) / block - 0.5
            place = np.clip(place, 0.0, field.shape[axis] - 1.0)
            before = np.minimum(place.astype(np.int64), max(field.shape[axis] - 2, 0))
            after = np.minimum(before + 1, field.shape[axis] - 1)
            share = (place - before).astype(np.float32)
            share = share.reshape([-1 if other == axis else 1 for other in range(3)])
            field = np.take(field, before, axis) * (1 - share) + np.take(field, after, axis) * share
        return field


def log_counts(counts: Num[np.ndarray, "..."], offset_counts: float) -> Float[np.ndarray, "..."]:
    """log2 of counts above the camera's offset, of at least one count; float32."""
    if counts.dtype in (np.uint8, np.uint16):
        # Looked up: a third of the time of computing it for each voxel.
        return _table_of_logs(offset_counts)[counts]
    return _logs(counts, offset_counts)


def _logs(counts: Num[np.ndarray, "..."], offset_counts: float) -> Float[np.ndarray, "..."]:
    # In place, as tiles of brains are large.
    logs = counts.astype(np.float32)
    logs -= np.float32(offset_counts)
    np.maximum(logs, 1.0, out=logs)
    return np.log2(logs, out=logs)


@functools.lru_cache(maxsize=4)
def _table_of_logs(offset_counts: float) -> Float[np.ndarray, "65536"]:
    return _logs(np.arange(2**16), offset_counts)


def levels_of(facts: dict[str, Any], background: Map | None) -> Levels:
    """Levels as they were, from `Levels.facts` and the background."""
    numbers = {name: float(facts[name]) for name in ("low", "high", "level", "tissue_frac")}
    z, y, x = (int(side) for side in facts["block"])
    return Levels(scale_of(facts["scale"]), background=background, block=(z, y, x), **numbers)


class Survey:
    """One pass over a volume, tile by tile, for the scales that look at the tissue: block means of the logarithm.

    Tiles may come in any order and must cover each voxel once. Blocks are counted from the volume's first voxel, so
    tiles that begin at multiples of `block` are quickest; others are right as well.

    Args:
        scale: which statistics are needed.
        shape: of the volume.
        voxel_size_um: ZYX, for a sigma in micrometres.
    """

    def __init__(self, scale: Scale, shape: Sequence[int], voxel_size_um: Sequence[float] | None = None) -> None:
        self.scale, self.shape = scale, tuple(int(size) for size in shape)
        self.sigmas = _sigmas(scale, voxel_size_um)
        self.block = _block(self.sigmas)
        grid = _grid(self.shape, self.block)
        self._sums = np.zeros(grid, np.float64)
        # Exact: a block has far fewer than the 2^24 voxels up to which float32 counts.
        self._counts = np.zeros(grid, np.float32)
        self._squares = np.zeros(grid if scale.name == "z_score" else (0, 0, 0), np.float64)

    def add(self, tile: Volume, origin: Sequence[int] = (0, 0, 0)) -> None:
        """Takes the raw counts of a tile into account, `origin` being its first voxel's place in the volume."""
        z_score = self.scale.name == "z_score"
        logs = tile.astype(np.float32) if z_score else log_counts(tile, self.scale.offset_counts)
        where, sums = _block_sums(logs, origin, self.block)
        self._sums[where] += sums
        self._counts[where] += _block_sums(np.ones((1, 1, 1)), origin, self.block, shape=tile.shape)[1]
        if z_score:
            self._squares[where] += _block_sums(logs.astype(np.float64) ** 2, origin, self.block)[1]

    def levels(self) -> Levels:
        """What was measured.

        Raises:
            ScaleError: no tile was added.
        """
        if not self._counts.any():
            raise ScaleError("no voxel was measured: the volume is empty; give one with voxels")
        means = (self._sums / np.maximum(self._counts, 1.0)).astype(np.float32)
        logs = np.log2(np.maximum(means, 1.0)) if self.scale.name == "z_score" else means
        # A quarter of the background's sigma: half a block, where blocks are not of one voxel.
        spread = [sigma / 4 / block for sigma, block in zip(self.sigmas, self.block, strict=True)]
        tissue = tissue_blocks(logs, known=self._counts > 0, spread=spread)
        weights = self._counts * tissue
        share = float(weights.sum() / self._counts.sum())
        if self.scale.name == "z_score":
            total = weights.sum()
            mean = float((self._sums * tissue).sum() / total)
            deviation = math.sqrt(max(float((self._squares * tissue).sum() / total) - mean**2, 0.0)) or 1.0
            low, high = (mean + number * deviation for number in DEVIATIONS)
            return Levels(self.scale, low, high, block=self.block, tissue_frac=share)
        level = float(np.median(means[tissue]))
        background = None
        if self.scale.name == "local":
            background = self._background(means, weights, level)
        low, high = (self.scale.offset_counts + 2.0 ** (level + octave) for octave in OCTAVES)
        return Levels(self.scale, low, high, level, background, self.block, share)

    def _background(self, means: Map, weights: Map, level: float) -> Map:
        sigmas = [sigma / block for sigma, block in zip(self.sigmas, self.block, strict=True)]
        # Full blocks weigh one; the mean is over tissue alone, so that the outside does not darken its border.
        weights = (weights / math.prod(self.block)).astype(np.float32)
        share = ndimage.gaussian_filter(weights, sigmas, truncate=2.5)
        total = ndimage.gaussian_filter(means * weights, sigmas, truncate=2.5)
        return np.where(share > LEAST_SHARE, total / np.maximum(share, LEAST_SHARE), np.float32(level))


def survey_bytes(scale: Scale, shape: Sequence[int], voxel_size_um: Sequence[float] | None = None) -> tuple[int, int]:
    """Memory that measuring a volume for a scale takes at its peak, and what its levels take afterwards, in bytes.

    Both grow with the volume, though slowly: by blocks, of 216 voxels for a sigma of 12.
    """
    if scale.name == "percentile":
        return 0, 0
    blocks = math.prod(_grid(shape, _block(_sigmas(scale, voxel_size_um))))
    return _SURVEY_BYTES_A_BLOCK * blocks, 4 * blocks if scale.name == "local" else 0


def measure(volume: Volume, scale: Scale, voxel_size_um: Sequence[float] | None = None) -> Levels:
    """The levels of a volume that is in memory."""
    if scale.name == "percentile":
        low, high = (float(value) for value in np.percentile(volume, scale.percentiles))
        return Levels(scale, low, high)
    survey = Survey(scale, volume.shape, voxel_size_um)
    survey.add(volume)
    return survey.levels()


def tissue_blocks(
    logs: Map, *, known: Shaped[np.ndarray, "a b c"] | None = None, spread: Sequence[float] = (0.5, 0.5, 0.5)
) -> Shaped[np.ndarray, "a b c"]:
    """Which blocks are tissue: those above Otsu's threshold if the two sides are twofold apart, else all.

    Args:
        logs: log2 of counts of each block.
        known: blocks that were measured.
        spread: standard deviation of a smoothing before, in blocks, so that single objects do not decide.
    """
    known = np.ones(logs.shape, bool) if known is None else known
    smooth = ndimage.gaussian_filter(logs, spread, mode="nearest")
    values = smooth[known]
    if values.max() - values.min() < TISSUE_OCTAVES:
        return known
    threshold = threshold_otsu(values)
    # Both before and after smoothing: the smooth map alone would spread thin tissue over what is outside.
    above = known & (smooth > threshold) & (logs > threshold)
    below = known & ~above
    if not above.any() or np.median(logs[above]) - np.median(logs[below]) < TISSUE_OCTAVES:
        return known
    return above


def _sigmas(scale: Scale, voxel_size_um: Sequence[float] | None) -> tuple[float, float, float]:
    if scale.sigma_um and voxel_size_um is not None:
        z, y, x = (max(scale.sigma_um / size, 0.5) for size in voxel_size_um)
        return z, y, x
    return (scale.sigma_voxels,) * 3


def _block(sigmas: Sequence[float]) -> Size:
    """Two blocks a sigma: a Gaussian mean is smooth enough to be drawn from that."""
    z, y, x = (max(1, math.floor(sigma / 2)) for sigma in sigmas)
    return z, y, x


def _grid(shape: Sequence[int], block: Size) -> Size:
    """How many blocks a volume has."""
    z, y, x = (-(-size // side) for size, side in zip(shape, block, strict=True))
    return z, y, x


def _block_sums(
    values: Num[np.ndarray, "z y x"], origin: Sequence[int], block: Size, *, shape: Sequence[int] | None = None
) -> tuple[tuple[slice, ...], Float[np.ndarray, "a b c"]]:
    """Sums over the blocks that a tile touches, and where those blocks are.

    With `shape`, `values` is a single number that stands at every voxel of a tile of that shape.
    """
    sums, where = np.asarray(values, np.float64 if values.dtype == np.float64 else np.float32), []
    for axis, (size, start, side) in enumerate(zip(shape or values.shape, origin, block, strict=True)):
        first, last = start // side, (start + size - 1) // side
        where.append(slice(first, last + 1))
        edges = np.maximum(np.arange(first, last + 1) * side - start, 0)
        if shape is None:
            sums = np.add.reduceat(sums, edges, axis=axis)
        else:
            lengths = np.diff([*edges, size]).reshape([-1 if other == axis else 1 for other in range(3)])
            sums = sums * lengths
    return tuple(where), sums
