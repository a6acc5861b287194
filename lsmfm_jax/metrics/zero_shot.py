"""Zero-shot classification by text: the class whose text lies nearest to an image, and how good that is."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from lsmfm_jax.metrics.classification import classification_scores, confusion_matrix

# Random guesses for what macro F1 chance gives, which has no simple formula.
_GUESSES = 300


def unit_vectors(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The same vectors at length 1; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def class_vectors(prompts: Float[np.ndarray, "p d"], classes: Int[np.ndarray, " p"]) -> Float[np.ndarray, "k d"]:
    """A unit vector for each class: the mean of its prompts' unit vectors, at length 1 again (a prompt ensemble).

    Args:
        prompts: vectors of prompts, of any length.
        classes: the class of each prompt, numbered from 0; each class has one at least.
    """
    units = unit_vectors(prompts)
    return unit_vectors(np.stack([units[classes == k].mean(axis=0) for k in range(classes.max() + 1)]))


def nearest_class(
    images: Float[np.ndarray, "n d"], classes: Float[np.ndarray, "k d"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n k"]]:
    """The class with the largest cosine for each image, and all cosines.

    Args:
        images: unit vectors.
        classes: a unit vector for each class.
    """
    cosines = images.astype(np.float64) @ classes.astype(np.float64).T
    return np.argmax(cosines, axis=1), cosines


def macro_f1(truth: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], *, classes: int) -> float:
    """Mean F1 over classes; see `classification_scores`."""
    return classification_scores(confusion_matrix(truth, predicted, classes=classes))["macro_f1"]


def chance(truth: Int[np.ndarray, " n"], *, classes: int, seed: int = 0) -> dict[str, float]:
    """What guessing gives that knows the classes and nothing else.

    Returns:
        `top1` and `macro_f1` of a class drawn evenly for each image (the latter a mean over 300 draws), and
        `top1_most_common`, of always saying the class that most images have.
    """
    guesses = np.random.default_rng(seed).integers(0, classes, (_GUESSES, len(truth)))
    counts = np.bincount(truth, minlength=classes)
    return {
        "top1": 1.0 / classes,
        "macro_f1": float(np.mean([macro_f1(truth, one, classes=classes) for one in guesses])),
        "top1_most_common": float(counts.max() / len(truth)),
    }


def table_lines(matrix: Int[np.ndarray, "k k"], names: Sequence[str]) -> list[str]:
    """A confusion matrix as lines of text: a row for each true class, a column for each predicted one."""
    first = max(len("true class"), *map(len, names))
    widths = [max(len(name), 4) for name in names]
    head = "  ".join(name.rjust(width) for name, width in zip(names, widths, strict=True))
    lines = [f"{'true class'.ljust(first)}  {head}"]
    for name, row in zip(names, matrix, strict=True):
        cells = "  ".join(str(count).rjust(width) for count, width in zip(row.tolist(), widths, strict=True))
        lines.append(f"{name.ljust(first)}  {cells}")
    return lines
