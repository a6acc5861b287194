"""The main metric of each task as a picture, a panel for each type: over the patches to learn from, or by method."""

import pathlib

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lsmfm_jax.experiment.results import METRICS, Results, Row
from lsmfm_jax.experiment.tables import TITLES
from lsmfm_jax.files import replacing
from lsmfm_jax.metrics.intervals import Interval

MARKERS = "osD^vPX*"


def draw_figures(results: Results, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Draws `figure_<task>.png` for each task that has figures; gives the files by task.

    With several sizes it has learning curves (paper, Figure 3a and c), with one size a dot for each method.
    """
    drawn = {}
    for task in dict.fromkeys(row.task for row in results.rows):
        rows = [row for row in results.rows if row.task == task]
        figure = _curves(task, rows) if len({row.size for row in rows}) > 1 else _dots(task, rows)
        FigureCanvasAgg(figure)
        path = folder / f"figure_{task}.png"
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=130, format="png")
        drawn[task] = path
    return drawn


def _curves(task: str, rows: list[Row]) -> Figure:
    groups, methods = _names(rows)
    sizes = sorted({row.size for row in rows})
    metric = METRICS[task][0]
    # The legend beside the panels takes a panel's width.
    figure = Figure(figsize=(3.4 + 3.2 * len(groups), 3.6), layout="constrained")
    for axis, group in zip(figure.subplots(1, len(groups), squeeze=False, sharey=True)[0], groups, strict=True):
        for number, method in enumerate(methods):
            mine = sorted((row for row in rows if (row.group, row.method) == (group, method)), key=lambda row: row.size)
            if not mine:
                continue
            # Beside each other, so that intervals of methods that are alike can be told apart.
            shift = (number - 0.5 * (len(methods) - 1)) * 0.012 * (sizes[-1] - sizes[0])
            axis.errorbar(
                [row.size + shift for row in mine],
                [row.means[metric].value for row in mine],
                yerr=_bars([row.means[metric] for row in mine]),
                marker=MARKERS[number % len(MARKERS)],
                markersize=4,
                linewidth=1.3,
                elinewidth=0.8,
                capsize=2,
                label=method,
            )
        axis.set_xticks(sizes)
        axis.set_xlabel("annotated patches", fontsize=9)
        _finish(axis, group)
    figure.axes[0].set_ylabel(f"{TITLES[metric]} (95 % interval)", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _dots(task: str, rows: list[Row]) -> Figure:
    groups, methods = _names(rows)
    metric = METRICS[task][0]
    figure = Figure(figsize=(1.8 + 2.6 * len(groups), 0.9 + 0.28 * len(methods)), layout="constrained")
    for axis, group in zip(figure.subplots(1, len(groups), squeeze=False, sharey=True)[0], groups, strict=True):
        for row in (row for row in rows if row.group == group):
            mean, place = row.means[metric], len(methods) - 1 - methods.index(row.method)
            axis.errorbar([mean.value], [place], xerr=_bars([mean]), fmt="o", color="C0", markersize=5, capsize=3)
        axis.set_yticks(range(len(methods)), methods[::-1])
        axis.set_ylim(-0.6, len(methods) - 0.4)
        _finish(axis, group)
    figure.supxlabel(f"{TITLES[metric]} (95 % interval), {rows[0].size} annotated patches", fontsize=9)
    return figure


def _names(rows: list[Row]) -> tuple[list[str], list[str]]:
    """Types and methods in their order of appearance."""
    return list(dict.fromkeys(row.group for row in rows)), list(dict.fromkeys(row.method for row in rows))


def _bars(means: list[Interval]) -> np.ndarray:
    """Lengths below and above; 0 where too little was there to resample."""
    known = [(one.value - one.low, one.high - one.value) if np.isfinite(one.low) else (0, 0) for one in means]
    # A percentile interval need not hold the mean, and a bar has no negative length.
    return np.maximum(0, np.array(known).T)


def _finish(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)
