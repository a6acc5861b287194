"""What a volume of any size looks like from a few of its voxels: background, noise, extremes, and a coarse map.

Nothing here reads more than about a gigabyte: voxels come from small blocks spread evenly over the volume, and the map
from a coarse level of the pyramid, from all voxels where they are few, or else from the blocks alone.
"""

import dataclasses
import itertools
import math

import numpy as np
from jaxtyping import Float, Shaped

from lsmfm_jax.volumes.lazy import Box, LazyVolume, Voxels
from lsmfm_jax.volumes.open import VolumeError, open_volume

BLOCKS = 512
BLOCK_SIDE = 32
# A volume of no more voxels is read whole for its map.
WHOLE_VOXELS = 2**28
# The longest axis of a map; what is larger is reduced.
MAP_SIDE = 256
DARKEST_FRAC = 0.1
# Robust standard deviations above the background from which on a voxel is foreground.
DEVIATIONS = 6.0
# Of a normal distribution, its standard deviation over its median absolute deviation.
MAD_TO_SIGMA = 1.4826
BINS = 128
PERCENTILES = (0.1, 1, 5, 50, 95, 99, 99.5, 99.9, 100)


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """What sampled blocks say of a volume, in its own counts.

    Attributes:
        sampled: voxels that were looked at; `exact` if those are all.
        background, noise: median and robust standard deviation in the darkest tenth of the blocks (those that are
            all of one value are left out where there are others).
        threshold: background + 6 noise, and at least one count above it: brighter voxels are foreground.
        minimum, maximum, percentiles: of the sampled voxels.
        foreground_frac: share of the sampled voxels above the threshold.
        empty_frac: share of the blocks with less than one foreground voxel in a thousand.
        saturated_frac: share of the sampled voxels that hold the type's largest value or, where at least one in a
            thousand does, the largest value found.
        not_finite: sampled voxels that are NaN or Inf; they count nowhere else.
        histogram: shares of the sampled voxels, and the edges of the bins in counts.
    """

    sampled: int
    exact: bool
    background: float
    noise: float
    threshold: float
    minimum: float
    maximum: float
    percentiles: dict[str, float]
    foreground_frac: float
    empty_frac: float
    saturated_frac: float
    not_finite: int
    histogram: tuple[Float[np.ndarray, " bins"], Float[np.ndarray, " edges"]]

    def rule(self) -> str:
        """The threshold and where it comes from, in a line."""
        return (
            f"foreground is above {self.threshold:.6g}: background {self.background:.6g} + {DEVIATIONS:g} x noise "
            f"{self.noise:.4g} (median and robust deviation of the darkest tenth of the sampled blocks)"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class CoarseMap:
    """A volume reduced to cells: the mean and the maximum of each.

    Attributes:
        cell: ZYX voxels of the volume that one cell covers.
        covers: whether each cell has been seen in full or through the pyramid, not only at one block.
        source: in words, where it is from.
    """

    mean: Float[np.ndarray, "z y x"]
    maximum: Float[np.ndarray, "z y x"]
    cell: tuple[float, float, float]
    covers: bool
    source: str


def survey(volume: LazyVolume) -> Survey:
    """Look at blocks that are spread evenly over a volume, one at a random place in each cell of a grid.

    Raises:
        VolumeError: voxels cannot be read, or none of them is finite.
    """
    boxes = sample_boxes(volume.shape, blocks=BLOCKS, side=BLOCK_SIDE)
    blocks = []
    not_finite = 0
    for box in boxes:
        voxels = volume.read(box).ravel()
        if voxels.dtype.kind == "f":
            finite = np.isfinite(voxels)
            not_finite += int(voxels.size - finite.sum())
            voxels = voxels[finite]
        if voxels.size:
            blocks.append(voxels)
    if not blocks:
        raise VolumeError(volume.path, "all voxels that were looked at are NaN or Inf", "export it again")
    varied = [block for block in blocks if block.min() < block.max()] or blocks
    varied.sort(key=lambda block: float(block.mean(dtype=np.float64)))
    dark = np.concatenate(varied[: max(1, round(DARKEST_FRAC * len(varied)))])
    background = float(np.median(dark))
    noise = MAD_TO_SIGMA * float(np.median(np.abs(dark.astype(np.float64) - background)))
    voxels = np.concatenate(blocks)
    step = 1.0 if voxels.dtype.kind in "iu" else 0.0
    threshold = background + max(DEVIATIONS * noise, step)
    values = np.percentile(voxels, PERCENTILES)
    return Survey(
        sampled=voxels.size,
        exact=voxels.size + not_finite == math.prod(volume.shape),
        background=background,
        noise=noise,
        threshold=threshold,
        minimum=float(voxels.min()),
        maximum=float(voxels.max()),
        percentiles={f"{q:g}": float(value) for q, value in zip(PERCENTILES, values, strict=True)},
        foreground_frac=float((voxels > threshold).mean()),
        empty_frac=float(np.mean([(block > threshold).mean() < 1e-3 for block in blocks])),
        saturated_frac=_saturated(voxels),
        not_finite=not_finite,
        histogram=_histogram(voxels),
    )


def coarse_map(volume: LazyVolume, *, time: int | None = None) -> CoarseMap:
    """Reduce a volume to at most 256 cells along each axis, by the cheapest way that there is.

    Args:
        volume: all of a level, or a box of it.
        time: as it was opened, to open coarser levels.
    """
    level = _coarser(volume, time=time)
    if level is not None:
        mean, maximum = _reduced(level)
        source = f"level {level.level} of the pyramid"
        covers = True
    elif math.prod(volume.shape) <= WHOLE_VOXELS:
        mean, maximum = _reduced(volume)
        source, covers = "all voxels", True
    else:
        grid = _grid(volume.shape, 8 * BLOCKS)
        boxes = sample_boxes(volume.shape, blocks=8 * BLOCKS, side=BLOCK_SIDE // 2)
        stack = [(block.mean(dtype=np.float64), block.max()) for block in map(volume.read, boxes)]
        mean, maximum = (np.array(part, np.float32).reshape(grid) for part in zip(*stack, strict=True))
        source, covers = f"{len(boxes)} blocks of {BLOCK_SIDE // 2} voxels a side", False
    z, y, x = (size / cells for size, cells in zip(volume.shape, mean.shape, strict=True))
    return CoarseMap(mean, maximum, (z, y, x), covers, source)


def sample_boxes(shape: Voxels, *, blocks: int, side: int) -> list[Box]:
    """Place a block in each cell of a grid of about `blocks` cells, in the grid's order; the same for the same shape.

    Cells that are smaller than a block are their own blocks, so that few voxels are seen all, each once.
    """
    rng = np.random.default_rng(shape)
    grid = _grid(shape, blocks)
    edges = [np.linspace(0, size, cells + 1).round().astype(int) for size, cells in zip(shape, grid, strict=True)]
    boxes = []
    for place in itertools.product(*map(range, grid)):
        box = []
        for along, number in zip(edges, place, strict=True):
            start, stop = int(along[number]), int(along[number + 1])
            length = min(side, stop - start)
            # What is left over in a cell of a small volume is seen too.
            if stop - start <= side * 3 // 2:
                length = stop - start
            start += int(rng.integers(0, stop - start - length + 1))
            box.append(slice(start, start + length))
        boxes.append((box[0], box[1], box[2]))
    return boxes


def _grid(shape: Voxels, blocks: int) -> Voxels:
    """Cells along each axis, about as many in all as wanted and about as long along all axes."""
    cell = max(BLOCK_SIDE / 2, (math.prod(shape) / blocks) ** (1 / 3))
    z, y, x = (max(1, min(math.ceil(size / cell), size)) for size in shape)
    return z, y, x


def _histogram(voxels: Shaped[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    low, high = (float(value) for value in np.percentile(voxels, (0.01, 99.99)))
    bins = BINS if voxels.dtype.kind == "f" else max(1, min(BINS, round(high - low)))
    shares, edges = np.histogram(voxels, bins=bins, range=(low, max(high, low + 1e-6)))
    return shares / voxels.size, edges


def _saturated(voxels: Shaped[np.ndarray, " n"]) -> float:
    if voxels.dtype.kind not in "iu":
        return 0.0
    full = float((voxels == np.iinfo(voxels.dtype).max).mean())
    # A camera of 12 bits saturates at 4095, which nothing but the number of such voxels tells.
    found = float((voxels == voxels.max()).mean())
    return found if not full and found >= 1e-3 and voxels.min() < voxels.max() else full


def _coarser(volume: LazyVolume, *, time: int | None) -> LazyVolume | None:
    """The finest coarser level that is small enough, cut to the box of the volume; None without one."""
    if volume.level + 1 >= volume.levels:
        return None
    finest = open_volume(volume.path, channel=volume.channel, level=volume.level, time=time)
    for number in range(volume.level + 1, volume.levels):
        whole = open_volume(volume.path, channel=volume.channel, level=number, time=time)
        ends = []
        for start, size, coarse, fine in zip(volume.origin, volume.shape, whole.shape, finest.shape, strict=True):
            first = min(math.floor(start * coarse / fine), coarse - 1)
            ends.append(slice(first, max(first + 1, math.ceil((start + size) * coarse / fine))))
        z, y, x = ends
        if math.prod(one.stop - one.start for one in ends) <= WHOLE_VOXELS:
            return open_volume(volume.path, channel=volume.channel, level=number, time=time, box=(z, y, x))
    return None


def _reduced(volume: LazyVolume) -> tuple[np.ndarray, np.ndarray]:
    """Mean and maximum of cells, read slab by slab along Z."""
    factor = [max(1, math.ceil(size / MAP_SIDE)) for size in volume.shape]
    cells = [math.ceil(size / step) for size, step in zip(volume.shape, factor, strict=True)]
    rows = max(factor[0], volume.chunk[0] // factor[0] * factor[0])
    means, maxima = [], []
    for start in range(0, volume.shape[0], rows):
        slab = volume.read((slice(start, start + rows), slice(None), slice(None))).astype(np.float32)
        slab = np.nan_to_num(slab, nan=0.0, posinf=0.0, neginf=0.0)
        missing = [-size % step for size, step in zip(slab.shape, factor, strict=True)]
        slab = np.pad(slab, [(0, amount) for amount in missing], mode="edge")
        split = slab.reshape(-1, factor[0], cells[1], factor[1], cells[2], factor[2])
        means.append(split.mean(axis=(1, 3, 5)))
        maxima.append(split.max(axis=(1, 3, 5)))
    return np.concatenate(means), np.concatenate(maxima)
