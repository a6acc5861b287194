"""The table of an evaluation: means with their intervals, as CSV and as text."""

import csv
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lsmfm_jax.data.mask_folders import MaskFolderError
from lsmfm_jax.files import replacing
from lsmfm_jax.metrics.intervals import Interval, bootstrap_mean

EMPTY = "empty prediction"
ROLLED_VOXELS = 24
ROLLED = f"truth rolled by {ROLLED_VOXELS} voxels"
_FIRST_COLUMNS = ("row", "method", "patch", "volume")


class PatchScores(NamedTuple):
    """Scores of one method on one patch."""

    method: str
    patch: str
    volume: str
    scores: dict[str, float]


class Summary(NamedTuple):
    """Mean of one metric of one method, with intervals over patches and over volumes."""

    method: str
    metric: str
    over_patches: Interval
    over_volumes: Interval


class Evaluation(NamedTuple):
    """What `evaluate_folders` found; `settings` and `notes` are part of any honest copy of the numbers."""

    rows: list[PatchScores]
    summaries: list[Summary]
    settings: dict[str, str]
    notes: list[str]


def check_out(path: str | pathlib.Path) -> None:
    """Refuses to replace anything but an earlier table.

    Raises:
        MaskFolderError: there is something else under this name.
    """
    path = pathlib.Path(path)
    if not path.exists() and not path.is_symlink():
        return
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(100)
    if not start.startswith(",".join(_FIRST_COLUMNS).encode()):
        what = "a folder" if path.is_dir() else "a file that is no table of lsmfm evaluate"
        raise MaskFolderError(f"--out {path}: {what} is there already, and is not replaced; name another file")


def summarise(rows: Sequence[PatchScores], *, seed: int = 0) -> list[Summary]:
    """Mean of each metric of each method, in the order of the rows."""
    summaries = []
    for method in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == method]
        volumes = [row.volume for row in mine]
        for metric in mine[0].scores:
            values = np.array([row.scores[metric] for row in mine])
            over_patches = bootstrap_mean(values, seed=seed)
            over_volumes = bootstrap_mean(values, groups=volumes, seed=seed)
            summaries.append(Summary(method, metric, over_patches, over_volumes))
    return summaries


def write_csv(result: Evaluation, path: str | pathlib.Path) -> None:
    """Write a row per patch and method, then per method the mean and the limits of both intervals.

    The column `row` says which: `patch`, `mean`, `patches_low`, `patches_high`, `volumes_low` or
    `volumes_high`.
    """
    path = pathlib.Path(path)
    metrics = list(result.rows[0].scores)
    settings = list(result.settings.values())
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        _write_rows(csv.writer(file), result, metrics, settings)


def _write_rows(writer: Any, result: Evaluation, metrics: list[str], settings: list[str]) -> None:
    writer.writerow([*_FIRST_COLUMNS, *metrics, *result.settings])
    for row in result.rows:
        values = [_cell(row.scores[metric]) for metric in metrics]
        writer.writerow(["patch", row.method, row.patch, row.volume, *values, *settings])
    for method in dict.fromkeys(row.method for row in result.rows):
        mine = [s for s in result.summaries if s.method == method]
        for name, values in {
            "mean": [s.over_patches.value for s in mine],
            "patches_low": [s.over_patches.low for s in mine],
            "patches_high": [s.over_patches.high for s in mine],
            "volumes_low": [s.over_volumes.low for s in mine],
            "volumes_high": [s.over_volumes.high for s in mine],
        }.items():
            writer.writerow([name, method, "", "", *map(_cell, values), *settings])


def _cell(value: float) -> str:
    """A number for the CSV; nothing where there is none, as with the limits of too few volumes."""
    return "" if math.isnan(value) else f"{value:.6g}"


def format_table(result: Evaluation) -> str:
    """The summary as text: a line per metric, a column per method, the intervals beside the means."""
    methods = list(dict.fromkeys(s.method for s in result.summaries))
    patches, volumes = result.summaries[0].over_patches.units, result.summaries[0].over_volumes.units
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.settings.items())
    header = [
        f"{patches} patches of {volumes} volumes; {settings}",
        "mean [95 % interval over patches] [over volumes]; '-' where there are fewer than 3 to resample",
    ]
    table = [["", *methods]]
    for metric in dict.fromkeys(s.metric for s in result.summaries):
        of_metric = {s.method: s for s in result.summaries if s.metric == metric}
        table.append([metric, *(_interval_text(of_metric[method]) for method in methods)])
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join([*header, *(line.rstrip() for line in lines), *result.notes])


def _interval_text(summary: Summary) -> str:
    limits = [
        "[-]" if math.isnan(interval.low) else f"[{interval.low:.3f}, {interval.high:.3f}]"
        for interval in (summary.over_patches, summary.over_volumes)
    ]
    return " ".join([f"{summary.over_patches.value:.3f}", *limits])
