"""Learning curves: the main metric over the number of annotated patches, a panel for each type, as PNG."""

import pathlib

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lsmfm_jax.experiment.results import METRICS, Results, Row
from lsmfm_jax.experiment.tables import TITLES
from lsmfm_jax.files import replacing


def curves_path(folder: pathlib.Path, task: str) -> pathlib.Path:
    """Where a task's curves are drawn."""
    return folder / f"curves_{task}.png"


def draw_curves(results: Results, folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws the curves of each task that has figures of several sizes; gives their files."""
    drawn = []
    for task in dict.fromkeys(row.task for row in results.rows):
        rows = [row for row in results.rows if row.task == task]
        if len({row.size for row in rows}) < 2:
            continue
        figure = _figure(task, rows)
        FigureCanvasAgg(figure)
        with replacing(curves_path(folder, task)) as temporary:
            figure.savefig(temporary, dpi=130, format="png")
        drawn.append(curves_path(folder, task))
    return drawn


def _figure(task: str, rows: list[Row]) -> Figure:
    groups = list(dict.fromkeys(row.group for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    sizes = sorted({row.size for row in rows})
    metric = METRICS[task][0]
    figure = Figure(figsize=(1.5 + 3.2 * len(groups), 3.6), layout="constrained")
    for axis, group in zip(figure.subplots(1, len(groups), squeeze=False, sharey=True)[0], groups, strict=True):
        for number, method in enumerate(methods):
            mine = sorted((row for row in rows if (row.group, row.method) == (group, method)), key=lambda row: row.size)
            if not mine:
                continue
            means = [row.means[metric] for row in mine]
            # Beside each other, so that intervals of methods that are alike can be told apart.
            shift = (number - 0.5 * (len(methods) - 1)) * 0.012 * (sizes[-1] - sizes[0])
            known = [(one.value - one.low, one.high - one.value) if np.isfinite(one.low) else (0, 0) for one in means]
            # A percentile interval need not hold the mean, and a bar has no negative length.
            axis.errorbar(
                [row.size + shift for row in mine],
                [one.value for one in means],
                yerr=np.maximum(0, np.array(known).T),
                marker="osD^vPX*"[number % 8],
                markersize=4,
                linewidth=1.3,
                elinewidth=0.8,
                capsize=2,
                label=method,
            )
        axis.set_title(group, fontsize=10)
        axis.set_xticks(sizes)
        axis.set_xlabel("annotated patches", fontsize=9)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
    figure.axes[0].set_ylabel(f"{TITLES[metric]} (95 % interval)", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    return figure
