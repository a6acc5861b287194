"""Means and paired differences over seeds, volumes and patches, and which claims hold when there are many of them.

A claim is that one arm is better than another, judged by the main metric of the task. Its p-value is that of the paired
bootstrap over seeds, volumes and patches. Of many claims some would look true by chance: Holm's method (1979) keeps the
chance of even one wrong verdict below 5 %, whatever the claims have to do with each other.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from lsmfm_jax.data.mask_folders import volume_of
from lsmfm_jax.experiment.scores import FOUND_CLASS, TRUE_CLASS, Scores
from lsmfm_jax.metrics.intervals import (
    Interval,
    Statistic,
    bootstrap_difference,
    bootstrap_seeds,
    difference_p_value,
    weighted_mean,
)

LEVEL = 0.05
# Holm multiplies the smallest p by the number of claims, and 2,000 resamples cannot tell .001 from less.
P_RESAMPLES = 20_000


def summary(runs: Sequence[Scores]) -> dict[str, Any]:
    """Means over seeds and patches, with intervals that resample seeds, and patches or whole volumes.

    A distance to an empty mask is infinite, and so is its mean: null here. Of one volume there is no interval over
    volumes, and none is named.
    """
    patches = list(runs[0])
    volumes = [volume_of(patch) for patch in patches]
    found: dict[str, Any] = {}
    for metric in runs[0][patches[0]]:
        table = table_of(runs, patches, metric)
        found[metric] = {
            "mean": _finite(table.mean()),
            **_intervals(bootstrap_seeds(table), bootstrap_seeds(table, volumes=volumes), volumes),
            "of_seeds": [_finite(value) for value in table.mean(axis=1)],
        }
    return found


def gains(
    runs: Sequence[Scores],
    reference: Sequence[Scores],
    *,
    metrics: Sequence[str] | None = None,
    paired: bool = False,
) -> dict[str, Any]:
    """What a start gains over another on the same patches: means, and intervals of the paired differences.

    The intervals resample seeds, and patches or whole volumes; of one volume there is none over volumes.

    Args:
        runs: scores of each seed.
        reference: those of what is compared with.
        metrics: which ones; None: all.
        paired: the runs of both sides belong together one by one, because they learnt from the same draw of training
            patches; else the seeds of the two sides are drawn each by itself.
    """
    patches = list(runs[0])
    volumes = [volume_of(patch) for patch in patches]
    found: dict[str, Any] = {}
    for metric in metrics or runs[0][patches[0]]:
        ours, theirs = (table_of(of, patches, metric) for of in (runs, reference))
        if paired:
            resampled = functools.partial(bootstrap_seeds, _difference(ours, theirs))
        else:
            resampled = functools.partial(bootstrap_difference, ours, theirs)
        interval = resampled(volumes=volumes)
        found[metric] = {"mean": _finite(interval.value), **_intervals(resampled(), interval, volumes)}
    return found


def _difference(a: Float[np.ndarray, "s n"], b: Float[np.ndarray, "t n"]) -> Float[np.ndarray, "s n"]:
    """Run by run; where both are infinite (distances to empty masks) they are level."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} runs cannot be paired")
    return np.subtract(a, b, out=np.zeros_like(a), where=a != b)


def table_of(runs: Sequence[Scores], patches: Sequence[str], metric: str) -> Float[np.ndarray, "s n"]:
    """One metric, a row for each seed and a column for each patch."""
    return np.array([[scores[patch][metric] for patch in patches] for scores in runs])


def metric_table(
    runs: Sequence[Scores], patches: Sequence[str], metric: str
) -> tuple[Float[np.ndarray, "s n"], Statistic]:
    """What to resample for a metric, and what is taken of it: of macro F1 the classes, else the metric itself."""
    if metric != "macro_f1":
        return table_of(runs, patches, metric), weighted_mean
    truth = table_of(runs[:1], patches, TRUE_CLASS)[0]
    return table_of(runs, patches, FOUND_CLASS), functools.partial(_macro_f1, truth=truth)


def mean_of(runs: Sequence[Scores], patches: Sequence[str], metric: str, volumes: Sequence[str]) -> Interval:
    """A metric over seeds and patches, with its 95 % interval over seeds and volumes."""
    table, statistic = metric_table(runs, patches, metric)
    return bootstrap_seeds(table, volumes=volumes, statistic=statistic)


def difference_of(
    runs: Sequence[Scores], reference: Sequence[Scores], patches: Sequence[str], metric: str, volumes: Sequence[str]
) -> Interval:
    """What an arm has more than another on the same patches, with its interval."""
    (a, statistic), (b, _) = metric_table(runs, patches, metric), metric_table(reference, patches, metric)
    return bootstrap_difference(a, b, volumes=volumes, statistic=statistic)


def p_value_of(
    runs: Sequence[Scores], reference: Sequence[Scores], patches: Sequence[str], metric: str, volumes: Sequence[str]
) -> float:
    """The p-value of this difference, from so many resamples that their number does not limit it."""
    (a, statistic), (b, _) = metric_table(runs, patches, metric), metric_table(reference, patches, metric)
    return difference_p_value(a, b, volumes=volumes, statistic=statistic, resamples=P_RESAMPLES)


def _macro_f1(
    found: Float[np.ndarray, "s n"], patches: Float[np.ndarray, "r n"], *, truth: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "r s"]:
    """Macro F1 as `metrics.classification` has it: over the classes that some drawn patch has or is taken for."""
    classes = np.unique(np.concatenate([truth, found.ravel()]))
    total, present = np.zeros((len(patches), len(found))), np.zeros((len(patches), len(found)))
    for one in classes:
        is_true, is_found = (truth == one).astype(float), (found == one).astype(float)
        right = patches @ (is_true * is_found).T
        either = (patches @ is_true)[:, None] + patches @ is_found.T
        total += np.where(either > 0, 2 * right / np.where(either > 0, either, 1), 0)
        present += either > 0
    return total / present


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: a claim holds at 5 % together with the others where its own is below .05.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none is smaller than one before it, none above
    1. NaN, where nothing could be resampled, stays NaN and counts as no claim.

    Args:
        p_values: one for each claim.
    """
    known = [index for index, value in enumerate(p_values) if not np.isnan(value)]
    adjusted = [float("nan")] * len(p_values)
    least = 0.0
    for rank, index in enumerate(sorted(known, key=lambda index: p_values[index])):
        least = max(least, min(1.0, (len(known) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def verdict(difference: float, adjusted: float) -> str:
    """What can be said of a claim after the correction."""
    if np.isnan(adjusted):
        return "cannot be told: fewer than 3 test volumes"
    if adjusted >= LEVEL:
        return "not shown"
    return "better" if difference > 0 else "worse"


def _intervals(over_patches: Interval, over_volumes: Interval, volumes: Sequence[str]) -> dict[str, list[float | None]]:
    found = {"seeds_and_patches_95": _limits(over_patches)}
    if len(set(volumes)) > 1:  # one volume says nothing about others
        found["seeds_and_volumes_95"] = _limits(over_volumes)
    return found


def _limits(interval: Interval) -> list[float | None]:
    return [_finite(interval.low), _finite(interval.high)]


def _finite(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
