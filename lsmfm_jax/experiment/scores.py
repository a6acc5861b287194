"""Scores of each test patch, read from the tables of `lsmfm evaluate` and `lsmfm predict`."""

import collections
import csv
import pathlib
from typing import Any

from lsmfm_jax.volumes.names import stem

Scores = dict[str, dict[str, float]]  # of each patch, by metric
# Of a classification the number of the class that is right and of the one that was found.
TRUE_CLASS, FOUND_CLASS = "true_class", "found_class"
BLURRED_INPUT = "blurred_input"


def evaluated(table: pathlib.Path) -> dict[str, Scores]:
    """Scores of every patch, by method, from the table of `lsmfm evaluate`; where a cell is empty, NaN."""
    scores: dict[str, Scores] = collections.defaultdict(dict)
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["row"] == "patch":
                start = list(row).index("volume") + 1
                metrics = list(row)[start : list(row).index("predictions")]
                scores[row["method"]][row["patch"]] = {name: float(row[name] or "nan") for name in metrics}
    return scores


def predicted_classes(table: pathlib.Path) -> Scores:
    """Whether the class of each patch is right (`accuracy`), and both classes as numbers, from `predictions.csv`.

    A class has the number of its place in the sorted list of all classes that the network knows.
    """
    found: Scores = {}
    for row in _rows(table):
        if not row.get("truth"):
            continue  # its class is none that the network knows; the cell says that a patch is missing
        classes = sorted(name.removeprefix("probability_") for name in row if name.startswith("probability_"))
        found[_patch(row)] = {
            "accuracy": float(row["class"] == row["truth"]),
            TRUE_CLASS: float(classes.index(row["truth"])),
            FOUND_CLASS: float(classes.index(row["class"])),
        }
    return found


def predicted_volumes(table: pathlib.Path) -> dict[str, Scores]:
    """PSNR and SSIM of each deblurred patch and of the blurred input itself, from `predictions.csv`."""
    rows = _rows(table)
    return {
        method: {_patch(row): {name: float(row[name + ending]) for name in ("psnr", "ssim")} for row in rows}
        for method, ending in (("prediction", ""), (BLURRED_INPUT, "_blurred"))
    }


def _rows(table: pathlib.Path) -> list[dict[str, Any]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _patch(row: dict[str, Any]) -> str:
    return stem(pathlib.Path(row["file"])).removesuffix("_blurred")
