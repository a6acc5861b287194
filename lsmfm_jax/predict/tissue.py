"""A mask of the tissue, of the size of the volume or coarser, that limits where is predicted."""

import math

import numpy as np
from jaxtyping import Bool, Int

from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.shards import sample_checksum
from lsmfm_jax.predict.statistics import CELL, Box
from lsmfm_jax.volumes.lazy import LazyVolume


class TissueMask:
    """A volume above zero where there is tissue, laid over another by stretching it to its shape.

    Args:
        mask: of the same extent as the volume, with as many voxels or fewer along each axis.
        shape: ZYX of the volume.

    Raises:
        PredictionError: the mask has more voxels than the volume along an axis.
    """

    def __init__(self, mask: LazyVolume, shape: tuple[int, int, int]) -> None:
        if any(small > large for small, large in zip(mask.shape, shape, strict=True)):
            raise PredictionError(
                f"--mask {mask.path}: its shape {tuple(mask.shape)} is larger than that of the volume, {tuple(shape)} "
                "(ZYX); a mask has the volume's voxels or coarser ones"
            )
        self._mask, self._shape = mask, shape
        self._places = [
            (np.arange(size) * small + small // 2) // size for small, size in zip(mask.shape, shape, strict=True)
        ]

    def checksum(self) -> str:
        """Of its shape and of a few of its boxes."""
        return f"{'x'.join(map(str, self._mask.shape))}-{sample_checksum(self._mask)}"

    def read(self, box: Box) -> Bool[np.ndarray, "z y x"]:
        """Whether there is tissue in each voxel of a box of the volume."""
        places: list[Int[np.ndarray, " n"]] = [place[one] for place, one in zip(self._places, box, strict=True)]
        z, y, x = (slice(int(place[0]), int(place[-1]) + 1) for place in places)
        coarse = self._mask.read((z, y, x)) > 0
        return coarse[np.ix_(*(place - place[0] for place in places))]

    def cells(self) -> Bool[np.ndarray, "cz cy cx"]:
        """Whether each cell of the volume has a voxel with tissue."""
        ends = [
            [(int(place[start]), int(place[min(start + CELL, size) - 1]) + 1) for start in range(0, size, CELL)]
            for place, size in zip(self._places, self._shape, strict=True)
        ]
        found = np.zeros([math.ceil(size / CELL) for size in self._shape], bool)
        for z, (first, last) in enumerate(ends[0]):
            planes = (self._mask.read((slice(first, last), slice(None), slice(None))) > 0).any(axis=0)
            rows = np.stack([planes[a:b].any(axis=0) for a, b in ends[1]])
            found[z] = np.stack([rows[:, a:b].any(axis=1) for a, b in ends[2]], axis=1)
        return found
