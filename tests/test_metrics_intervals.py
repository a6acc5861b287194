"""Bootstrap intervals against scipy, and what they do with few or dependent patches."""

import numpy as np
import pytest
from scipy import stats

from lsmfm_jax.metrics.intervals import bootstrap_difference, bootstrap_mean, bootstrap_seeds, bootstrap_statistic


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


def _draw(rng, *, seeds, volumes, patches, spread):
    """Tables of two methods with the same truth, 0, on the same patches, and the volume of each patch."""
    of_seed, of_volume, of_patch, of_value = spread
    count = volumes * patches
    shared = rng.normal(0, of_volume, volumes).repeat(patches) + rng.normal(0, of_patch, count)
    tables = [rng.normal(0, of_seed, (seeds, 1)) + shared + rng.normal(0, of_value, (seeds, count)) for _ in range(2)]
    return *tables, [f"v{number}" for number in range(volumes) for _ in range(patches)]


@pytest.mark.parametrize(
    ("seeds", "volumes", "spread", "averaged"),
    [(3, 8, (1, 1, 1, 1), 0.75), (5, 5, (0.5, 1, 1, 0.5), 0.9), (5, 20, (1, 1, 1, 0.5), 0.75)],
)
def test_intervals_over_seeds_hold_the_truth_as_often_as_they_say(seeds, volumes, spread, averaged):
    rng = np.random.default_rng(3)
    held = np.zeros(3)
    repeats = 250
    for number in range(repeats):
        a, b, groups = _draw(rng, seeds=seeds, volumes=volumes, patches=4, spread=spread)
        intervals = (
            bootstrap_seeds(a, volumes=groups, resamples=300, seed=number),
            bootstrap_difference(a, b, volumes=groups, resamples=300, seed=number),
            bootstrap_mean(a.mean(axis=0), groups=groups, resamples=300, seed=number),
        )
        held += [interval.low <= 0 <= interval.high for interval in intervals]
    # A share of 250 repeats has a standard error of 1.4 % at 95 %.
    assert (held[:2] / repeats >= 0.9).all(), held / repeats
    # What averaging the seeds first gives, as long as they differ at all.
    assert held[2] / repeats < averaged, held / repeats


def test_pairs_cancel_what_is_hard_for_both():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, 24)
    groups = [f"v{number // 3}" for number in range(24)]
    a = hard + 0.05 + rng.normal(0, 0.01, (3, 24))
    b = hard + rng.normal(0, 0.01, (4, 24))
    gain = bootstrap_difference(a, b, volumes=groups)
    assert gain.value == pytest.approx(a.mean() - b.mean()) and 0 < gain.low < 0.05 < gain.high < 0.1
    alone = [bootstrap_seeds(table, volumes=groups) for table in (a, b)]
    assert alone[0].low < alone[1].high and gain.high - gain.low < 0.1 * (alone[0].high - alone[0].low)
    order = rng.permutation(24)
    assert bootstrap_difference(a[:, order], b, volumes=groups).low < 0


def test_seeds_widen_an_interval_and_one_seed_says_nothing_of_others():
    rng = np.random.default_rng(1)
    table = rng.normal(0, 0.01, (3, 30)) + np.array([[0.0], [0.5], [1.0]])
    wide, narrow = bootstrap_seeds(table), bootstrap_seeds(table.mean(axis=0)[None])
    assert wide.value == pytest.approx(narrow.value) and wide.units == 30
    assert wide.high - wide.low > 20 * (narrow.high - narrow.low)


def test_tables_that_cannot_be_resampled():
    with pytest.raises(ValueError, match="6 patches against 5"):
        bootstrap_difference(np.zeros((2, 6)), np.zeros((2, 5)))
    with pytest.raises(ValueError, match="1 of 4 values are NaN"):
        bootstrap_seeds(np.array([[1.0, np.nan], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="no value"):
        bootstrap_seeds(np.zeros((0, 3)))
    two = bootstrap_seeds(np.ones((3, 4)), volumes=["a", "a", "b", "b"])
    assert two.value == 1 and np.isnan(two.low) and two.units == 2
    infinite = bootstrap_difference(np.full((1, 3), np.inf), np.zeros((1, 3)))
    assert np.isnan(infinite.low)
