"""The tables of a prediction: a row for each file, and for those with a truth the means with their intervals."""

import csv
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lsmfm_jax.data.mask_folders import volume_of
from lsmfm_jax.files import replacing
from lsmfm_jax.metrics.classification import (
    classification_scores,
    confusion_figure,
    confusion_matrix,
    write_confusion_csv,
)
from lsmfm_jax.metrics.intervals import Interval, bootstrap_mean, bootstrap_statistic
from lsmfm_jax.scale import Levels
from lsmfm_jax.store.layouts import stem
from lsmfm_jax.volumes.read import VolumeInfo

TABLE = "predictions.csv"
SUMMARY = "summary.csv"
CONFUSION = "confusion"
# Of the many metrics, those that are printed too.
PRINTED = (
    *("dice", "panoptic_quality", "accuracy", "macro_f1", "psnr", "psnr_blurred", "ssim", "ssim_blurred"),
    *("ssim_smooth", "ssim_mean", "l1", "l1_smooth", "l1_mean"),
)
Row = dict[str, Any]
_PROBABILITY = "probability_"


def volume_facts(image: np.ndarray, info: VolumeInfo, levels: Levels | tuple[Levels, ...]) -> Row:
    """What the table has of every volume: shape, voxel size and its source, and what became 0 and 1, for each scale."""
    size = info.voxel_size_um
    return {
        "shape": " ".join(map(str, image.shape)),
        "voxel_size_um": "" if size is None else " ".join(f"{side:g}" for side in size),
        "voxel_size_source": info.voxel_size_source,
        "scaled_from": levels.low if isinstance(levels, Levels) else " ".join(cell(one.low) for one in levels),
        "scaled_to": levels.high if isinstance(levels, Levels) else " ".join(cell(one.high) for one in levels),
    }


def write_table(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Writes rows as CSV, with the columns of them all; the file is replaced in one step."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)


def cell(value: Any) -> str:
    """A value as the tables have it."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def summarise(rows: Sequence[Row], out: pathlib.Path) -> list[str]:
    """Writes the mean of each metric with its 95 % intervals over patches and over volumes, and says it in lines.

    The table is `summary.csv`, the lines have the main metrics; for classes there are also `confusion.csv`, with the
    scores of each class, and `confusion.png`. The volume of a patch is told from its name (see `volume_of`).

    Args:
        rows: of the files; those without a truth are left out.
        out: folder.

    Returns:
        Nothing where no file has a truth.
    """
    judged = [row for row in rows if "truth" in row and "error" not in row]
    if not judged:
        return []
    # As evaluation has it: `<name>_blurred` is of the volume of `<name>`.
    volumes = [volume_of(stem(pathlib.Path(row["file"])).removesuffix("_blurred")) for row in judged]
    if any(name.startswith(_PROBABILITY) for name in judged[0]):
        intervals = _of_classes(judged, volumes, out)
    else:
        names = list(judged[0])[list(judged[0]).index("truth") + 1 :]
        values = {name: np.array([row[name] for row in judged], np.float64) for name in names}
        intervals = {
            name: (bootstrap_mean(column), bootstrap_mean(column, groups=volumes)) for name, column in values.items()
        }
    lines = [
        {
            "metric": name,
            "mean": by_patch.value,
            "patches_low": by_patch.low,
            "patches_high": by_patch.high,
            "volumes_low": by_volume.low,
            "volumes_high": by_volume.high,
            "patches": by_patch.units,
            "volumes": by_volume.units,
        }
        for name, (by_patch, by_volume) in intervals.items()
    ]
    write_table(out / SUMMARY, [{k: "" if _is_nan(v) else v for k, v in line.items()} for line in lines])
    head = f"{len(judged)} files of {len(set(volumes))} volumes judged; means [95 % over patches] [over volumes]:"
    return [head, *(f"  {name} {_text(*intervals[name])}" for name in PRINTED if name in intervals)]


def _of_classes(
    judged: Sequence[Row], volumes: Sequence[str], out: pathlib.Path
) -> dict[str, tuple[Interval, Interval]]:
    classes = [name.removeprefix(_PROBABILITY) for name in judged[0] if name.startswith(_PROBABILITY)]
    truth, predicted = (np.array([classes.index(row[name]) for row in judged]) for name in ("truth", "class"))
    matrix = confusion_matrix(truth, predicted, classes=len(classes))
    write_confusion_csv(matrix, classes, out / f"{CONFUSION}.csv")
    figure = confusion_figure(matrix, classes)
    FigureCanvasAgg(figure)
    with replacing(out / f"{CONFUSION}.png") as temporary:
        figure.savefig(temporary, dpi=110, format="png")

    def macro_f1(places: np.ndarray) -> float:
        drawn = confusion_matrix(truth[places], predicted[places], classes=len(classes))
        return classification_scores(drawn)["macro_f1"]

    right = (truth == predicted).astype(np.float64)
    return {
        "accuracy": (bootstrap_mean(right), bootstrap_mean(right, groups=volumes)),
        "macro_f1": tuple(bootstrap_statistic(macro_f1, len(judged), groups=groups) for groups in (None, volumes)),
    }


def _text(by_patch: Interval, by_volume: Interval) -> str:
    limits = [
        _limits_text(None if math.isnan(interval.low) else (interval.low, interval.high))
        for interval in (by_patch, by_volume)
    ]
    return " ".join([f"{by_patch.value:.3f}", *limits])


def interval_text(value: float, limits: Sequence[float] | None) -> str:
    """A value with its interval, as tables print it; `[-]` where there are too few units for one."""
    return f"{value:.3f} {_limits_text(limits)}"


def _limits_text(limits: Sequence[float] | None) -> str:
    return "[-]" if limits is None else f"[{limits[0]:.3f}, {limits[1]:.3f}]"


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
