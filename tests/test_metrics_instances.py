"""Instance metrics on examples with known answers, and against scipy and an exhaustive search."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from lsmfm_jax.metrics import instances


def boxes(*corners: tuple[int, int, int], side: int = 3, shape=(12, 12, 24)) -> np.ndarray:
    """A label image with a cube at each corner, numbered from 1."""
    labels = np.zeros(shape, np.int32)
    for number, (z, y, x) in enumerate(corners, start=1):
        labels[z : z + side, y : y + side, x : x + side] = number
    return labels


@pytest.mark.parametrize(("connectivity", "rank"), [(6, 1), (18, 2), (26, 3)])
def test_components_equal_scipy(connectivity, rank):
    mask = np.random.default_rng(0).uniform(size=(12, 13, 14)) > 0.8
    expected, count = ndimage.label(mask, ndimage.generate_binary_structure(3, rank))
    got = instances.components(mask, connectivity=connectivity)
    assert got.max() == count
    pairs = np.unique(np.stack([got[mask], expected[mask]]), axis=1)
    assert pairs.shape[1] == count


def test_two_cubes_that_touch_at_a_corner_are_one_only_with_26_neighbours():
    mask = boxes((0, 0, 0), (3, 3, 3)) > 0
    assert [instances.components(mask, connectivity=c).max() for c in (6, 18, 26)] == [2, 2, 1]


def test_the_minimum_size_drops_specks_and_renumbers():
    mask = boxes((0, 0, 0), (6, 6, 6)) > 0
    mask[0, 11, 20] = True
    assert instances.components(mask).max() == 3
    labels = instances.components(mask, minimum_voxels=2)
    assert sorted(np.unique(labels)) == [0, 1, 2]
    assert labels[0, 11, 20] == 0
    assert instances.components(mask, minimum_voxels=28).max() == 0


def test_renumber_keeps_instances_of_a_label_image_apart():
    labels = np.zeros((2, 2, 6), np.uint16)
    labels[..., 0:2], labels[..., 2:4], labels[0, 0, 5] = 500, 7, 65535
    got = instances.renumber(labels, minimum_voxels=2)
    np.testing.assert_array_equal(got[0, 0], [2, 2, 1, 1, 0, 0])


def test_an_unknown_connectivity_is_an_error():
    with pytest.raises(ValueError, match="connectivity is 8"):
        instances.components(np.zeros((2, 2, 2), bool), connectivity=8)


def test_scores_of_two_hits_a_miss_and_a_false_alarm():
    truth = boxes((0, 0, 0), (0, 0, 8), (6, 6, 0))
    prediction = boxes((0, 0, 0), (0, 0, 9), (6, 6, 16))  # exact, moved by one (Dice 2/3), elsewhere
    scores = instances.instance_scores(prediction, truth)
    assert scores == pytest.approx(
        {
            "panoptic_quality": (1 + 2 / 3) / 3,
            "recognition_quality": 2 / 3,
            "segmentation_quality": 5 / 6,
            "true_positives": 2,
            "false_positives": 1,
            "false_negatives": 1,
        }
    )
    assert instances.instance_scores(prediction, truth, match_dice=0.7)["true_positives"] == 1


def test_a_match_needs_the_threshold_or_more():
    truth = boxes((0, 0, 0), side=10)
    prediction = np.zeros_like(truth)
    prediction[:10, :10, 7:17] = 1  # Dice 0.3
    assert instances.instance_scores(prediction, truth, match_dice=0.3)["true_positives"] == 1
    assert instances.instance_scores(prediction, truth, match_dice=0.301)["true_positives"] == 0


def test_a_split_and_a_merge_match_once():
    whole = np.zeros((4, 4, 12), np.int32)
    whole[..., :10] = 1
    halves = np.zeros_like(whole)
    halves[..., :5], halves[..., 5:10] = 1, 2
    for prediction, truth, missed in (
        (halves, whole, "false_positives"),
        (whole, halves, "false_negatives"),
    ):
        scores = instances.instance_scores(prediction, truth)
        assert (scores["true_positives"], scores[missed]) == (1, 1)
        assert scores["segmentation_quality"] == pytest.approx(2 / 3)


def test_the_matching_is_optimal_where_the_greedy_one_is_not():
    # The best single pair (1, 1) of Dice .61 leaves nothing; (1, 2) of .52 and (2, 1) of .46 go together.
    truth, prediction = np.zeros((2, 1, 1, 24), np.int32)
    truth[..., 0:10], truth[..., 10:20] = 1, 2
    prediction[..., 3:16], prediction[..., 0:3] = 1, 2
    predicted, true, dice = instances.overlaps(prediction, truth)
    table = dict(zip(zip(predicted.tolist(), true.tolist(), strict=True), dice.tolist(), strict=True))
    best_pair = max(table, key=table.get)
    greedy = table[best_pair] + sum(d for (p, t), d in table.items() if p != best_pair[0] and t != best_pair[1])
    _, _, matched = instances.match(prediction, truth, match_dice=0.3)
    assert matched.sum() == pytest.approx(12 / 23 + 6 / 13)
    assert matched.sum() > greedy + 0.3


@pytest.mark.parametrize("seed", range(6))
def test_matching_equals_an_exhaustive_search(seed):
    random = np.random.default_rng(seed)
    prediction, truth = np.repeat(random.integers(0, 5, (2, 3, 3, 4)).astype(np.int32), 2, axis=3)
    predicted, true, dice = instances.overlaps(prediction, truth)
    table = np.zeros((5, 5))
    table[predicted, true] = np.where(dice >= 0.15, dice, 0)
    best = max(
        sum(table[p, t] for p, t in zip(range(1, 5), order, strict=True))
        for order in itertools.permutations(range(1, 5))
    )
    rows, columns, matched = instances.match(prediction, truth, match_dice=0.15)
    assert matched.sum() == pytest.approx(best)
    assert len(set(rows)) == len(rows) and len(set(columns)) == len(columns)
    np.testing.assert_allclose(table[rows, columns], matched)


def test_overlaps_equal_a_count_voxel_by_voxel():
    random = np.random.default_rng(9)
    prediction, truth = random.integers(0, 4, (2, 5, 6, 7)).astype(np.int32)
    for p, t, dice in zip(*instances.overlaps(prediction, truth), strict=True):
        one, other = prediction == p, truth == t
        assert dice == pytest.approx(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_nothing_to_find_and_nothing_found():
    empty, one = np.zeros((4, 4, 4), np.int32), boxes((0, 0, 0), shape=(4, 4, 4))
    qualities = ("panoptic_quality", "recognition_quality", "segmentation_quality")
    assert [instances.instance_scores(empty, empty)[q] for q in qualities] == [1.0, 1.0, 1.0]
    for prediction, truth in ((empty, one), (one, empty)):
        assert [instances.instance_scores(prediction, truth)[q] for q in qualities] == [0.0, 0.0, 0.0]


# What panoptica 2.1.7 (numpy 2.2, its cc3d components, NaiveThresholdMatching by Dice at 0.3) gives for the
# masks of the test below: instances predicted and true, matches, RQ, SQ with Dice, PQ with Dice.
PANOPTICA = {
    0: (46, 44, 25, 0.5555555556, 0.6286637310, 0.3492576283),
    1: (39, 40, 21, 0.5316455696, 0.5884354469, 0.3128390983),
    5: (55, 42, 23, 0.4742268041, 0.5693900520, 0.2700200247),
}


@pytest.mark.parametrize("seed", PANOPTICA)
def test_scores_equal_panoptica(seed):
    def smooth_noise(number: int) -> np.ndarray:
        return ndimage.gaussian_filter(np.random.default_rng(number).normal(size=(40, 40, 40)), 2.0)

    true = smooth_noise(seed)
    predicted = true + 0.6 * smooth_noise(seed + 100)
    truth, prediction = (instances.components(x > np.quantile(x, 0.9)) for x in (true, predicted))
    scores = instances.instance_scores(prediction, truth)
    got = (
        prediction.max(),
        truth.max(),
        *(scores[name] for name in ("true_positives", "recognition_quality")),
        *(scores[name] for name in ("segmentation_quality", "panoptic_quality")),
    )
    assert got == pytest.approx(PANOPTICA[seed], abs=1e-9)


def test_count_dice_paper_counts_and_does_not_match():
    truth = boxes((0, 0, 0), (6, 6, 0), (0, 6, 8)) > 0
    prediction = boxes((0, 0, 12), (6, 6, 12)) > 0
    assert instances.count_dice_paper(prediction, truth) == pytest.approx(2 * 2 / 5)
    assert instances.count_dice_paper(np.roll(truth, 4, axis=2), truth) == 1.0
    empty = np.zeros_like(truth)
    assert instances.count_dice_paper(empty, empty) == 1.0
    assert instances.count_dice_paper(empty, truth) == 0.0
