"""Connected components of a mask of any size: block by block, then joined where blocks meet.

Blocks are labelled one after the other in raster order, each voxel of a block's near faces is compared with its
neighbours in the blocks before it, and the links are resolved at once by a union over all components. The result is
that of labelling the whole mask, whatever the blocks. Facts of components are gathered on the way and kept on disk.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import cc3d
import numpy as np
from jaxtyping import Bool, Int, Integer, UInt64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lsmfm_jax.predict.objects import COMPONENT, component_facts

Box = tuple[slice, slice, slice]
# Labels 1 to N of a block, and a number for each that is the same in all blocks for one object, or None.
Labelled = tuple[np.ndarray, UInt64[np.ndarray, " n"] | None]
LabelBlock = Callable[[Box], Labelled]

# Neighbours of a voxel in the plane before it, by connectivity: how many of the other two coordinates may differ.
_MOST_MOVED = {6: 0, 18: 1, 26: 2}
_FACTS, _LINKS = "components.bin", "links.bin"


@runtime_checkable
class Boxes(Protocol):
    """A volume that is read by boxes."""

    shape: Any

    def read(self, box: Box) -> np.ndarray:
        """Voxels of a box, ZYX."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Components:
    """Components of all blocks, numbered from 0 in the order of the blocks.

    Attributes:
        facts: of each, `COMPONENT`; a file.
        offsets: for each block, by its corner: the number of its first component, and how many it has.
        group: for each component, the object that it is a part of, from 0.
        groups: how many objects there are.
    """

    facts: np.ndarray
    offsets: dict[tuple[int, int, int], tuple[int, int]]
    group: Int[np.ndarray, " n"]
    groups: int


def plain_components(mask: Boxes, *, connectivity: int) -> LabelBlock:
    """Labels a block by its connected components."""

    def label(box: Box) -> Labelled:
        block = mask.read(box) > 0
        return cc3d.connected_components(np.ascontiguousarray(block), connectivity=connectivity), None

    return label


def find_components(
    label: LabelBlock,
    shape: tuple[int, int, int],
    *,
    side: tuple[int, int, int],
    connectivity: int,
    scratch: pathlib.Path,
    is_empty: Callable[[Box], bool] = lambda box: False,
    intensity: Boxes | None = None,
    probability: Boxes | None = None,
    progress: Callable[[int], None] = lambda voxels: None,
) -> Components:
    """Labels all blocks and joins what belongs together.

    Args:
        label: gives the labels of a block; called once for each.
        shape: ZYX of the volume.
        side: ZYX of a block.
        connectivity: 6, 18 or 26; how voxels of two blocks are neighbours.
        scratch: an empty folder for what does not fit into memory.
        is_empty: whether a block is known to have no object.
        intensity, probability: volumes whose means and maxima over components are wanted.
        progress: is told how many voxels more are done.
    """
    seams = _Seams(shape, side, connectivity, scratch)
    offsets: dict[tuple[int, int, int], tuple[int, int]] = {}
    total, keys = 0, []
    with (scratch / _FACTS).open("wb") as facts, (scratch / _LINKS).open("wb") as links:
        for box in blocks(shape, side):
            corner = (box[0].start, box[1].start, box[2].start)
            size = tuple(one.stop - one.start for one in box)
            labels, block_keys = (np.zeros(size, np.uint8), None) if is_empty(box) else label(box)
            count = int(labels.max(initial=0))
            if count:
                offsets[corner] = (total, count)
                read = [None if other is None else other.read(box) for other in (intensity, probability)]
                component_facts(
                    labels, count, corner=corner, shape=shape, intensity=read[0], probability=read[1]
                ).tofile(facts)
            if block_keys is None:
                seams.add(box, labels, total).tofile(links)
            else:
                keys.append(block_keys)
            total += count
            progress(labels.size)
    if total == 0:
        return Components(np.zeros(0, COMPONENT), offsets, np.zeros(0, np.int64), 0)
    facts_of = np.memmap(scratch / _FACTS, COMPONENT, mode="r")
    if keys:
        found, group = np.unique(np.concatenate(keys), return_inverse=True)
        return Components(facts_of, offsets, group.astype(np.int64), len(found))
    pairs = np.fromfile(scratch / _LINKS, np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(total, total))
    groups, group = connected_components(graph, directed=False)
    return Components(facts_of, offsets, group.astype(np.int64), int(groups))


