"""One pass over a volume, in which its levels are measured; see the package's docstring for how tissue is told."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy import ndimage
from skimage.filters import threshold_otsu

from lsmfm_jax.scale.levels import DEVIATIONS, OCTAVES, Levels, Map, Scale, ScaleError, Size, Volume, log_counts

Blocks = Bool[np.ndarray, "a b c"]

# Tissue is at least this many octaves brighter than what is outside of it: twice.
TISSUE_OCTAVES = 1.0
# Below this share of tissue around a voxel the level of the whole volume stands in for the local one.
LEAST_SHARE = 0.05
# What a block of tissue beside the outside counts for: it may hold a part of it, and one of zeros halves its logarithm.
# Not 0, so that tissue of a single block has a level.
BORDER_WEIGHT = 1e-3
# A border block that is darker than the tissue around it by more than this holds a part of the outside.
MIXED_OCTAVES = 0.25
# A volume has at most so many blocks, however large it is: .8 GB while it is measured (1.5 GB for `z_score`).
MOST_BLOCKS = 2**25
# The most that is held of a block at a time: its sums while a volume is read, then means, tissue and background.
_SURVEY_BYTES_A_BLOCK, _Z_SCORE_BYTES_A_BLOCK = 24, 44


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
        self.block = block_sides(self.sigmas, self.shape)
        grid, z_score = _grid(self.shape, self.block), scale.name == "z_score"
        # Logarithms are alike, and few tiles share a block, so that single precision adds them up well enough.
        self._sums = np.zeros(grid, np.float64 if z_score else np.float32)
        # Exact: a block has far fewer than the 2^24 voxels up to which float32 counts.
        self._counts = np.zeros(grid, np.float32)
        self._squares = np.zeros(grid if z_score else (0, 0, 0), np.float64)
        self._recorded, self._seen, self._range = 0, 0, (math.inf, -math.inf)
        self._levels: Levels | None = None

    def add(self, tile: Volume, origin: Sequence[int] = (0, 0, 0)) -> None:
        """Takes the raw counts of a tile into account, `origin` being its first voxel's place in the volume."""
        z_score = self.scale.name == "z_score"
        logs = tile.astype(np.float32) if z_score else log_counts(tile, self.scale.offset_counts)
        where, sums = _block_sums(logs, origin, self.block)
        self._sums[where] += sums
        self._counts[where] += _block_sums(np.ones((1, 1, 1)), origin, self.block, shape=tile.shape)[1]
        if z_score:
            self._squares[where] += _block_sums(logs.astype(np.float64) ** 2, origin, self.block)[1]
        elif tile.size:
            self._recorded += np.count_nonzero(tile)
            self._seen += np.count_nonzero(logs)  # the logarithm of one count, below which none is told apart, is 0
            self._range = (min(self._range[0], float(tile.min())), max(self._range[1], float(tile.max())))

    def levels(self) -> Levels:
        """What was measured; no tile can be added after that.

        Raises:
            ScaleError: no tile was added.
        """
        if self._levels is None:
            self._levels = self._measured()
        return self._levels

    def _measured(self) -> Levels:
        # Maps of blocks are the memory that measuring takes: each is dropped, or written over, as soon as it can be.
        if not self._counts.any():
            raise ScaleError("no voxel was measured: the volume is empty; give one with voxels")
        means, known = self._means(), self._counts > 0
        logs = np.log2(np.maximum(means, 1.0)) if self.scale.name == "z_score" else means
        # A quarter of the background's sigma: half a block, where blocks are not of one voxel.
        spread = [sigma / 4 / block for sigma, block in zip(self.sigmas, self.block, strict=True)]
        tissue = tissue_blocks(logs, known=known, spread=spread)
        voxels = float(self._counts.sum(dtype=np.float64))
        share = float(self._counts.sum(dtype=np.float64, where=tissue)) / voxels
        inner = _inner(tissue, known=known)
        if self.scale.name == "z_score":
            low, high = self._z_score_range(inner, tissue)
            return Levels(self.scale, low, high, block=self.block, tissue_frac=share)
        fixed = self.scale.fixed_level
        level = _median(means, inner if inner.any() else tissue) if fixed is None else fixed
        background = None
        if self.scale.name == "local" and fixed is None:
            background = self._background(means, tissue, tissue & ~inner, level)
        low, high = (self.scale.offset_counts + 2.0 ** (level + octave) for octave in OCTAVES)
        return Levels(
            self.scale,
            low,
            high,
            level,
            background,
            self.block,
            share,
            self._seen / max(self._recorded, 1),
            self._range,
        )

    def _means(self) -> Map:
        """Of each block; where sums are of that type already, they become the means."""
        means = self._sums if self._sums.dtype == np.float32 else np.empty(self._sums.shape, np.float32)
        for mean, sums, counts in zip(means, self._sums, self._counts, strict=True):
            mean[...] = sums / np.maximum(counts, 1.0)
        return means

    def _z_score_range(self, inner: Blocks, tissue: Blocks) -> tuple[float, float]:
        """The counts that become 0 and 1."""
        weight = np.where(inner, np.float32(1.0), np.float32(BORDER_WEIGHT)) * tissue
        total = (self._counts * weight).sum()
        mean = float((self._sums * weight).sum() / total)
        deviation = math.sqrt(max(float((self._squares * weight).sum() / total) - mean**2, 0.0)) or 1.0
        low, high = (mean + number * deviation for number in DEVIATIONS)
        return low, high

    def _background(self, means: Map, tissue: Blocks, border: Blocks, level: float) -> Map:
        sigmas = [sigma / block for sigma, block in zip(self.sigmas, self.block, strict=True)]
        # Full blocks weigh one; the mean is over tissue alone, so that the outside does not darken its border.
        full = self._counts
        full *= tissue
        full /= np.float32(math.prod(self.block))
        mixed = border
        if border.any():
            near = _weighted_mean(means, full, border, sigmas, level)
            # A border block as bright as what is around it holds nothing of the outside, and counts after all.
            near -= np.float32(MIXED_OCTAVES)
            mixed = border & (means <= near)
            del near
        near = _weighted_mean(means, full, mixed, sigmas, level)
        share = ndimage.gaussian_filter(full, sigmas, output=full, truncate=2.5)
        near[share <= LEAST_SHARE] = np.float32(level)
        return near


