"""Agreement of centre lines, for vessels and fibres."""

import numpy as np
from jaxtyping import Bool
from skimage.morphology import skeletonize

Mask = Bool[np.ndarray, "z y x"]


def skeleton(mask: Mask) -> Mask:
    """Thin a mask to lines one voxel wide that keep its topology (Lee et al. 1994)."""
    # The thinning tests neighbours it takes to be background outside; an empty mask has nothing to thin.
    return skeletonize(mask, method="lee").astype(bool) if mask.any() else mask


def cl_dice(prediction: Mask, truth: Mask) -> float:
    """Centre-line Dice (Shit et al. 2021, equation 2).

    The harmonic mean of the share of the predicted skeleton that lies in the truth and the share of the true
    skeleton that lies in the prediction. 1 where both masks are empty, 0 where one is.
    """
    if not prediction.any() or not truth.any():
        return float(prediction.any() == truth.any())
    precision = _share(skeleton(prediction), truth)
    recall = _share(skeleton(truth), prediction)
    return 2.0 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _share(line: Mask, mask: Mask) -> float:
    """How much of a skeleton lies in a mask; 0 for a skeleton without a voxel."""
    length = int(line.sum())
    return float((line & mask).sum()) / length if length else 0.0
