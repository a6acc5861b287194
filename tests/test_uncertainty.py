"""Uncertainty in bits: its limits, and entropies computed by another library."""

import numpy as np
import pytest
from scipy import stats

from lsmfm_jax.predict.uncertainty import binary_entropy, mean_probability, mutual_information


def random_maps(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.random((4, 5, 6)).astype(np.float32) ** power for power in range(1, count + 1)]


@pytest.mark.parametrize("count", [2, 3, 5, 7, 8])
def test_members_that_agree_exactly_are_certain_of_each_other(count):
    # With ends, and numbers whose sum is rounded.
    probability = np.concatenate([[0.0, 1.0, 0.5, 1e-30, 1 / 3], np.random.default_rng(1).random(55)])
    probability = probability.astype(np.float32).reshape(3, 4, 5)
    information = mutual_information([probability] * count)
    assert information.dtype == np.float32
    np.testing.assert_array_equal(information, np.zeros((3, 4, 5)))
    np.testing.assert_array_equal(mean_probability([probability] * count), probability)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_half_saying_no_and_half_yes_is_one_bit(count):
    shape = (2, 3, 4)
    members = [np.full(shape, number % 2, np.float32) for number in range(count)]
    np.testing.assert_array_equal(mutual_information(members), np.ones(shape))
    # Two of three: the entropy of one third.
    three = [np.full(shape, value, np.float32) for value in (0, 1, 1)]
    np.testing.assert_allclose(mutual_information(three), stats.entropy([1 / 3, 2 / 3], base=2), rtol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_it_is_the_entropy_of_the_mean_minus_the_mean_of_the_entropies(count):
    members = random_maps(count)
    each = np.stack(members).astype(np.float64)
    mean = each.mean(axis=0)
    entropy = stats.entropy([mean, 1 - mean], base=2, axis=0)
    entropies = stats.entropy(np.stack([each, 1 - each]), base=2, axis=0)
    expected = entropy - entropies.mean(axis=0)
    found = mutual_information(members)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert found.min() > 0 and found.max() < 1 and np.ptp(found) > 0.05
    np.testing.assert_allclose(mean_probability(members), mean, rtol=1e-6)


def test_entropy_of_a_single_probability():
    (probability,) = random_maps(1, seed=3)
    probability[0, 0, :3] = 0, 1, 0.5
    pairs = np.stack([probability, 1 - probability]).astype(np.float64)
    entropy = binary_entropy(probability)
    np.testing.assert_allclose(entropy, stats.entropy(pairs, base=2, axis=0), atol=1e-6)
    assert entropy.dtype == np.float32 and entropy[0, 0, :3].tolist() == [0, 0, 1]
