"""Whole volumes as small pictures: projections along the three axes, with boxes drawn, and a histogram.

And which slice of a mask shows most of it, for pictures of patches.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lsmfm_jax.volumes.formats import Size
from lsmfm_jax.volumes.lazy import Voxels
from lsmfm_jax.volumes.survey import CoarseMap, Survey

BACKGROUND, INK, FAINT, MARK = "#101418", "#e8ecf0", "#8a949e", "#ffb454"
SIDE_IN = 3.1


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """One channel's row of a picture.

    Attributes:
        lines: text below the title.
        boxes: corner and size ZYX of each box to draw, in voxels from the map's own corner.
    """

    title: str
    lines: Sequence[str]
    map: CoarseMap
    survey: Survey
    threshold: float
    voxel_size_um: Size | None
    boxes: Sequence[tuple[Voxels, Voxels]] = ()


def fullest_slice(mask: Bool[np.ndarray, "z y x"]) -> int:
    """The slice along Z with the most of a mask; the middle one where there is none."""
    counts = mask.reshape(len(mask), -1).sum(axis=1)
    return int(counts.argmax()) if counts.any() else len(mask) // 2


def draw(panels: Sequence[Panel], png: str | pathlib.Path) -> None:
    """Draw a row for each channel: the largest value along Z, Y and X, then the histogram with the threshold."""
    height = SIDE_IN + 1.0
    figure = Figure(figsize=(4 * SIDE_IN + 1.4, height * len(panels)), facecolor=BACKGROUND, dpi=110)
    FigureCanvasAgg(figure)
    width, total = figure.get_size_inches()
    for number, panel in enumerate(panels):
        top = total - number * height
        figure.text(0.2 / width, (top - 0.3) / total, panel.title, color=INK, fontsize=11, weight="bold")
        for line, text in enumerate(panel.lines[:2]):
            figure.text(0.2 / width, (top - 0.5 - 0.17 * line) / total, text, color=FAINT, fontsize=7.5)
        for column, axis in enumerate("ZYX"):
            place = ((0.4 + column * (SIDE_IN + 0.2)) / width, (top - 0.85 - SIDE_IN) / total)
            axes = figure.add_axes((*place, SIDE_IN / width, SIDE_IN / total))
            _projection(axes, panel, column)
            axes.set_title(f"along {axis}", color=FAINT, fontsize=7, loc="left", pad=2)
        place = ((0.9 + 3 * (SIDE_IN + 0.2)) / width, (top - 0.5 - SIDE_IN) / total)
        _histogram(figure.add_axes((*place, (SIDE_IN - 0.4) / width, (SIDE_IN - 0.6) / total)), panel)
    pathlib.Path(png).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, facecolor=BACKGROUND)


def _projection(axes, panel: Panel, along: int) -> None:
    seen = panel.map.maximum.max(axis=along)
    low, high = np.percentile(seen, (1, 99.7))
    size = [cell * (um if panel.voxel_size_um else 1.0) for cell, um in zip(panel.map.cell, _um(panel), strict=True)]
    up, across = (axis for axis in range(3) if axis != along)
    # In voxels of the volume, so that boxes need no more than their corners.
    extent = (0, seen.shape[1] * panel.map.cell[across], seen.shape[0] * panel.map.cell[up], 0)
    shape = size[up] * panel.map.cell[across] / (size[across] * panel.map.cell[up])
    axes.imshow(seen, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), extent=extent, aspect=shape)
    for corner, length in panel.boxes:
        axes.add_patch(Rectangle((corner[across], corner[up]), length[across], length[up], fill=False, ec=MARK, lw=0.8))
    axes.set_anchor("NW")
    axes.tick_params(colors=FAINT, labelsize=6, length=2)
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _histogram(axes, panel: Panel) -> None:
    shares, edges = panel.survey.histogram
    axes.set_facecolor(BACKGROUND)
    axes.stairs(shares, edges, fill=True, color=FAINT)
    axes.set_yscale("log")
    if edges[0] <= panel.threshold <= edges[-1]:
        axes.axvline(panel.threshold, color=MARK, lw=1)
        axes.text(panel.threshold, 1.02, " foreground", color=MARK, fontsize=6.5, transform=axes.get_xaxis_transform())
    axes.set_xlabel("counts", color=FAINT, fontsize=7)
    axes.set_ylabel("share of sampled voxels", color=FAINT, fontsize=7)
    axes.tick_params(colors=FAINT, labelsize=6)
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _um(panel: Panel) -> Size:
    return panel.voxel_size_um or (1.0, 1.0, 1.0)
