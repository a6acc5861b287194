"""Which parts of a volume are not worth predicting."""

import numpy as np
from jaxtyping import Bool, Num

from lsmfm_jax.predict.statistics import CELL, VolumeStatistics


def wanted_cells(statistics: VolumeStatistics, below: float | None) -> Bool[np.ndarray, "cz cy cx"]:
    """Whether each cell of a volume has a voxel above a value; None: all cells are wanted."""
    return np.ones(statistics.cell_maxima.shape, bool) if below is None else statistics.cell_maxima > below


def zero_outside(
    values: Num[np.ndarray, "z y x"],
    wanted: Bool[np.ndarray, "cz cy cx"],
    tissue: Bool[np.ndarray, "z y x"] | None,
    *,
    first: tuple[int, int, int] = (0, 0, 0),
) -> None:
    """Sets the voxels of cells that are not wanted, and those outside of the tissue, to zero, in place.

    Windows that reach into such cells have computed a part of them; leaving it would draw the grid of windows.

    Args:
        values: of a box of the volume.
        wanted: of the cells that the box touches.
        tissue: of the voxels of the box; None: all are.
        first: ZYX place of the first voxel within its cell.
    """
    for cell in np.argwhere(~wanted):
        starts = [int(number) * CELL - start for number, start in zip(cell, first, strict=True)]
        values[tuple(slice(max(0, start), start + CELL) for start in starts)] = 0
    if tissue is not None:
        values[~tissue] = 0
