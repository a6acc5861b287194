"""Figures of a prediction against a truth that add up over blocks, for volumes of any size."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt64

from lsmfm_jax.evaluate.settings import Settings
from lsmfm_jax.metrics.detection import detection_scores
from lsmfm_jax.metrics.instances import count_dice_of_counts, match_overlaps, renumber, scores_of_matches
from lsmfm_jax.metrics.segmentation import foreground, scores_of_counts, total_dice_of_counts, whole_labels
from lsmfm_jax.predict.instances import (
    Box,
    Boxes,
    Components,
    LabelBlock,
    Labelled,
    blocks,
    find_components,
    plain_components,
)
from lsmfm_jax.predict.objects import COMPONENT, join

Size = tuple[int, int, int]

# Sides of a block, and how many voxels one has at most where the file keeps large pieces together.
BLOCK_SIDE, BLOCK_VOXELS = 128, 2**24


def block_side(shape: Sequence[int], chunks: Sequence[Sequence[int]]) -> Size:
    """Blocks of about `BLOCK_SIDE` voxels a side, larger where the files' chunks are, so that few are read twice."""
    large = [max(int(chunk[axis]) for chunk in chunks) for axis in range(3)]
    sides = [min(size, max(BLOCK_SIDE // chunk * chunk, chunk)) for size, chunk in zip(shape, large, strict=True)]
    while np.prod(sides) > BLOCK_VOXELS:
        # The axis along which the files are cut most finely.
        axis = min((axis for axis in range(3) if sides[axis] > 1), key=lambda axis: large[axis] / sides[axis])
        sides[axis] = -(-sides[axis] // 2)
    z, y, x = sides
    return z, y, x


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """One side of a comparison: its foreground and its instances, by boxes.

    Attributes:
        volume: its values.
        is_labels: they are numbers of instances; else instances are the connected components.
        threshold: a voxel is foreground at this value and above; None: above 0.5, as of a truth.
        annotated: gives where the voxels of a box count; None for everywhere.
    """

    volume: Boxes
    is_labels: bool
    threshold: float | None = None
    annotated: Callable[[Box], Bool[np.ndarray, "z y x"] | None] = lambda box: None

    @property
    def shape(self) -> Any:
        """ZYX in voxels."""
        return self.volume.shape

    def read(self, box: Box) -> Bool[np.ndarray, "z y x"]:
        """The foreground of a box."""
        values, annotated = self.volume.read(box), self.annotated(box)
        if self.threshold is None:
            mask = values > 0.5
        else:
            mask = foreground(values, labels=self.is_labels, threshold=self.threshold)
        return mask if annotated is None else mask & annotated

    def instances(self, connectivity: int) -> LabelBlock:
        """Labels a block: by the numbers in the file, or by connected components."""
        return self._by_number if self.is_labels else plain_components(self, connectivity=connectivity)

    def _by_number(self, box: Box) -> Labelled:
        values, annotated = whole_labels(self.volume.read(box)), self.annotated(box)
        if annotated is not None:
            values = np.where(annotated, values, np.zeros((), values.dtype))
        if not values.any():
            return np.zeros(values.shape, np.int32), np.zeros(0, np.uint64)
        found = np.unique(values)
        return renumber(values), found[found > 0].astype(np.uint64)


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """The instances of a side that are large enough, and its connected components.

    Attributes:
        label: labels a block, as `components` has it.
        components: of all blocks.
        numbers: for each component, its instance 1 to N, or 0 where that is too small.
        sizes: voxels of the instances 1 to N.
        centroids: mean Z, Y, X of their voxels.
        connected: how many components of any size the mask has, 26-connected.
    """

    label: LabelBlock
    components: Components
    numbers: UInt64[np.ndarray, " c"]
    sizes: Int[np.ndarray, " n"]
    centroids: Float[np.ndarray, "n 3"]
    connected: int


def find_instances(
    side: Side,
    block: Size,
    settings: Settings,
    *,
    scratch: pathlib.Path,
    progress: Callable[[int], None],
    connected: bool = True,
) -> Found:
    """Finds the instances of one side.

    Args:
        side: of the comparison.
        block: ZYX voxels that are read at a time.
        settings: connectivity and smallest instance.
        scratch: a folder for what does not fit into memory.
        progress: is told how many voxels more are done.
        connected: count the connected components as well.
    """
    shape = tuple(side.shape)

    def components_of(label: LabelBlock, connectivity: int) -> Components:
        folder = pathlib.Path(tempfile.mkdtemp(dir=scratch))
        return find_components(label, shape, side=block, connectivity=connectivity, scratch=folder, progress=progress)

    label = side.instances(settings.connectivity)
    parts = components_of(label, settings.connectivity)
    number = parts.groups
    if connected and (side.is_labels or settings.connectivity != 26):
        number = components_of(plain_components(side, connectivity=26), 26).groups
    path = pathlib.Path(tempfile.mkdtemp(dir=scratch)) / "objects.bin"
    objects, numbers = join(parts.facts, parts.group, parts.groups, minimum_voxels=settings.minimum_voxels, path=path)
    sizes = np.asarray(objects["voxels"])
    return Found(label, parts, numbers, sizes, np.asarray(objects["sums"]) / sizes[:, None], number)


def no_instances() -> Found:
    """What is found in an empty volume."""
    components = Components(np.zeros(0, COMPONENT), {}, np.zeros(0, np.int64), 0)

    def label(box: Box) -> Labelled:
        return np.zeros([one.stop - one.start for one in box], np.int32), None

    return Found(label, components, np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros((0, 3)), 0)


@dataclasses.dataclass(eq=False)
class Totals:
    """What adds up over the blocks of two sides: numbers of voxels, and those that pairs of instances share."""

    predicted: int = 0
    true: int = 0
    shared: int = 0
    voxels: int = 0
    pairs: list[Int[np.ndarray, "n 3"]] = dataclasses.field(default_factory=list)

    def overlaps(
        self, predicted: Found, true: Found
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Every pair that shares a voxel, with its Dice, as `metrics.instances.overlaps` has it."""
        rows = np.concatenate([np.zeros((0, 3), np.int64), *self.pairs])
        (left, right), shared = _summed(rows[:, :2], rows[:, 2])
        return left, right, 2.0 * shared / (predicted.sizes[left - 1] + true.sizes[right - 1])


def count(
    prediction: Side, truth: Side, found: tuple[Found, Found], block: Size, *, progress: Callable[[int], None]
) -> Totals:
    """Counts the voxels of both sides and what their instances share."""
    totals = Totals()
    for box in blocks(tuple(truth.shape), block):
        masks, annotated = (prediction.read(box), truth.read(box)), truth.annotated(box)
        predicted, true = (int(np.count_nonzero(mask)) for mask in masks)
        totals.predicted += predicted
        totals.true += true
        totals.voxels += masks[0].size if annotated is None else int(np.count_nonzero(annotated))
        if predicted and true:
            totals.shared += int(np.count_nonzero(masks[0] & masks[1]))
            totals.pairs.append(_pairs(box, *found))
        progress(masks[0].size)
    return totals


def _pairs(box: Box, *found: Found) -> Int[np.ndarray, "n 3"]:
    """Numbers of the instances of both sides that share voxels of a block, and how many."""
    corner = (box[0].start, box[1].start, box[2].start)
    sides = []
    for side in found:
        first, amount = side.components.offsets.get(corner, (0, 0))
        lookup = np.concatenate([np.zeros(1, np.int64), side.numbers[first : first + amount].astype(np.int64)])
        # Labelled again, which gives the same labels.
        sides.append(lookup[side.label(box)[0]] if amount else np.zeros(1, np.int64))
    both = (sides[0] > 0) & (sides[1] > 0)
    if not both.any():
        return np.zeros((0, 3), np.int64)
    pairs = np.stack([side[both] for side in sides], axis=1)
    (left, right), shared = _summed(pairs, np.ones(len(pairs), np.int64))
    return np.stack([left, right, shared], axis=1)


def _summed(
    pairs: Int[np.ndarray, "n 2"], amounts: Int[np.ndarray, " n"]
) -> tuple[tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]], Int[np.ndarray, " m"]]:
    """Each pair once, in their order, and the sum of its amounts."""
    width = int(pairs[:, 1].max(initial=0)) + 1
    keys, which = np.unique(pairs[:, 0] * width + pairs[:, 1], return_inverse=True)
    # Weights are summed in double precision, which counts exactly below 2^53.
    totals = np.bincount(which, weights=amounts, minlength=len(keys)).astype(np.int64)
    return (keys // width, keys % width), totals


def block_scores(totals: Totals, predicted: Found, true: Found, settings: Settings) -> dict[str, float]:
    """The scores of `metrics.segmentation.segmentation_scores` that need no whole volume, under the same names."""
    dice = match_overlaps(*totals.overlaps(predicted, true), match_dice=settings.match_dice)[2]
    match = settings.match
    spacing = tuple(settings.spacing_um) if match["match_in_um"] and settings.spacing_um else (1.0, 1.0, 1.0)
    return {
        **scores_of_counts(totals.predicted, totals.true, totals.shared),
        **scores_of_matches(len(predicted.sizes), len(true.sizes), dice),
        "total_dice_paper": total_dice_of_counts(totals.predicted, totals.true, totals.shared, voxels=totals.voxels),
        "count_dice_paper": count_dice_of_counts(predicted.connected, true.connected),
        **detection_scores(predicted.centroids, true.centroids, distance=match["match_distance"], spacing=spacing),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Rolled:
    """A volume whose voxels are moved along X, round its end, as `numpy.roll` does."""

    volume: Boxes
    by: int

    @property
    def shape(self) -> Any:
        """ZYX in voxels."""
        return self.volume.shape

    def read(self, box: Box) -> Num[np.ndarray, "z y x"] | Bool[np.ndarray, "z y x"]:
        """Voxels of a box, ZYX."""
        width = self.volume.shape[2]
        parts, start, stop = [], box[2].start - self.by, box[2].stop - self.by
        while start < stop:
            first = start % width
            length = min(stop - start, width - first)
            parts.append(self.volume.read((box[0], box[1], slice(first, first + length))))
            start += length
        return np.concatenate(parts, axis=2)
