"""Touching cells cut apart: a watershed on the distance to the background, block by block.

Each block is seen with a margin. A cell is known by its middle, the voxel that is farthest from the background in
its neighbourhood: its number is that voxel's place in the whole volume, so two blocks that both see the middle call
the cell alike, and nothing has to be joined afterwards. This holds for cells that are smaller than the margin.
"""

import math

import cc3d
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from skimage.segmentation import watershed

from lsmfm_jax.predict.instances import Box, Boxes, LabelBlock, Labelled

# The margin, in least distances of two middles; and its limits in voxels.
MARGIN = 4.0
LEAST_MARGIN, MOST_MARGIN = 8, 64
_DIMENSIONS = {6: 1, 18: 2, 26: 3}


def split_components(
    mask: Boxes, *, connectivity: int, voxel_size_um: tuple[float, float, float] | None, distance_um: float
) -> LabelBlock:
    """Labels a block by cells, of which several may be in one connected component.

    Args:
        mask: above 0 where there are cells.
        connectivity: 6, 18 or 26.
        voxel_size_um: ZYX; None: voxels are counted instead, as cubes.
        distance_um: least distance between the middles of two cells, along an axis.
    """
    size = voxel_size_um or (1.0, 1.0, 1.0)
    reach = tuple(max(1, round(distance_um / side)) for side in size)
    margin = [min(MOST_MARGIN, max(LEAST_MARGIN, math.ceil(MARGIN * distance_um / side))) for side in size]
    shape = tuple(mask.shape)

    def label(box: Box) -> Labelled:
        seen = tuple(
            slice(max(0, one.start - more), min(length, one.stop + more))
            for one, more, length in zip(box, margin, shape, strict=True)
        )
        inside = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, seen, strict=True))
        block = mask.read(seen) > 0
        if not block[inside].any():
            return np.zeros(block[inside].shape, np.int32), np.zeros(0, np.uint64)
        distance = ndimage.distance_transform_edt(block, sampling=size)
        middles = _middles(block, distance, reach=reach, connectivity=connectivity)
        markers = np.zeros(block.shape, np.int32)
        markers.reshape(-1)[middles] = np.arange(1, len(middles) + 1)
        structure = ndimage.generate_binary_structure(3, _DIMENSIONS[connectivity])
        cells = watershed(-distance, markers, mask=block, connectivity=structure)[inside]
        found, labels = np.unique(cells, return_inverse=True)
        if found[0] != 0:
            found, labels = np.concatenate([[0], found]), labels + 1
        z, y, x = (
            along[found[1:] - 1].astype(np.uint64) + np.uint64(one.start)
            for along, one in zip(np.unravel_index(middles, block.shape), seen, strict=True)
        )
        keys = (z * np.uint64(shape[1]) + y) * np.uint64(shape[2]) + x
        return labels.reshape(cells.shape).astype(np.int32), keys

    return label


def _middles(
    block: Bool[np.ndarray, "z y x"],
    distance: Float[np.ndarray, "z y x"],
    *,
    reach: tuple[int, ...],
    connectivity: int,
) -> Int[np.ndarray, " n"]:
    """Places of voxels that are farthest from the background within `reach`; of equal neighbours, the first.

    A component of which no voxel is (a larger one is near) has its own farthest voxel.
    """
    largest = ndimage.maximum_filter(distance, size=tuple(2 * side + 1 for side in reach))
    tops = cc3d.connected_components(np.ascontiguousarray(block & (distance == largest)), connectivity=26)
    places = np.flatnonzero(tops)
    _, first = np.unique(tops.reshape(-1)[places], return_index=True)
    chosen = places[first]
    components = cc3d.connected_components(np.ascontiguousarray(block), connectivity=connectivity)
    flat = components.reshape(-1)
    without = np.setdiff1d(np.arange(1, int(components.max()) + 1), flat[chosen])
    if len(without):
        inside = np.flatnonzero(np.isin(flat, without))
        order = np.lexsort((inside, -distance.reshape(-1)[inside], flat[inside]))
        _, best = np.unique(flat[inside][order], return_index=True)
        chosen = np.concatenate([chosen, inside[order][best]])
    return np.sort(chosen)
