"""Pictures of pretraining: what went in, what was hidden, and what came back."""

import pathlib
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lsmfm_jax.files import replacing

# Hidden voxels are zero to the network; here they have a colour, to tell them from dark tissue.
_GRAY = colormaps["gray"].with_extremes(bad="#35506b")
_MAGMA = colormaps["magma"]
COLUMNS = ("input", "masked input", "reconstruction", "hidden voxels filled in", "absolute error")


def draw_reconstructions(arrays: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the middle slice of each patch: input, masked input, reconstruction, filled in, error.

    Args:
        arrays: `image` and `reconstruction` (B, Z, Y, X), intensities in [0, 1]; `mask` of the same shape, True
            where hidden; `weight` (B,), 0 for rows that only fill up a batch.
        path: PNG to write.
    """
    rows = [row for row in range(len(arrays["image"])) if arrays["weight"][row] > 0]
    figure = Figure(figsize=(2.1 * len(COLUMNS), 2.1 * len(rows) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(COLUMNS), squeeze=False)
    for line, row in enumerate(rows):
        image, mask = arrays["image"][row], arrays["mask"][row]
        middle = _slice_with_hidden_voxels(mask)
        image, mask = image[middle], mask[middle]
        prediction = np.clip(arrays["reconstruction"][row][middle], 0.0, 1.0)
        filled = np.where(mask, prediction, image)
        error = np.where(mask, np.abs(filled - image), 0.0)
        panels = (image, np.where(mask, np.nan, image), prediction, filled, error)
        for column, panel in enumerate(panels):
            axis = axes[line][column]
            axis.imshow(panel, cmap=_MAGMA if column == 4 else _GRAY, vmin=0.0, vmax=1.0, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if line == 0:
                axis.set_title(COLUMNS[column], fontsize=9)
        axes[line][0].set_ylabel(f"z = {middle}", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _slice_with_hidden_voxels(mask: np.ndarray) -> int:
    """The slice nearest the middle that hides about as much as the patch does on average."""
    depth = len(mask)
    share = mask.reshape(depth, -1).mean(axis=1)
    typical = share >= 0.8 * mask.mean()
    order = sorted(range(depth), key=lambda z: (not typical[z], abs(z - depth // 2)))
    return order[0]
