"""Detection: places matched one to one by distance, against all matchings and on examples with known answers."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from lsmfm_jax.metrics.detection import centroids, detection_scores, match_places
from lsmfm_jax.metrics.instances import components
from lsmfm_jax.metrics.segmentation import segmentation_scores


def test_centroids_are_scipys():
    labels = components(np.random.default_rng(0).uniform(size=(9, 10, 11)) > 0.8)
    wanted = ndimage.center_of_mass(labels > 0, labels, np.arange(1, labels.max() + 1))
    np.testing.assert_allclose(centroids(labels), wanted)
    assert centroids(np.zeros((2, 2, 2), np.int32)).shape == (0, 3)


def best_by_trying(predicted, true, distance):
    """Most pairs, and of those matchings the least sum of distances."""
    small, large = sorted((predicted, true), key=len)
    apart = np.linalg.norm(small[:, None] - large[None], axis=-1)
    best = (0, 0.0)
    for columns in itertools.permutations(range(len(large)), len(small)):
        used = [apart[row, column] for row, column in enumerate(columns) if apart[row, column] <= distance]
        best = max(best, (len(used), -sum(used)))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_the_matching_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    predicted, true = (rng.uniform(0, 8, (rng.integers(1, 7), 3)) for _ in range(2))
    rows, columns, apart = match_places(predicted, true, distance=4.0)
    assert len(set(rows)) == len(rows) and len(set(columns)) == len(columns) and (apart <= 4.0).all()
    np.testing.assert_allclose(apart, np.linalg.norm(predicted[rows] - true[columns], axis=1))
    count, cost = best_by_trying(predicted, true, 4.0)
    assert len(rows) == count and apart.sum() == pytest.approx(-cost)


def test_the_nearest_pair_is_given_up_for_two_pairs():
    predicted, true = np.array([[0.0, 0, 0], [0, 0, 2.0]]), np.array([[0, 0, 1.9], [0, 0, 4.0]])
    assert detection_scores(predicted, true, distance=2.0)["detection_f1"] == 1.0


def test_known_counts_and_units():
    true = np.array([[5.0, 5, 5], [5, 5, 20], [5, 20, 5], [20, 5, 5]])
    predicted = np.array([[5.0, 5, 7], [5, 5, 20], [9, 20, 5], [0, 0, 40], [40, 0, 0]])
    found = detection_scores(predicted, true, distance=3.0)
    assert found["detection_true_positives"] == 2 and found["detection_false_positives"] == 3
    assert found["detection_false_negatives"] == 2
    assert found["detection_precision"] == pytest.approx(2 / 5) and found["detection_recall"] == pytest.approx(0.5)
    assert found["detection_f1"] == pytest.approx(4 / 9)
    # In micrometres: 2 voxels along X are 3 um, 4 along Z are 2 um.
    in_um = detection_scores(predicted, true, distance=2.5, spacing=(0.5, 1.0, 1.5))
    assert in_um["detection_true_positives"] == 2
    assert detection_scores(predicted, true, distance=3.5, spacing=(0.5, 1.0, 1.5))["detection_true_positives"] == 3


def test_empty_sides():
    nothing, one = np.zeros((0, 3)), np.zeros((1, 3))
    assert detection_scores(nothing, nothing, distance=1.0)["detection_f1"] == 1.0
    for predicted, true in ((nothing, one), (one, nothing)):
        found = detection_scores(predicted, true, distance=1.0)
        assert {found[f"detection_{name}"] for name in ("precision", "recall", "f1")} == {0.0}
    for wrong in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="distance of a match"):
            detection_scores(one, one, distance=wrong)


def test_ten_thousand_places_are_matched_in_no_time_and_all_with_themselves():
    places = np.random.default_rng(0).uniform(0, 500, (10_000, 3))
    moved = np.random.default_rng(1).permutation(places + 0.2)
    assert detection_scores(moved, places, distance=5.0)["detection_f1"] == 1.0


def test_scores_of_masks_have_them():
    mask = np.zeros((12, 12, 12), bool)
    mask[2:5, 2:5, 2:5] = mask[7:10, 7:10, 7:10] = True
    moved = np.roll(mask, 2, axis=0)
    near = segmentation_scores(moved, mask, match_distance=2.0)
    assert near["detection_f1"] == 1.0 and near["dice"] < 0.5
    assert segmentation_scores(moved, mask, match_distance=1.9)["detection_f1"] == 0.0
    um = segmentation_scores(moved, mask, match_distance=2.0, match_in_um=True, spacing_um=(5.0, 1.0, 1.0))
    assert um["detection_f1"] == 0.0
    assert "detection_f1" not in segmentation_scores(moved, mask)
