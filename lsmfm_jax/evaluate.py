"""Judging a folder of masks or label images, from any tool, against a folder of labels.

`evaluate_folders` matches files by name, scores every patch, and writes a table: a row per patch, then for
each method the mean with its intervals over patches and over volumes. For scale, two methods that need no
image stand beside the predictions: an empty mask, and the truth moved by 24 voxels.
"""

import csv
import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num

from lsmfm_jax.data.mask_folders import (
    KINDS,
    MaskFolderError,
    MaskPair,
    kind_of,
    masks_in,
    pair_masks,
    read_pair,
    volume_of,
)
from lsmfm_jax.metrics.instances import CONNECTIVITIES
from lsmfm_jax.metrics.intervals import Interval, bootstrap_mean
from lsmfm_jax.metrics.segmentation import segmentation_scores

EMPTY = "empty prediction"
ROLLED_VOXELS = 24
ROLLED = f"truth rolled by {ROLLED_VOXELS} voxels"

Volume = Num[np.ndarray, "z y x"]


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


def evaluate_folders(
    pred_dir: str | pathlib.Path,
    label_dir: str | pathlib.Path,
    out_csv: str | pathlib.Path,
    *,
    kind: str = "auto",
    label_kind: str = "auto",
    threshold: float = 0.5,
    connectivity: int = 26,
    minimum_voxels: int = 1,
    match_dice: float = 0.3,
    spacing_um: tuple[float, float, float] | None = None,
    volume_pattern: str | None = None,
    method: str = "prediction",
    seed: int = 0,
) -> Evaluation:
    """Judge the masks or label images of a folder against the labels of another, and write a CSV.

    Files may be NIfTI, TIFF or .npy, the two sides of a pair in different formats; arrays are Z, Y, X, NIfTI being
    transposed on reading. A pair has the same name once endings such as `_label`, `_mask` and `_pred` are off. Where
    a folder has files with such an ending, the others in it are taken for images and left out.

    Args:
        pred_dir: what to judge: masks, probabilities or label images.
        label_dir: the truth: masks or label images.
        out_csv: the table to write.
        kind: of the predictions: "mask" (components become instances), "labels" (every value above 0 is an instance),
            or "auto": labels if any file has more than one whole value above 0; `label_kind`: of the truth.
        threshold: a voxel of a mask is predicted foreground at this value and above.
        connectivity: of components, 6, 18 or 26.
        minimum_voxels: smaller instances are left out of the instance metrics, on both sides.
        match_dice: least Dice of two matched instances.
        spacing_um: voxel size in ZYX for the Hausdorff distance; None gives it in voxels.
        volume_pattern: regular expression whose first group, or match, in a patch's name is its volume; None for the
            rules of `volume_of`.
        method: how to call the predictions in the table; `seed`: of the bootstrap.

    Raises:
        MaskFolderError: an unknown setting, an unreadable or empty folder, files without a partner, two files for one
            patch, or a pair of different shapes.
        VolumeError: a file that cannot be read as one volume.
    """
    _check_settings(kind=kind, label_kind=label_kind, connectivity=connectivity, minimum_voxels=minimum_voxels)
    (predictions, left_out), (labels, left_out_labels) = masks_in(pred_dir), masks_in(label_dir)
    pairs = pair_masks(predictions, labels, pred_dir=pred_dir, label_dir=label_dir)
    kinds = {
        "predictions": kind_of([pair.prediction for pair in pairs], kind),
        "labels": kind_of([pair.label for pair in pairs], label_kind),
    }
    limits = {"connectivity": connectivity, "minimum_voxels": minimum_voxels, "match_dice": match_dice}
    limits |= {"threshold": threshold, "spacing_um": spacing_um}
    rows = _score_pairs(pairs, kinds, limits, method=method, volume_pattern=volume_pattern)
    notes = _notes({pred_dir: left_out, label_dir: left_out_labels})
    settings = kinds | {name: _setting_text(value) for name, value in limits.items()}
    result = Evaluation(rows, summarise(rows, seed=seed), settings, notes)
    write_csv(result, out_csv)
    return result


def _score_pairs(
    pairs: Sequence[MaskPair],
    kinds: dict[str, str],
    limits: dict[str, Any],
    *,
    method: str,
    volume_pattern: str | None,
) -> list[PatchScores]:
    score = functools.partial(segmentation_scores, truth_is_labels=kinds["labels"] == "labels", **limits)
    scores = [functools.partial(score, prediction_is_labels=kind == "labels") for kind in kinds.values()]
    rows = []
    for pair in pairs:
        names = {"patch": pair.patch, "volume": volume_of(pair.patch, pattern=volume_pattern), "method": method}
        rows += score_with_scale(*read_pair(pair), *scores, **names)
    return rows


def _setting_text(value: float | tuple[float, ...] | None) -> str:
    if value is None:
        return "unknown"
    return " ".join(f"{part:g}" for part in (value if isinstance(value, tuple) else (value,)))


def _notes(left_out: dict[str | pathlib.Path, list[pathlib.Path]]) -> list[str]:
    return [
        f"{len(paths)} files of {folder} left out, not named as masks: {', '.join(p.name for p in paths)}"
        for folder, paths in left_out.items()
        if paths
    ]


def score_with_scale(
    prediction: Volume,
    truth: Volume,
    score: Callable[[Volume, Volume], dict[str, float]],
    score_truth: Callable[[Volume, Volume], dict[str, float]],
    *,
    patch: str,
    volume: str,
    method: str,
) -> list[PatchScores]:
    """Score a prediction, and for scale an empty one and the truth rolled along X.

    Args:
        prediction: of one patch.
        truth: of one patch.
        score: metrics of a volume of the prediction's kind against the truth.
        score_truth: metrics of a volume of the truth's kind against the truth.
        patch: its name.
        volume: that it is from.
        method: name of the prediction's row.
    """
    rolled = np.roll(truth, ROLLED_VOXELS, axis=2)
    return [
        PatchScores(method, patch, volume, score(prediction, truth)),
        PatchScores(EMPTY, patch, volume, score_truth(np.zeros_like(truth), truth)),
        PatchScores(ROLLED, patch, volume, score_truth(rolled, truth)),
    ]


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
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics = list(result.rows[0].scores)
    settings = list(result.settings.values())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "method", "patch", "volume", *metrics, *result.settings])
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


def _check_settings(*, kind: str, label_kind: str, connectivity: int, minimum_voxels: int) -> None:
    for name, value, allowed in (
        ("kind", kind, KINDS),
        ("label_kind", label_kind, KINDS),
        ("connectivity", connectivity, CONNECTIVITIES),
    ):
        if value not in allowed:
            raise MaskFolderError(f"{name} is {value!r}: use one of {', '.join(map(str, allowed))}")
    if minimum_voxels < 1:
        raise MaskFolderError(f"minimum_voxels is {minimum_voxels}: give 1, which keeps all instances, or more")
