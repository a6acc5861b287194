"""Agreement of centre lines, for vessels and fibres."""

import itertools

import cc3d
import numpy as np
from jaxtyping import Bool
from scipy import ndimage
from skimage.morphology import skeletonize

Mask = Bool[np.ndarray, "z y x"]

# One voxel more at the upper side of some axes: all three, then two, then one.
_GROWN = sorted(itertools.product((0, 1), repeat=3), key=sum, reverse=True)[:-1]


def skeleton(mask: Mask) -> Mask:
    """Thin a mask to lines one voxel wide that keep its topology (Lee et al. 1994).

    Every connected component (26 neighbours) keeps a part of its own. The thinning of scikit-image removes some
    components whole, rods that are an even number of voxels wide among them (scikit-image#3757); such a one is
    thinned again with one voxel added at its upper side, which makes an even width odd, and the longest line that
    lies in the component is kept; where there is none, its deepest voxel.
    """
    if not mask.any():
        return mask
    # A rim of background: the thinning looks at neighbours beyond the edges.
    line = _thinned(mask)
    numbers = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=26)
    kept = np.zeros(int(numbers.max()) + 1, bool)
    kept[np.unique(numbers[line])] = True
    for number, box in enumerate(ndimage.find_objects(numbers), 1):
        if box is not None and not kept[number]:
            line[box] |= _line_of(numbers[box] == number)
    return line


def _thinned(mask: Mask) -> Mask:
    return skeletonize(mask, method="lee").astype(bool)


def _line_of(component: Mask) -> Mask:
    """The centre line of a component that thinning alone would remove."""
    padded = np.pad(component, 1)  # room for the voxel that is added
    best = np.zeros_like(padded)
    for growth in _GROWN:
        grown = padded.copy()
        for axis in np.flatnonzero(growth):
            grown |= np.roll(grown, 1, axis=axis)
        line = _thinned(grown) & padded
        best = line if line.sum() > best.sum() else best
    if not best.any():
        deepest = ndimage.distance_transform_edt(padded).argmax()
        best.flat[deepest] = True
    return best[1:-1, 1:-1, 1:-1]


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
    """How much of a skeleton lies in a mask."""
    return float((line & mask).sum()) / int(line.sum())
