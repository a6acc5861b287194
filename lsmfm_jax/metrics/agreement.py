"""Kendall's W: how far several judges put the same things into the same order."""

import numpy as np
from jaxtyping import Num

from lsmfm_jax.errors import InputError


def kendalls_w(ranks: Num[np.ndarray, "judges things"]) -> float:
    """Kendall's coefficient of concordance, corrected for ties.

    Judges who order at random have a W of 1 / judges on average: with two judges .5 is what chance gives.

    Args:
        ranks: the rank that each judge gave each thing, or any number that grows with it; equal numbers are ties.

    Returns:
        From 0 (no agreement) to 1 (all the same order); NaN with one judge, one thing, or where every judge ties all.

    Raises:
        InputError: NaN among the ranks.
    """
    ranks = np.asarray(ranks, np.float64)
    if np.isnan(ranks).any():
        raise InputError(f"{int(np.isnan(ranks).sum())} of {ranks.size} ranks are NaN: there is no agreement of them")
    judges, things = ranks.shape
    if judges < 2 or things < 2:
        return float("nan")
    ranked = np.array([_average_ranks(row) for row in ranks])
    ties = sum(float((counts**3 - counts).sum()) for counts in (np.unique(row, return_counts=True)[1] for row in ranks))
    sums = ranked.sum(axis=0)
    spread = float(((sums - sums.mean()) ** 2).sum())
    largest = judges**2 * (things**3 - things) - judges * ties
    return 12.0 * spread / largest if largest > 0 else float("nan")


def _average_ranks(row: Num[np.ndarray, " things"]) -> Num[np.ndarray, " things"]:
    """Ranks from 1; things that tie share the mean of the ranks that they take up."""
    _, which, counts = np.unique(row, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - 0.5 * (counts - 1))[which]
