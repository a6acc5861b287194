"""Bootstrap confidence intervals, over patches and over the volumes that the patches come from.

Patches of one volume resemble each other, so resampling patches makes intervals too narrow; resampling whole
volumes (the cluster bootstrap) does not pretend that they are independent. Intervals are percentile intervals
from a seeded generator. With fewer than three units there is nothing to resample, and the limits are NaN;
with fewer than about ten an interval is too narrow: a hint at the spread rather than a 95 % statement.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

MINIMUM_UNITS = 3


class Interval(NamedTuple):
    """A value and where it may lie.

    Attributes:
        value: on the whole sample.
        low: lower limit; NaN with fewer than `MINIMUM_UNITS` units.
        high: upper limit.
        units: patches or volumes that were resampled.
    """

    value: float
    low: float
    high: float
    units: int


def bootstrap_mean(
    values: Num[np.ndarray, " n"],
    *,
    groups: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean over patches with its interval.

    The value is the mean over patches in either case; `groups` only change what is resampled.

    Args:
        values: one per patch; infinite ones make the limits NaN.
        groups: None to resample patches; the volume of each patch to resample volumes with all their patches.
        confidence: of the interval.
        resamples: bootstrap samples.
        seed: of the generator.

    Raises:
        ValueError: without a value, with a NaN among them, or with another number of groups than values.
    """
    values = np.asarray(values, np.float64)
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} of {len(values)} values are NaN: there is no mean of them")
    units = _units(len(values), groups)
    mean = float(values.mean())
    if len(units) < MINIMUM_UNITS or not np.isfinite(values).all():
        return Interval(mean, float("nan"), float("nan"), len(units))
    sums = np.array([values[unit].sum() for unit in units])
    counts = np.array([len(unit) for unit in units])
    draws = np.random.default_rng(seed).integers(0, len(units), (resamples, len(units)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    return Interval(mean, *_limits(means, confidence), len(units))


def bootstrap_statistic(
    statistic: Callable[[Int[np.ndarray, " m"]], float],
    samples: int,
    *,
    groups: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Interval of a statistic that is no mean over patches, such as macro F1.

    Args:
        statistic: of the samples with these positions, which may repeat.
        samples: how many there are.
        groups: see `bootstrap_mean`.
        confidence: see `bootstrap_mean`.
        resamples: see `bootstrap_mean`.
        seed: see `bootstrap_mean`.
    """
    units = _units(samples, groups)
    value = float(statistic(np.arange(samples)))
    if len(units) < MINIMUM_UNITS:
        return Interval(value, float("nan"), float("nan"), len(units))
    random = np.random.default_rng(seed)
    drawn = (random.integers(0, len(units), len(units)) for _ in range(resamples))
    results = np.array([statistic(np.concatenate([units[i] for i in draw])) for draw in drawn])
    return Interval(value, *_limits(results, confidence), len(units))


def _units(samples: int, groups: Sequence[str] | None) -> list[Int[np.ndarray, " m"]]:
    """Positions of the samples of each unit, in an order that does not depend on that of the samples."""
    if samples == 0:
        raise ValueError("there is no value to take a mean of")
    if groups is None:
        return list(np.arange(samples)[:, None])
    if len(groups) != samples:
        raise ValueError(f"{samples} values came with {len(groups)} groups: give one group per value")
    names, which = np.unique(np.asarray(groups), return_inverse=True)
    return [np.flatnonzero(which == k) for k in range(len(names))]


def _limits(results: Float[np.ndarray, " r"], confidence: float) -> tuple[float, float]:
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(results, [tail, 1.0 - tail])
    return float(low), float(high)
