"""Points, distributions, intervals and agreement from the rankings of experts.

The best of k methods gets k - 1 points, the worst 0. An expert's own figures are of the cases that he or she finished.
Figures of all experts together are of the cases that everybody finished: else an expert who stopped early would weigh
less in some cases than in others, and a hard case could count for one method and not for another.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lsmfm_jax.metrics.agreement import kendalls_w
from lsmfm_jax.metrics.intervals import Interval, bootstrap_difference, bootstrap_seeds
from lsmfm_jax.ranking.cases import RankingError
from lsmfm_jax.ranking.results import ExpertRanking, Key

ALL = "all experts"


class MethodScore(NamedTuple):
    """How one method fared, with one expert or with all.

    Attributes:
        expert: name, or `ALL`.
        cases: that count.
        places: how often it was best, next, ..., worst; for `ALL` summed over experts.
        over_cases: mean points; the interval is over experts and cases.
        over_volumes: the same mean; the interval is over experts, volumes and the cases of each volume.
    """

    method: str
    expert: str
    cases: int
    places: tuple[int, ...]
    over_cases: Interval
    over_volumes: Interval


class Difference(NamedTuple):
    """Mean points of the first method minus those of the second, over experts and cases that were drawn for both."""

    first: str
    second: str
    over_cases: Interval
    over_volumes: Interval


class Agreement(NamedTuple):
    """Kendall's W between experts.

    Attributes:
        by_case: of each case that all finished.
        mean: over these cases.
        chance: what experts who order at random have on average: 1 / experts.
        overall: of the mean points that each expert gave each method.
    """

    by_case: dict[str, float]
    mean: float
    chance: float
    overall: float


class Scores(NamedTuple):
    """All figures; `common` are the cases that all experts finished, `notes` what was left out."""

    key: Key
    experts: list[ExpertRanking]
    common: tuple[str, ...]
    methods: list[MethodScore]
    differences: list[Difference]
    agreement: Agreement
    notes: list[str]


def score(key: Key, experts: Sequence[ExpertRanking], *, seed: int = 0) -> Scores:
    """Score the rankings of experts.

    Args:
        key: of the kit.
        experts: as `read_results` gives them; at least one.
        seed: of the bootstrap.

    Raises:
        RankingError: no case was finished by all experts.
    """
    common = tuple(case.name for case in key.cases if all(case.name in one.orders for one in experts))
    if not common:
        few = min(experts, key=lambda one: len(one.orders))
        raise RankingError(
            f"no case was finished by all {len(experts)} experts; the fewest are in {few.path} ({len(few.orders)}): "
            "leave that file out, or ask the expert to go on"
        )
    volumes = {case.name: case.volume for case in key.cases}
    found: list[MethodScore] = []
    for one in experts:
        own = tuple(case.name for case in key.cases if case.name in one.orders)
        found += _method_scores(key, [one], own, volumes, expert=one.expert, seed=seed)
    found += _method_scores(key, experts, common, volumes, expert=ALL, seed=seed)
    table = points(key, experts, common)
    of_volume = [volumes[name] for name in common]
    differences = [
        Difference(
            key.methods[a],
            key.methods[b],
            bootstrap_difference(table[a], table[b], seed=seed),
            bootstrap_difference(table[a], table[b], volumes=of_volume, seed=seed),
        )
        for a, b in itertools.combinations(range(len(key.methods)), 2)
    ]
    return Scores(key, list(experts), common, found, differences, _agreement(table, common), _notes(experts, common))


def points(key: Key, experts: Sequence[ExpertRanking], cases: Sequence[str]) -> Int[np.ndarray, "k s n"]:
    """Points of each method from each expert in each case; all experts have finished all of these cases."""
    best = len(key.methods) - 1
    rows = [[[best - one.orders[case].index(method) for case in cases] for one in experts] for method in key.methods]
    return np.array(rows, np.int64).reshape(len(key.methods), len(experts), len(cases))


def _method_scores(
    key: Key,
    experts: Sequence[ExpertRanking],
    cases: Sequence[str],
    volumes: dict[str, str],
    *,
    expert: str,
    seed: int,
) -> list[MethodScore]:
    if not cases:
        return []
    of_volume = [volumes[name] for name in cases]
    best = len(key.methods) - 1
    return [
        MethodScore(
            method,
            expert,
            len(cases),
            tuple(int((table == best - place).sum()) for place in range(best + 1)),
            bootstrap_seeds(table, seed=seed),
            bootstrap_seeds(table, volumes=of_volume, seed=seed),
        )
        for method, table in zip(key.methods, points(key, experts, cases), strict=True)
    ]


def _agreement(table: Int[np.ndarray, "k s n"], cases: Sequence[str]) -> Agreement:
    by_case = {case: kendalls_w(table[:, :, number].T) for number, case in enumerate(cases)}
    experts = table.shape[1]
    means: Float[np.ndarray, "s k"] = table.mean(axis=2).T
    return Agreement(by_case, float(np.mean(list(by_case.values()))), 1.0 / experts, kendalls_w(means))


def _notes(experts: Sequence[ExpertRanking], common: Sequence[str]) -> list[str]:
    notes = [
        f"{one.expert} did not finish {len(one.unfinished)} of {len(one.unfinished) + len(one.orders)} cases; they are "
        f"left out: {', '.join(one.unfinished)}"
        for one in experts
        if one.unfinished
    ]
    if notes and len(experts) > 1:
        notes.append(f"figures of all experts are of the {len(common)} cases that everybody finished")
    if len(experts) == 1:
        notes.append("one expert: the intervals say nothing of what other experts would find")
    return notes
