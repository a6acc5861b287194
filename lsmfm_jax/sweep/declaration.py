"""What a sweep is: a recipe, the keys that are searched, and what is to become as small or large as it can."""

import dataclasses
import math
from typing import Any

from lsmfm_jax.config.declared import declared
from lsmfm_jax.errors import LsmfmError

COMMANDS = ("pretrain", "finetune")


class SweepError(LsmfmError, ValueError):
    """A sweep cannot be run as declared, or not in this folder: what, what is allowed, what to do."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers between two, both included.

    Attributes:
        low: the smallest.
        high: the largest.
        log: drawn evenly on a logarithmic axis; for what ranges over orders of magnitude.
    """

    low: float
    high: float
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values: numbers, texts, True and False, or tuples of them.

    Attributes:
        values: in any order.
    """

    values: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A search.

    Attributes:
        name: for the page.
        command: `pretrain` or `finetune`.
        recipe: what `--config` takes.
        space: keys of the configuration with what they may be.
        metric: of the validation, as in `metrics.jsonl`. It must mean the same for all settings: the `loss` of
            pretraining does, as its validation has weights of its own (`report.*`).
        higher_is_better: whether it is to be large.
        overrides: keys of the recipe that are others in all runs.
        trials: runs in all.
        first_trials: that are drawn at random and never stopped early.
        seed: of the search.
    """

    name: str
    command: str
    recipe: str
    space: dict[str, Range | Choice]
    metric: str
    higher_is_better: bool
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    trials: int = 40
    first_trials: int = 8
    seed: int = 1


def load_sweep(spec: str) -> Sweep:
    """Reads `FILE[:VARIANT]`: one of the package by name, or a Python file that defines `get_sweep(variant="")`.

    Raises:
        SweepError: no such file, a mistake in it, or a search that cannot be run.
    """
    sweep = declared(spec, folder="sweeps", function="get_sweep", kind=Sweep, error=SweepError)
    check(sweep)
    return sweep


def check(sweep: Sweep) -> None:
    """Refuses a search that cannot be run, before anything is written.

    Raises:
        SweepError: names the entry, its value and what is allowed.
    """
    if sweep.command not in COMMANDS:
        raise SweepError(f"{sweep.name}: command is {sweep.command!r}; allowed: {', '.join(COMMANDS)}")
    if not sweep.space:
        raise SweepError(f"{sweep.name}: space is empty; name at least one key")
    if sweep.trials < 1 or sweep.first_trials < 1:
        raise SweepError(
            f"{sweep.name}: trials {sweep.trials}, first_trials {sweep.first_trials}; both must be 1 or more"
        )
    for key, values in sweep.space.items():
        if key in sweep.overrides:
            raise SweepError(f"{sweep.name}: {key} is searched and fixed in overrides; take it out of one")
        if isinstance(values, Choice):
            if len(values.values) < 2 or len(set(map(repr, values.values))) < len(values.values):
                raise SweepError(f"{sweep.name}: {key}: choices {values.values}; two different ones are needed")
            continue
        finite = math.isfinite(values.low) and math.isfinite(values.high)
        if not finite or values.low >= values.high or (values.log and values.low <= 0):
            raise SweepError(
                f"{sweep.name}: {key}: {values.low} to {values.high}{' (log)' if values.log else ''}; two finite "
                "numbers are needed, the smaller one first, above 0 for log"
            )
        if type(values.low) is not type(values.high):
            raise SweepError(f"{sweep.name}: {key}: {values.low!r} and {values.high!r}; both integers or both not")


def as_record(sweep: Sweep) -> dict[str, Any]:
    """What must stay the same for a sweep to go on, as JSON values; the number of trials may grow."""
    space = {key: repr(values) for key, values in sweep.space.items()}
    fixed = {key: repr(value) for key, value in sweep.overrides.items()}
    names = ("command", "recipe", "metric", "higher_is_better", "seed")
    return {**{name: getattr(sweep, name) for name in names}, "space": space, "overrides": fixed}
