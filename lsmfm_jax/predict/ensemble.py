"""Several finetuned segmentation runs as one predictor, whose probability is the mean of theirs.

Each run scales intensities by its own record, and has its own windows, cut-off and regression of voxels; what is
combined are the probabilities of whole volumes.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsmfm_jax.data.labels import label_values
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.network import Predictor, predictor_of
from lsmfm_jax.predict.windows import Size, WindowFunction
from lsmfm_jax.tasks.segment import LEFT_OUT
from lsmfm_jax.train.weights import Weights, read_weights


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Predictors whose mean is taken, and whose disagreement is the uncertainty.

    Attributes:
        members: two or more, all of segmentation and of the same label values.
        origin: folders and steps of their weights.
    """

    members: tuple[Predictor, ...]
    origin: str

    @property
    def task(self) -> str:
        """That of all members."""
        return self.members[0].task

    @property
    def record(self) -> dict[str, Any]:
        """What the first run wrote of itself: what labels mean in it is the same in all of them."""
        return self.members[0].record


def members_of(predictor: Predictor | Ensemble) -> tuple[Predictor, ...]:
    """The predictors whose mean is taken: those of an ensemble, or the one itself."""
    return predictor.members if isinstance(predictor, Ensemble) else (predictor,)


def load_ensemble(
    checkpoints: Sequence[pathlib.Path],
    *,
    window: Size | None = None,
    flips: bool = False,
    uncertainty: bool = False,
    xla: str | None = None,
    always_network: bool = False,
) -> Predictor | Ensemble:
    """Reads one finetuned run, or several that predict together.

    Args:
        checkpoints: their folders.
        window: ZYX voxels; None: each run has the patch size that it was trained on.
        flips: average over the eight flips of each window; several runs each do.
        uncertainty: of a single run with `flips`, take the flips for members, which gives an uncertainty.
        xla: flags of the compiler, a mode of `train.xla`; None: that of each run.
        always_network: networks count even where their run leaves them out of predictions (`predict.network_share`).

    Returns:
        The predictor of a single run, exactly as `load_predictor`, or else an ensemble.

    Raises:
        PredictionError: runs that cannot be combined, or as `load_predictor`.
        CheckpointError: there is no run, or it is damaged.
    """
    weights = [read_weights(checkpoint) for checkpoint in checkpoints]
    if always_network:
        for one in weights:
            one.record.pop(LEFT_OUT, None)
    return ensemble_of(weights, checkpoints, window=window, flips=flips, uncertainty=uncertainty, xla=xla)


def ensemble_of(
    weights: Sequence[Weights],
    checkpoints: Sequence[pathlib.Path],
    *,
    window: Size | None = None,
    flips: bool = False,
    uncertainty: bool = False,
    xla: str | None = None,
) -> Predictor | Ensemble:
    """As `load_ensemble`, of weights that were read from `checkpoints` before."""
    check_members(weights, checkpoints)
    if uncertainty and len(weights) == 1:
        if weights[0].record.get("task") != "segment":
            task = weights[0].record.get("task")
            raise PredictionError(f"--uncertainty: {checkpoints[0]} is of task {task!r}; only segmentation has one")
        if not flips:
            raise PredictionError(
                "--uncertainty: a single run has nobody to disagree with; name several with --checkpoint, or add --tta"
            )
    apart = uncertainty and len(weights) == 1
    members = [
        predictor_of(one, checkpoint, window=window, flips=flips and not apart, xla=xla)
        for one, checkpoint in zip(weights, checkpoints, strict=True)
    ]
    if apart:
        return Ensemble(flip_members(members[0]), members[0].origin)
    if len(members) == 1:
        return members[0]
    return Ensemble(tuple(members), f"the mean of {len(members)} runs ({', '.join(one.origin for one in members)})")


def flip_members(predictor: Predictor) -> tuple[Predictor, ...]:
    """A predictor on each of the eight flips of its windows, maps flipped back; the first is the predictor itself."""
    axes = itertools.chain.from_iterable(itertools.combinations((1, 2, 3), count) for count in range(4))
    return tuple(dataclasses.replace(predictor, apply=_on_flip(predictor.apply, one)) for one in axes)


def _on_flip(apply: WindowFunction, axes: tuple[int, ...]) -> WindowFunction:
    return lambda windows: np.flip(np.asarray(apply(np.flip(windows, axes))), axes)


def check_members(weights: Sequence[Weights], checkpoints: Sequence[pathlib.Path]) -> None:
    """Refuses runs whose probabilities are not of the same thing.

    Raises:
        PredictionError: a run named twice, several runs that are not of segmentation, of different tasks, or trained
            with different meanings of label values; it names two runs and what differs.
    """
    _check_distinct(checkpoints)
    first, *others = [one.record for one in weights]
    for record, checkpoint in zip(others, checkpoints[1:], strict=True):
        two = f"{checkpoints[0]} and {checkpoint} cannot be combined"
        tasks = [one.get("task") for one in (first, record)]
        if tasks[0] != tasks[1]:
            raise PredictionError(f"{two}: their tasks are {tasks[0]!r} and {tasks[1]!r}; name runs of one task")
        if tasks[0] != "segment":
            raise PredictionError(f"{two}: of task {tasks[0]!r}, and a mean is taken of segmentation alone; name one")
        meanings = [label_values(one.get("labels")).record() for one in (first, record)]
        for name in meanings[0]:
            ours, theirs = (tuple(sorted(one[name])) for one in meanings)
            if ours != theirs:
                raise PredictionError(
                    f"{two}: data.{name}_labels is {ours} in one and {theirs} in the other; name runs trained with the "
                    "same label values"
                )


def _check_distinct(checkpoints: Sequence[pathlib.Path]) -> None:
    seen: set[pathlib.Path] = set()
    for checkpoint in checkpoints:
        if checkpoint.resolve() in seen:
            raise PredictionError(f"{checkpoint}: named twice; name different runs, such as those of several seeds")
        seen.add(checkpoint.resolve())
