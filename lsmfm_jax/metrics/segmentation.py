"""Metrics of one predicted mask or label image against the true one.

Degenerate cases are the same for every metric that compares voxels or instances: where both sides are empty
the prediction is perfect (1; distance 0), where only one is it is worthless (0; the longest distance that the
volume has). No metric is ever NaN, so that a mean over patches never leaves the hard ones out.

Voxels that nobody annotated count in no metric: both sides are taken as background there before anything else, so
an instance that such voxels cut is judged by the pieces that are left, on both sides alike.
"""

import numpy as np
from jaxtyping import Bool, Integer, Num
from scipy import ndimage

from lsmfm_jax.metrics.detection import centroids, detection_scores
from lsmfm_jax.metrics.instances import components, count_dice_paper, instance_scores, renumber
from lsmfm_jax.metrics.topology import cl_dice

Mask = Bool[np.ndarray, "z y x"]
Volume = Num[np.ndarray, "z y x"] | Bool[np.ndarray, "z y x"]
AnyVolume = Num[np.ndarray, "_ _ _"] | Bool[np.ndarray, "_ _ _"]


def foreground_scores(prediction: Mask, truth: Mask) -> dict[str, float]:
    """Dice, intersection over union, precision and recall of the foreground voxels."""
    return scores_of_counts(int(prediction.sum()), int(truth.sum()), int((prediction & truth).sum()))


def scores_of_counts(predicted: int, true: int, shared: int) -> dict[str, float]:
    """Dice, intersection over union, precision and recall from numbers of voxels: predicted, true, and both."""
    if predicted == 0 or true == 0:
        return dict.fromkeys(("dice", "iou", "precision", "recall"), float(predicted == true))
    return {
        "dice": 2.0 * shared / (predicted + true),
        "iou": shared / (predicted + true - shared),
        "precision": shared / predicted,
        "recall": shared / true,
    }


def total_dice_paper(prediction: Mask, truth: Mask, *, annotated: Mask | None = None) -> float:
    """The paper's "total Dice": the mean of the Dice of the foreground and that of the background.

    With D(P, G) = (2 |P and G| + eps) / (|P| + |G| + eps), it is (D(P, G) + D(not P, not G)) / 2. Background
    fills most of a patch, so an empty mask scores about one half. With `annotated`, only those voxels count.
    """
    if annotated is not None:
        prediction, truth = prediction[annotated], truth[annotated]
    shared = int((prediction & truth).sum())
    return total_dice_of_counts(int(prediction.sum()), int(truth.sum()), shared, voxels=prediction.size)


def total_dice_of_counts(predicted: int, true: int, shared: int, *, voxels: int, epsilon: float = 1e-8) -> float:
    """The same from numbers of voxels: predicted, true, both, and all that count."""
    foreground = (2.0 * shared + epsilon) / (predicted + true + epsilon)
    outside = voxels - predicted - true
    return 0.5 * (foreground + (2.0 * (outside + shared) + epsilon) / (voxels + outside + epsilon))