def blocks(shape: Sequence[int], side: Sequence[int]) -> Iterator[Box]:
    """Boxes that cover a volume, in raster order."""
    for corner in itertools.product(*(range(0, size, length) for size, length in zip(shape, side, strict=True))):
        ends = (min(start + length, size) for start, length, size in zip(corner, side, shape, strict=True))
        z, y, x = (slice(start, end) for start, end in zip(corner, ends, strict=True))
        yield z, y, x


class _Seams:
    """The labelled planes behind which blocks are still to come; numbers are those of components, plus 1.

    Two neighbours in different blocks lie on two sides of a plane between blocks. The later of the two blocks finds
    them: across Z with the last plane of the whole layer of blocks before, across Y with that of the row before,
    across X with that of the block before. What lies across a corner is neighbours across one of the planes too.
    """

    def __init__(
        self, shape: tuple[int, int, int], side: tuple[int, int, int], connectivity: int, scratch: pathlib.Path
    ) -> None:
        most = _MOST_MOVED[connectivity]
        self._moves = [move for move in itertools.product((-1, 0, 1), repeat=2) if sum(map(abs, move)) <= most]
        self._shape, self._side = shape, side
        # A voxel more on each side, so that a shifted plane needs no special case at the border.
        plane, row = (shape[1] + 2, shape[2] + 2), (side[0] + 2, shape[2] + 2)
        # Planes of whole layers may be large: files, which the system keeps in memory where there is room.
        self._layers = [
            np.memmap(scratch / f"layer{number}.bin", np.int64, mode="w+", shape=plane) for number in (0, 1)
        ]
        self._rows = [np.zeros(row, np.int64) for _ in range(2)]
        self._column = np.zeros((side[0] + 2, side[1] + 2), np.int64)

    def add(self, box: Box, labels: Integer[np.ndarray, "z y x"], offset: int) -> Int[np.ndarray, "n 2"]:
        """Pairs of components, of this block and of ones before it, that touch; blocks come in raster order."""
        z, y, x = box
        if y.start == 0 and x.start == 0:
            self._layers.reverse()
            self._rows[1][:] = 0
        if x.start == 0:
            self._rows.reverse()
            self._rows[1][:] = 0
            self._column[:] = 0
        depth, height, _ = labels.shape
        found = []
        if z.start:
            found.append(self._links(labels[0], self._layers[0][y.start : y.stop + 2, x.start : x.stop + 2], offset))
        if y.start:
            found.append(self._links(labels[:, 0], self._rows[0][: depth + 2, x.start : x.stop + 2], offset))
        if x.start:
            found.append(self._links(labels[:, :, 0], self._column[: depth + 2, : height + 2], offset))
        self._layers[1][y.start + 1 : y.stop + 1, x.start + 1 : x.stop + 1] = _numbered(labels[-1], offset)
        self._rows[1][1 : depth + 1, x.start + 1 : x.stop + 1] = _numbered(labels[:, -1], offset)
        self._column[:] = 0
        self._column[1 : depth + 1, 1 : height + 1] = _numbered(labels[:, :, -1], offset)
        return np.concatenate([np.zeros((0, 2), np.int64), *found])

    def _links(
        self, near: Integer[np.ndarray, "a b"], before: Int[np.ndarray, "c d"], offset: int
    ) -> Int[np.ndarray, "n 2"]:
        if not near.any() or not before.any():
            return np.zeros((0, 2), np.int64)
        mine = _numbered(near, offset)
        pairs = []
        for a, b in self._moves:
            other = before[1 + a : 1 + a + near.shape[0], 1 + b : 1 + b + near.shape[1]]
            both: Bool[np.ndarray, "a b"] = (mine > 0) & (other > 0)
            pairs.append(np.stack([mine[both], other[both]], axis=1) - 1)
        return np.unique(np.concatenate(pairs), axis=0)


def _numbered(labels: Integer[np.ndarray, "a b"], offset: int) -> Int[np.ndarray, "a b"]:
    return np.where(labels > 0, labels.astype(np.int64) + offset, 0)
