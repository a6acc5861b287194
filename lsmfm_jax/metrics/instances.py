"""Instance metrics: connected components, one-to-one matching, panoptic quality.

Instances are the connected components of a mask, or the labels of a label image (0 is background); both are
int32 volumes here. Nothing in this file looks at voxel sizes.
"""

import cc3d
import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from lsmfm_jax.metrics.matching import best_pairs

Labels = Int[np.ndarray, "z y x"]
Mask = Bool[np.ndarray, "z y x"]

CONNECTIVITIES = (6, 18, 26)


def components(mask: Mask, *, connectivity: int = 26, minimum_voxels: int = 1) -> Labels:
    """Label the connected components of a mask as 1 to N, leaving out those smaller than `minimum_voxels`.

    Raises:
        ValueError: for a connectivity other than 6, 18 and 26.
    """
    if connectivity not in CONNECTIVITIES:
        raise ValueError(f"connectivity is {connectivity}: use one of {CONNECTIVITIES} (faces, edges, corners)")
    labels = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=connectivity)
    return renumber(labels, minimum_voxels=minimum_voxels)


def renumber(labels: Integer[np.ndarray, "z y x"], *, minimum_voxels: int = 1) -> Labels:
    """Number the labels of a label image as 1 to N.

    Labels of fewer than `minimum_voxels`, and negative ones, become background.
    """
    values, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    kept = (values > 0) & (sizes >= minimum_voxels)
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    return numbers[inverse].reshape(labels.shape)


def overlaps(
    prediction: Labels, truth: Labels
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Every pair of a predicted and a true instance that share a voxel, with their Dice.

    Args:
        prediction: labels 1 to N.
        truth: labels 1 to M.

    Returns:
        Predicted labels, true labels and Dice of the pairs.
    """
    sizes_predicted = np.bincount(prediction.ravel())
    sizes_true = np.bincount(truth.ravel())
    both = (prediction > 0) & (truth > 0)
    pairs = prediction[both].astype(np.int64) * len(sizes_true) + truth[both]
    pairs, shared = np.unique(pairs, return_counts=True)
    predicted, true = np.divmod(pairs, len(sizes_true))
    return predicted, true, 2.0 * shared / (sizes_predicted[predicted] + sizes_true[true])


def match(
    prediction: Labels, truth: Labels, *, match_dice: float = 0.3
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Match predicted with true instances one to one, so that the sum of their Dice is the largest possible.

    Only pairs with a Dice of at least `match_dice` count. The assignment is the optimal one (Hungarian), not
    the greedy one that takes the best pair first: as PQ is 2 (sum of matched Dice) / (predicted + true
    instances), it is the matching with the largest panoptic quality, and ties change nothing. The two differ
    only where an instance has several partners above the threshold.

    Returns:
        Predicted labels, true labels and Dice of the matched pairs.
    """
    return match_overlaps(*overlaps(prediction, truth), match_dice=match_dice)


def match_overlaps(
    predicted: Int[np.ndarray, " n"], true: Int[np.ndarray, " n"], dice: Float[np.ndarray, " n"], *, match_dice: float
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """The same from the pairs of `overlaps`, wherever they are from."""
    near = dice >= match_dice
    predicted, true, dice = predicted[near], true[near], dice[near]
    kept = best_pairs(predicted, true, dice)
    return predicted[kept], true[kept], dice[kept]


def instance_scores(prediction: Labels, truth: Labels, *, match_dice: float = 0.3) -> dict[str, float]:
    """Panoptic quality and its parts (Kirillov et al. 2019, with Dice for intersection over union).

    RQ = TP / (TP + FP/2 + FN/2), SQ = mean Dice of the matched pairs, PQ = RQ SQ. Without an instance on
    either side all three are 1; where nothing is matched otherwise, all three are 0.

    Args:
        prediction: labels 1 to N, from `components` or `renumber`.
        truth: labels 1 to M.
        match_dice: least Dice of a match.

    Returns:
        `panoptic_quality`, `recognition_quality`, `segmentation_quality`, `true_positives`,
        `false_positives`, `false_negatives`.
    """
    predicted, true = int(prediction.max(initial=0)), int(truth.max(initial=0))
    return scores_of_matches(predicted, true, match(prediction, truth, match_dice=match_dice)[2])


def scores_of_matches(predicted: int, true: int, dice: Float[np.ndarray, " n"]) -> dict[str, float]:
    """The same from the numbers of instances on both sides, and the Dice of the matched pairs."""
    matched = len(dice)
    if predicted + true == 0:
        recognition = segmentation = 1.0
    else:
        recognition = 2.0 * matched / (predicted + true)
        segmentation = float(dice.mean()) if matched else 0.0
    return {
        "panoptic_quality": recognition * segmentation,
        "recognition_quality": recognition,
        "segmentation_quality": segmentation,
        "true_positives": float(matched),
        "false_positives": float(predicted - matched),
        "false_negatives": float(true - matched),
    }


def count_dice_paper(prediction: Mask, truth: Mask) -> float:
    """The paper's "instance Dice": how alike two *numbers* of 26-connected components are.

    2 min(n, m) / (n + m), 1 where both are 0. It matches no instance with any: a mask moved far from where it
    belongs scores almost 1. No component is too small to count.
    """
    predicted = int(components(prediction).max(initial=0))
    true = int(components(truth).max(initial=0))
    return count_dice_of_counts(predicted, true)


def count_dice_of_counts(predicted: int, true: int) -> float:
    """The same from the two numbers of components."""
    return 1.0 if predicted + true == 0 else 2.0 * min(predicted, true) / (predicted + true)