def _weighted_mean(values: Map, full: Map, mixed: Blocks, sigmas: Sequence[float], otherwise: float) -> Map:
    """Gaussian mean of blocks by how full they are, mixed ones counting little; another number where there is none."""
    weights = full.copy()
    weights[mixed] *= np.float32(BORDER_WEIGHT)
    total = ndimage.gaussian_filter(weights, sigmas, truncate=2.5)
    weights *= values
    mean = ndimage.gaussian_filter(weights, sigmas, output=weights, truncate=2.5)
    none = total <= 0
    mean /= np.maximum(total, np.finfo(np.float32).tiny, out=total)
    mean[none] = np.float32(otherwise)
    return mean


def _median(values: Map, where: Blocks) -> float:
    return float(np.median(values[where], overwrite_input=True))


def survey_bytes(scale: Scale, shape: Sequence[int], voxel_size_um: Sequence[float] | None = None) -> tuple[int, int]:
    """Memory that measuring a volume for a scale takes at its peak, and what its levels take afterwards, in bytes.

    Both grow with the volume, though slowly, and only until it has `MOST_BLOCKS` blocks: a block has 216 voxels for a
    sigma of 12, and more where the volume is larger than 7 * 10^9 voxels.
    """
    if scale.name == "percentile":
        return 0, 0
    blocks = math.prod(_grid(shape, block_sides(_sigmas(scale, voxel_size_um), shape)))
    each = _Z_SCORE_BYTES_A_BLOCK if scale.name == "z_score" else _SURVEY_BYTES_A_BLOCK
    return each * blocks, 4 * blocks if scale.name == "local" else 0


def measure(volume: Volume, scale: Scale, voxel_size_um: Sequence[float] | None = None) -> Levels:
    """The levels of a volume that is in memory."""
    if scale.name == "percentile":
        low, high = (float(value) for value in np.percentile(volume, scale.percentiles))
        return Levels(scale, low, high)
    survey = Survey(scale, volume.shape, voxel_size_um)
    survey.add(volume)
    return survey.levels()


def tissue_blocks(logs: Map, *, known: Blocks | None = None, spread: Sequence[float] = (0.5, 0.5, 0.5)) -> Blocks:
    """Which blocks are tissue: those above Otsu's threshold if the two sides are twofold apart, else all.

    Args:
        logs: log2 of counts of each block.
        known: blocks that were measured.
        spread: standard deviation of a smoothing before, in blocks, so that single objects do not decide.
    """
    known = np.ones(logs.shape, bool) if known is None else known
    smooth = ndimage.gaussian_filter(logs, spread, mode="nearest")
    least, most = smooth.min(where=known, initial=np.inf), smooth.max(where=known, initial=-np.inf)
    if most - least < TISSUE_OCTAVES:
        return known
    # The histogram that Otsu's method makes of all blocks, a plane at a time.
    histograms = [np.histogram(plane[there], 256, (least, most)) for plane, there in zip(smooth, known, strict=True)]
    edges = histograms[0][1]
    threshold = threshold_otsu(hist=(sum(counts for counts, _ in histograms), (edges[:-1] + edges[1:]) / 2))
    # Both before and after smoothing: the smooth map alone would spread thin tissue over what is outside.
    above = known & (smooth > threshold) & (logs > threshold)
    del smooth
    below = known & ~above
    if not above.any() or _median(logs, above) - _median(logs, below) < TISSUE_OCTAVES:
        return known
    return above


def _inner(tissue: Blocks, *, known: Blocks) -> Blocks:
    """Blocks of tissue that no block outside of it touches; the volume's own faces are no border."""
    return tissue & ndimage.binary_erosion(tissue | ~known, np.ones((3, 3, 3), bool), border_value=1)


def _sigmas(scale: Scale, voxel_size_um: Sequence[float] | None) -> tuple[float, float, float]:
    if scale.sigma_um and voxel_size_um is not None:
        z, y, x = (max(scale.sigma_um / size, 0.5) for size in voxel_size_um)
        return z, y, x
    return (scale.sigma_voxels,) * 3


def block_sides(sigmas: Sequence[float], shape: Sequence[int]) -> Size:
    """Two blocks a sigma, as a Gaussian mean is smooth enough to be drawn from that; fewer where they would be many."""
    z, y, x = (max(1, math.floor(sigma / 2)) for sigma in sigmas)
    while math.prod(_grid(shape, (z, y, x))) > MOST_BLOCKS:
        # The side that is the shortest in sigmas.
        side = min(range(3), key=lambda axis: (z, y, x)[axis] / sigmas[axis])
        z, y, x = (length + (axis == side) for axis, length in enumerate((z, y, x)))
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
