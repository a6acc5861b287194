"""Which boxes are chosen: the most uncertain that do not overlap, shared out over volumes."""

import itertools

import numpy as np
import pytest

from lsmfm_jax.predict.box_choice import best_boxes, box_means, padding_of, round_robin


def noisy(shape, seed=0, level=300):
    return np.random.default_rng(seed).normal(level, 10, shape).astype(np.uint16)


def test_means_of_boxes_are_those_of_each_box():
    values = np.random.default_rng(0).random((7, 9, 8)).astype(np.float32)
    means = box_means(values, (3, 9, 2))
    assert means.shape == (5, 1, 7)
    for z, x in itertools.product(range(5), range(7)):
        assert means[z, 0, x] == pytest.approx(values[z : z + 3, :, x : x + 2].mean(dtype=np.float64), abs=1e-12)


def test_the_most_uncertain_boxes_are_taken_without_overlap():
    rng = np.random.default_rng(1)
    uncertainty = rng.random((20, 24, 22)).astype(np.float32) * 0.1
    uncertainty[2:10, 3:11, 4:12] += 0.5
    uncertainty[11:19, 14:22, 13:21] += 0.4
    size = (8, 8, 8)
    found = best_boxes(uncertainty, noisy(uncertainty.shape), size=size, count=4)
    assert [corner for corner, _ in found[:2]] == [(2, 3, 4), (11, 14, 13)]
    # The first is the best of all places, looked for one by one.
    places = itertools.product(*(range(length - 7) for length in uncertainty.shape))
    every = [uncertainty[z : z + 8, y : y + 8, x : x + 8].mean(dtype=np.float64) for z, y, x in places]
    assert found[0][1] == pytest.approx(max(every), abs=1e-9)
    covered = np.zeros(uncertainty.shape, int)
    for (z, y, x), value in found:
        covered[z : z + 8, y : y + 8, x : x + 8] += 1
        assert value == pytest.approx(uncertainty[z : z + 8, y : y + 8, x : x + 8].mean(dtype=np.float64), abs=1e-9)
    assert covered.max() == 1 and covered.sum() == len(found) * 8**3
    assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)
    # A volume that is one box, and one in which no second fits.
    assert len(best_boxes(uncertainty[:8, :8, :8], noisy((8, 8, 8)), size=size, count=5)) == 1
    assert len(best_boxes(uncertainty[:12, :12, :12], noisy((12, 12, 12)), size=size, count=5)) == 1


def test_padding_is_left_out():
    image = noisy((24, 24, 48))
    uncertainty = np.zeros(image.shape, np.float32)
    uncertainty[:, :, :24] = 1.0  # only where there is nothing
    uncertainty[4:12, 4:12, 30:38] = 0.2
    for value in (0, 65535):
        image[:, :, :24] = value
        padding = padding_of(image)
        assert padding[:, :, :24].all() and not padding[:, :, 24:].any()
        for corner, _ in best_boxes(uncertainty, image, size=(8, 8, 8), count=5):
            assert (image[tuple(slice(start, start + 8) for start in corner)] == value).mean() <= 0.1
    # Single zeros are dark voxels, as in images of 8 bits.
    dark = np.random.default_rng(3).poisson(1.0, (12, 12, 12)).astype(np.uint8)
    assert (dark == 0).mean() > 0.3 and not padding_of(dark).any()


def test_sparse_bright_objects_on_a_dark_ground_give_boxes():
    # Uncertain at one object of several; a rule that took the objects alone for tissue would leave all boxes out.
    image = noisy((48, 48, 48), level=100)
    for place in (8, 24, 40):
        image[place - 2 : place + 2, place - 2 : place + 2, place - 2 : place + 2] = 5000
    uncertainty = np.zeros(image.shape, np.float32)
    uncertainty[20:28, 20:28, 20:28] = 0.5
    (corner, mean), *_ = best_boxes(uncertainty, image, size=(16, 24, 24), count=5)
    assert all(start <= 20 and start + side >= 28 for start, side in zip(corner, (16, 24, 24), strict=True))
    assert mean == pytest.approx(0.5 * 8**3 / (16 * 24 * 24))


def test_padding_alone_gives_no_box():
    image = np.zeros((24, 24, 24), np.uint16)
    image[:6, :6, :6] = noisy((6, 6, 6))
    assert best_boxes(np.ones(image.shape, np.float32), image, size=(12, 12, 12), count=3) == []


def test_groups_take_turns_and_the_last_round_goes_to_the_highest():
    groups = {"a": [0.9, 0.8, 0.7], "b": [0.3, 0.1], "c": [0.5, 0.4]}

    def taken(count, of=groups):
        return round_robin(of, count=count, value=lambda value: value)

    assert taken(5) == [("a", 0.9), ("c", 0.5), ("b", 0.3), ("a", 0.8), ("c", 0.4)]
    assert taken(2) == [("a", 0.9), ("c", 0.5)]
    # Where others have no more, one may have more than its share; and there may be too few.
    assert taken(9)[-1] == ("a", 0.7) and len(taken(9)) == 7
    assert taken(3, {"b": [0.2], "a": [0.2]}) == [("a", 0.2), ("b", 0.2)]
    assert taken(3, {"a": []}) == []
