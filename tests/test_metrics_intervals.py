"""Bootstrap intervals against scipy, and what they do with few or dependent patches."""

import numpy as np
import pytest
from scipy import stats

from lsmfm_jax.metrics.intervals import bootstrap_mean, bootstrap_statistic


def test_limits_equal_the_percentile_bootstrap_of_scipy():
    values = np.random.default_rng(0).uniform(size=40)
    ours = bootstrap_mean(values, resamples=20000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20000, rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)
    assert ours.units == 40


def test_alike_patches_of_a_volume_widen_the_interval_over_volumes():
    centres = np.random.default_rng(1).uniform(size=8)
    values, groups = np.repeat(centres, 10), [f"v{k}" for k in np.repeat(range(8), 10)]
    patches, volumes = bootstrap_mean(values), bootstrap_mean(values, groups=groups)
    assert volumes.units == 8 and patches.units == 80
    assert volumes.value == patches.value
    ratio = (volumes.high - volumes.low) / (patches.high - patches.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)


def test_volumes_of_one_patch_each_are_patches():
    values = np.random.default_rng(2).uniform(size=12)
    groups = [f"v{k:02}" for k in range(12)]
    assert bootstrap_mean(values, groups=groups) == bootstrap_mean(values)


def test_the_same_seed_gives_the_same_limits():
    values = np.random.default_rng(3).uniform(size=9)
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_units_have_a_mean_and_no_limits(n):
    interval = bootstrap_mean(np.arange(n))
    assert interval.value == (n - 1) / 2
    assert np.isnan(interval.low) and np.isnan(interval.high)
    two_volumes = bootstrap_mean(np.arange(6), groups=list("aaabbb"))
    assert two_volumes.units == 2 and np.isnan(two_volumes.low)


def test_infinite_values_have_no_limits():
    interval = bootstrap_mean(np.array([1.0, 2.0, np.inf, 3.0]))
    assert interval.value == np.inf and np.isnan(interval.low)


def test_what_has_no_mean_is_an_error():
    with pytest.raises(ValueError, match="1 of 3 values are NaN"):
        bootstrap_mean(np.array([1.0, np.nan, 2.0]))
    with pytest.raises(ValueError, match="no value"):
        bootstrap_mean(np.array([]))
    with pytest.raises(ValueError, match="3 values came with 2 groups"):
        bootstrap_mean(np.ones(3), groups=["a", "b"])


def test_a_statistic_that_is_a_mean_has_the_interval_of_the_mean():
    values = np.random.default_rng(4).uniform(size=30)
    ours = bootstrap_statistic(lambda index: float(values[index].mean()), 30, resamples=4000)
    mean = bootstrap_mean(values, resamples=4000)
    width = mean.high - mean.low
    assert ours.value == pytest.approx(mean.value)
    assert ours.low == pytest.approx(mean.low, abs=0.05 * width)
    assert ours.high == pytest.approx(mean.high, abs=0.05 * width)


def test_a_statistic_over_volumes_keeps_their_patches_together():
    groups = ["a", "b", "a", "c", "c", "c"]
    seen = []
    bootstrap_statistic(lambda i: seen.append(np.sort(i)) or 0.0, 6, groups=groups, resamples=50)
    for index in seen[1:]:
        counts = np.bincount(index, minlength=6)
        assert counts[0] == counts[2] and counts[3] == counts[4] == counts[5]
        assert counts[0] + counts[1] + counts[3] == 3