def hausdorff_95(prediction: Mask, truth: Mask, *, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> float:
    """The 95th percentile of the distances between the two surfaces, the larger of both directions.

    A surface is the foreground voxels with a face neighbour in the background or outside the volume. 0 where
    both masks are empty; the diagonal of the volume where one is, as no distance could be longer.

    Args:
        prediction: mask.
        truth: mask.
        spacing: distance of neighbouring voxels along Z, Y and X; the result has its unit.
    """
    if not prediction.any() or not truth.any():
        extent = np.asarray(truth.shape) * np.asarray(spacing)
        return 0.0 if prediction.any() == truth.any() else float(np.linalg.norm(extent))
    # Distances between surfaces do not change when everything outside the box around both is cut off.
    box = ndimage.find_objects((prediction | truth).astype(np.uint8))[0]
    surfaces = [_surface(mask[box]) for mask in (prediction, truth)]
    to_prediction, to_truth = (ndimage.distance_transform_edt(~s, sampling=spacing) for s in surfaces)
    return float(max(np.percentile(to_truth[surfaces[0]], 95), np.percentile(to_prediction[surfaces[1]], 95)))


def _surface(mask: Mask) -> Mask:
    return mask & ~ndimage.binary_erosion(mask)


def segmentation_scores(
    prediction: AnyVolume,
    truth: AnyVolume,
    *,
    prediction_is_labels: bool = False,
    truth_is_labels: bool = False,
    threshold: float = 0.5,
    connectivity: int = 26,
    minimum_voxels: int = 1,
    match_dice: float = 0.3,
    spacing_um: tuple[float, float, float] | None = None,
    match_distance: float | None = None,
    match_in_um: bool = False,
    annotated: Mask | None = None,
) -> dict[str, float]:
    """All metrics of one patch.

    Args:
        prediction: mask, probabilities or, with `prediction_is_labels`, a label image.
        truth: mask or, with `truth_is_labels`, a label image.
        prediction_is_labels: instances are the labels above 0, not the connected components.
        truth_is_labels: the same for the truth.
        threshold: a voxel is predicted foreground at this value and above; the truth's is above 0.5.
        connectivity: of components, 6, 18 or 26.
        minimum_voxels: smaller instances are left out, on both sides, of the instance metrics alone.
        match_dice: least Dice of a match.
        spacing_um: voxel size in ZYX; with it the distance is `hausdorff_95_um`, else `hausdorff_95_voxels`.
        match_distance: largest distance of the centroids of two instances that are one object, in voxels; None
            leaves the detection scores out.
        match_in_um: it is in micrometres, by `spacing_um`.
        annotated: where voxels count; None for everywhere.

    Returns:
        `dice`, `iou`, `precision`, `recall`, `panoptic_quality`, `recognition_quality`, `segmentation_quality`,
        `true_positives`, `false_positives`, `false_negatives`, `cl_dice`, the Hausdorff distance,
        `total_dice_paper`, `count_dice_paper`, and with `match_distance` those of `detection_scores`.

    Raises:
        ValueError: if the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"the prediction has the shape {prediction.shape}, the truth {truth.shape} (ZYX)")
    masks = foreground(prediction, labels=prediction_is_labels, threshold=threshold), truth > 0.5
    if annotated is not None:
        masks = tuple(mask & annotated for mask in masks)
        prediction, truth = (np.where(annotated, volume, np.zeros((), volume.dtype)) for volume in (prediction, truth))
    sides = zip((prediction, truth), masks, (prediction_is_labels, truth_is_labels), strict=True)
    instances = [
        renumber(whole_labels(volume), minimum_voxels=minimum_voxels)
        if is_labels
        else components(mask, connectivity=connectivity, minimum_voxels=minimum_voxels)
        for volume, mask, is_labels in sides
    ]
    distance = "hausdorff_95_voxels" if spacing_um is None else "hausdorff_95_um"
    spacing = spacing_um or (1.0, 1.0, 1.0)
    found: dict[str, float] = {}
    if match_distance is not None:
        units = spacing if match_in_um else (1.0, 1.0, 1.0)
        found = detection_scores(*map(centroids, instances), distance=match_distance, spacing=units)
    return {
        **foreground_scores(*masks),
        **instance_scores(*instances, match_dice=match_dice),
        "cl_dice": cl_dice(*masks),
        distance: hausdorff_95(*masks, spacing=spacing),
        "total_dice_paper": total_dice_paper(*masks, annotated=annotated),
        "count_dice_paper": count_dice_paper(*masks),
        **found,
    }


def foreground(prediction: Volume, *, labels: bool, threshold: float = 0.5) -> Mask:
    """The mask of a prediction: labels above 0, or values of `threshold` and above."""
    return prediction > 0 if labels else prediction >= threshold


def whole_labels(volume: Volume) -> Integer[np.ndarray, "z y x"]:
    """A label image as whole numbers, whatever type its file had."""
    if np.issubdtype(volume.dtype, np.integer):
        return volume
    return np.rint(volume).astype(np.int64)
