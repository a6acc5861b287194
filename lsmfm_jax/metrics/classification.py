"""Classification metrics from a confusion matrix, its table and its picture."""

import csv
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from lsmfm_jax.errors import InputError
from lsmfm_jax.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Matrix = Int[np.ndarray, "k k"]


def confusion_matrix(truth: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], *, classes: int) -> Matrix:
    """Count samples by class: one row per true class, one column per predicted class.

    Raises:
        ValueError: for a class number outside 0 to `classes` - 1.
    """
    for name, numbers in (("truth", truth), ("prediction", predicted)):
        if numbers.size and (numbers.min() < 0 or numbers.max() >= classes):
            raise InputError(
                f"the {name} has class numbers from {numbers.min()} to {numbers.max()}, "
                f"but there are {classes} classes, numbered from 0"
            )
    pairs = truth.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def classification_scores(matrix: Matrix) -> dict[str, float]:
    """Accuracy and macro F1.

    Macro F1 is the mean over the classes that some sample has or is taken for: a class that was only
    predicted counts 0, a class absent from both does not count, as in scikit-learn. Both are 0 without a
    sample.
    """
    total = int(matrix.sum())
    if total == 0:
        return {"accuracy": 0.0, "macro_f1": 0.0}
    f1 = class_scores(matrix)["f1"]
    return {"accuracy": float(np.trace(matrix)) / total, "macro_f1": float(f1[~np.isnan(f1)].mean())}


def class_scores(matrix: Matrix) -> dict[str, Float[np.ndarray, " k"]]:
    """Precision, recall, F1 and number of samples of each class.

    A class that is never predicted has precision 0, one without a sample has recall 0; a class for which
    both hold has NaN everywhere, which says that nothing was measured.

    Returns:
        `precision`, `recall`, `f1`, `samples`.
    """
    right = np.diag(matrix).astype(np.float64)
    true, predicted = matrix.sum(1), matrix.sum(0)
    absent = true + predicted == 0

    def ratio(numerator: Float[np.ndarray, " k"], denominator: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        return np.where(absent, np.nan, numerator / np.maximum(denominator, 1))

    return {
        "precision": ratio(right, predicted),
        "recall": ratio(right, true),
        "f1": ratio(2.0 * right, true + predicted),
        "samples": true.astype(np.float64),
    }


def write_confusion_csv(matrix: Matrix, class_names: Sequence[str], path: str | pathlib.Path) -> None:
    """Write the matrix as a table: a row per true class, a column per predicted class, then class scores."""
    scores = class_scores(matrix)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["truth", *(f"predicted {name}" for name in class_names), *scores])
        for k, name in enumerate(class_names):
            writer.writerow([name, *matrix[k].tolist(), *(f"{values[k]:.6g}" for values in scores.values())])


def confusion_figure(matrix: Matrix, class_names: Sequence[str]) -> "Figure":
    """Draw the matrix, each row shaded by its share of the class and numbered by its counts."""
    # Here and not above: training needs this file, and not always a drawing library.
    from matplotlib.figure import Figure

    side = 2.5 + 0.55 * len(class_names)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            dark = shares[row, column] > 0.5
            axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right")
    axes.set_yticks(range(len(class_names)), class_names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return figure
