"""Detection: are the objects found, wherever exactly their walls are? Places are matched one to one by distance.

This is the figure for counting cells. An object is a place: the centroid of a component, of a label, or a point that
a person set.
"""

import numpy as np
from jaxtyping import Float, Int, Integer
from scipy.spatial import KDTree

from lsmfm_jax.metrics.matching import best_pairs

Places = Float[np.ndarray, "_ 3"]


def centroids(labels: Integer[np.ndarray, "z y x"]) -> Float[np.ndarray, "n 3"]:
    """Mean Z, Y, X of the voxels of each label 1 to N, in voxels; from `components` or `renumber`."""
    where = np.nonzero(labels)
    numbers = labels[where]
    sizes = np.bincount(numbers)[1:]
    sums = [np.bincount(numbers, weights=along)[1:] for along in where]
    return np.stack(sums, axis=1) / np.maximum(sizes, 1)[:, None]


def match_places(
    predicted: Places, true: Places, *, distance: float
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Match places one to one: as many pairs as can be, and of those matchings the one of least total distance.

    The matching is optimal (Hungarian), so it does not depend on the order of the places, as one does that takes the
    nearest first.

    Args:
        predicted: Z, Y, X of each.
        true: Z, Y, X of each, in the same unit.
        distance: the largest distance of a pair, in this unit.

    Returns:
        Numbers of the predicted and of the true places of each pair, and their distances.
    """
    nothing = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    if not len(predicted) or not len(true):
        return nothing
    near = KDTree(predicted).sparse_distance_matrix(KDTree(true), distance, output_type="ndarray")
    if not len(near):
        return nothing
    rows, columns, apart = near["i"].astype(np.int64), near["j"].astype(np.int64), near["v"]
    kept = best_pairs(rows, columns, -apart / distance, most=True)
    return rows[kept], columns[kept], apart[kept]


def detection_scores(
    predicted: Places,
    true: Places,
    *,
    distance: float,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> dict[str, float]:
    """Precision, recall and F1 of places that are matched within a distance.

    1 where both sides are empty, 0 where one is.

    Args:
        predicted: Z, Y, X of each, in voxels.
        true: Z, Y, X of each, in voxels.
        distance: the largest distance of a match, in the unit of `spacing`.
        spacing: distance of neighbouring voxels along Z, Y and X.

    Returns:
        `detection_precision`, `detection_recall`, `detection_f1`, and the numbers of matches, of predicted places
        without a match and of true ones without: `detection_true_positives`, `detection_false_positives`,
        `detection_false_negatives`.

    Raises:
        ValueError: a distance that is not above 0.
    """
    if not distance > 0 or not np.isfinite(distance):
        raise ValueError(f"the distance of a match is {distance}: give one above 0")
    matched = len(match_places(predicted * np.array(spacing), true * np.array(spacing), distance=distance)[0])
    if len(predicted) and len(true):
        precision, recall = matched / len(predicted), matched / len(true)
        f1 = 2.0 * matched / (len(predicted) + len(true))
    else:
        precision = recall = f1 = float(len(predicted) == len(true))
    return {
        "detection_precision": precision,
        "detection_recall": recall,
        "detection_f1": f1,
        "detection_true_positives": float(matched),
        "detection_false_positives": float(len(predicted) - matched),
        "detection_false_negatives": float(len(true) - matched),
    }
