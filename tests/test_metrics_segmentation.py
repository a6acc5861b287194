"""Voxel metrics of masks on examples with known answers, and against scikit-learn, scipy and scikit-image."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from skimage.metrics import hausdorff_distance
from sklearn.metrics import jaccard_score, precision_recall_fscore_support

from lsmfm_jax.metrics import segmentation, topology

EMPTY = np.zeros((8, 9, 10), bool)


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    prediction, truth = np.zeros((2, 14, 15, 16), bool)
    for mask in (prediction, truth):
        for z, y, x in random.integers(0, 11, (4, 3)):
            mask[z : z + 4, y : y + 3, x : x + 5] = True
    return prediction, truth


def test_foreground_scores_equal_scikit_learn(blobs):
    prediction, truth = blobs
    precision, recall, f1, _ = precision_recall_fscore_support(truth.ravel(), prediction.ravel(), average="binary")
    iou = jaccard_score(truth.ravel(), prediction.ravel())
    scores = segmentation.foreground_scores(prediction, truth)
    assert scores == pytest.approx({"dice": f1, "iou": iou, "precision": precision, "recall": recall})


def test_total_dice_paper_of_a_known_case():
    truth, prediction = EMPTY.copy(), EMPTY.copy()
    truth[:2] = True  # 180 of 720 voxels
    prediction[1:3] = True  # 180, half of them right
    foreground, background = 2 * 90 / 360, 2 * 450 / 1080
    assert segmentation.total_dice_paper(prediction, truth) == pytest.approx((foreground + background) / 2)


def test_total_dice_paper_gives_an_empty_mask_about_half():
    truth = EMPTY.copy()
    truth[:2] = True
    f = truth.mean()
    assert segmentation.total_dice_paper(EMPTY, truth) == pytest.approx((1 - f) / (2 - f), abs=1e-6)
    assert segmentation.total_dice_paper(EMPTY, EMPTY) == 1.0
    assert segmentation.total_dice_paper(~EMPTY, EMPTY) == pytest.approx(0, abs=1e-9)


def test_hausdorff_95_of_a_moved_box():
    truth = np.zeros((20, 20, 20), bool)
    truth[5:10, 5:10, 5:10] = True
    moved = np.roll(truth, 6, axis=0)
    # Three quarters of either surface lie beyond, the far face 6 away; so does the 95th percentile.
    assert segmentation.hausdorff_95(moved, truth) == 6.0
    assert segmentation.hausdorff_95(moved, truth, spacing=(2.5, 1.0, 1.0)) == 15.0
    assert segmentation.hausdorff_95(truth, truth) == 0.0


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (6.0, 1.6, 0.9)])
def test_hausdorff_95_equals_all_pairs_of_surface_voxels(blobs, spacing):
    prediction, truth = blobs
    points = []
    for mask in (prediction, truth):
        padded = np.pad(mask, 1)
        inside = np.ones_like(padded)
        for axis in range(3):
            inside &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
        points.append(np.argwhere(mask & ~inside[1:-1, 1:-1, 1:-1]) * spacing)
    distances = cdist(*points)
    expected = max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))
    assert segmentation.hausdorff_95(prediction, truth, spacing=spacing) == pytest.approx(expected)
    assert expected <= cdist(*points).max()


def test_hausdorff_95_is_below_the_hausdorff_distance_of_scikit_image(blobs):
    prediction, truth = (mask.copy() for mask in blobs)
    prediction[0, 0, 0] = True  # one stray voxel moves the maximum, and hardly the 95th percentile
    assert segmentation.hausdorff_95(prediction, truth) <= hausdorff_distance(prediction, truth)


def test_degenerate_masks_have_defined_scores():
    full = EMPTY.copy()
    full[2:4, 2:4, 2:4] = True
    diagonal = np.sqrt(8**2 + 9**2 + 10**2)
    perfect = {"dice", "precision", "recall", "panoptic_quality", "cl_dice", "count_dice_paper"}
    both = segmentation.segmentation_scores(EMPTY, EMPTY)
    assert all(both[name] == 1.0 for name in perfect | {"total_dice_paper"})
    assert both["hausdorff_95_voxels"] == 0.0
    for one in (
        segmentation.segmentation_scores(EMPTY, full),
        segmentation.segmentation_scores(full, EMPTY),
    ):
        assert all(one[name] == 0.0 for name in perfect)
        assert one["hausdorff_95_voxels"] == pytest.approx(diagonal)
        assert all(np.isfinite(value) for value in one.values())
    in_um = segmentation.segmentation_scores(EMPTY, full, spacing_um=(6.0, 1.0, 1.0))
    assert in_um["hausdorff_95_um"] == pytest.approx(np.sqrt(48**2 + 9**2 + 10**2))


def test_disjoint_masks_score_zero():
    one, other = EMPTY.copy(), EMPTY.copy()
    one[:2], other[5:] = True, True
    scores = segmentation.segmentation_scores(one, other)
    assert scores["dice"] == scores["precision"] == scores["recall"] == scores["cl_dice"] == 0.0
    assert scores["panoptic_quality"] == 0.0
    assert scores["count_dice_paper"] == 1.0


def test_probabilities_are_cut_at_the_threshold_and_above():
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[:2] = 1
    probabilities = np.where(truth, 0.5, 0.49).astype(np.float32)
    assert segmentation.segmentation_scores(probabilities, truth)["dice"] == 1.0
    assert segmentation.segmentation_scores(probabilities, truth, threshold=0.6)["dice"] == 0.0


def test_other_shapes_are_an_error_that_names_both():
    with pytest.raises(ValueError, match=r"\(8, 9, 10\).*\(9, 8, 10\)"):
        segmentation.segmentation_scores(EMPTY, EMPTY.transpose(1, 0, 2))


def test_cl_dice_of_a_tube_with_a_gap():
    tube = np.zeros((11, 11, 40), bool)
    tube[4:7, 4:7] = True
    assert topology.cl_dice(tube, tube) == 1.0
    broken = tube.copy()
    broken[:, :, 10:20] = False
    line = topology.skeleton(tube)
    assert line.sum() <= 40
    assert (line & ~tube).sum() == 0
    # All of the broken skeleton lies in the tube; about a quarter of the whole one lies in the gap.
    recall = (line & broken).sum() / line.sum()
    assert 0.7 < recall < 0.8
    assert topology.cl_dice(broken, tube) == pytest.approx(2 * recall / (1 + recall))
    assert topology.cl_dice(tube, broken) == pytest.approx(topology.cl_dice(broken, tube))


def test_cl_dice_does_not_mind_the_width_of_a_tube():
    thick = np.zeros((15, 15, 30), bool)
    thick[4:11, 4:11] = True
    thin = np.zeros_like(thick)
    thin[6:9, 6:9] = True
    assert segmentation.foreground_scores(thin, thick)["dice"] < 0.35
    assert topology.cl_dice(thin, thick) == 1.0
