"""The training loop, blind to what is trained: steps, validations, pictures, checkpoints, and when to stop."""

import collections
import contextlib
import dataclasses
import enum
import logging
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lsmfm_jax.train.checkpoint import Checkpoints, Restored
from lsmfm_jax.train.sharding import put_batch, replicated
from lsmfm_jax.train.signals import StopRequest
from lsmfm_jax.train.state import TrainState
from lsmfm_jax.train.task import PyTree, Task
from lsmfm_jax.train.tracking import Tracker

log = logging.getLogger(__name__)


class Ending(enum.Enum):
    """Why a run ended."""

    FINISHED = "all epochs done"
    PATIENCE = "no better validation for the epochs of train.patience_epochs"
    STOPPED = "asked to stop by a signal"


class NonFiniteError(RuntimeError):
    """Too many non-finite steps in a row; the message names the samples."""


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """When the loop does what; see `train.*` in the schema of configurations."""

    epochs: int
    steps_per_epoch: int
    patience_epochs: int
    log_every_steps: int
    validate_every_epochs: int
    pictures_every_epochs: int
    checkpoint_every_epochs: int
    max_bad_steps: int
    spike_factor: float
    on_disk_full: str
    monitor: str
    higher_is_better: bool

    @property
    def total_steps(self) -> int:
        """Optimiser steps of a run that goes to its end."""
        return self.epochs * self.steps_per_epoch


@dataclasses.dataclass
class Best:
    """The best validation so far."""

    value: float | None = None
    epoch: int = 0


@dataclasses.dataclass(frozen=True)
class Run:
    """All that the loop needs of one run.

    Attributes:
        task: the functions of the task.
        step: compiled `(state, batch) -> (state, metrics)`; donates the state.
        batches: `start_step -> iterator` of this process's rows of each batch.
        validation: this process's validation batches, in a fixed order.
        mesh: devices.
        folder: run folder.
        checkpoints: latest checkpoints.
        best_checkpoints: the best by validation.
        tracker: where figures go; None on processes other than 0.
    """

    task: Task
    step: Callable[[TrainState, PyTree], tuple[TrainState, dict[str, jax.Array]]]
    batches: Callable[[int], Iterator[PyTree]]
    validation: Iterable[PyTree]
    mesh: Mesh
    folder: pathlib.Path
    checkpoints: Checkpoints
    best_checkpoints: Checkpoints
    tracker: Tracker | None


class Loop:
    """Drives a run from a state to its end."""

    def __init__(self, run: Run, settings: LoopSettings) -> None:
        self.run = run
        self.settings = settings
        self.best = Best()
        self._samples: collections.deque[tuple[int, np.ndarray]] = collections.deque(maxlen=1000)
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._running_loss: float | None = None
        self._bad_samples: list[int] = []
        self._last_log = time.monotonic()
        self._evaluate = jax.jit(run.task.evaluate, out_shardings=replicated(run.mesh))
        picture = run.task.picture
        self._picture = jax.jit(picture, out_shardings=replicated(run.mesh)) if picture else None

    def resume_from(self, restored: Restored) -> None:
        """Takes over the record of the best validation from a checkpoint."""
        best = restored.meta.get("best") or {}
        self.best = Best(best.get("value"), best.get("epoch", 0))

    def go(self, state: TrainState) -> tuple[TrainState, Ending]:
        """Trains until the end, a lack of progress or a signal; leaves a checkpoint of the last state.

        Raises:
            NonFiniteError: `max_bad_steps` non-finite steps in a row; the last good state is saved before.
        """
        settings = self.settings
        step = int(state.step)
        ending = Ending.FINISHED
        if self._out_of_patience(step // settings.steps_per_epoch):
            return state, Ending.PATIENCE
        with StopRequest() as stop, contextlib.closing(self.run.batches(step)) as stream:
            while step < settings.total_steps:
                batch = next(stream)
                self._samples.append((step + 1, np.asarray(batch["sample"])))
                state, metrics = self.run.step(state, put_batch(batch, self.run.mesh))
                step += 1
                self._pending.append((step, metrics))
                at_epoch_end = step % settings.steps_per_epoch == 0
                if at_epoch_end or step % settings.log_every_steps == 0:
                    self._log(step, len(batch["sample"]), state)
                if at_epoch_end and self._after_epoch(state, step):
                    ending = Ending.PATIENCE
                    break
                if stop.everywhere():
                    self.say(f"{stop.name or 'another process'}: stopping at step {step}, saving")
                    ending = Ending.STOPPED
                    break
        self._log(step, 0, state)
        self._save(self.run.checkpoints, state, step)
        if ending is not Ending.STOPPED:
            self._draw(state, step)
        self.run.checkpoints.seal()
        self.run.best_checkpoints.seal()
        return state, ending

    def say(self, text: str) -> None:
        """Prints a line on process 0."""
        if self.run.tracker is not None:
            self.run.tracker.say(text)

    def _after_epoch(self, state: TrainState, step: int) -> bool:
        """Validation, pictures and checkpoints where they are due; True when patience is over."""
        settings = self.settings
        epoch = step // settings.steps_per_epoch
        last = step >= settings.total_steps
        if epoch % settings.validate_every_epochs == 0 or last:
            self._validate(state, step, epoch)
        if settings.pictures_every_epochs and epoch % settings.pictures_every_epochs == 0 and not last:
            self._draw(state, step)
        if epoch % settings.checkpoint_every_epochs == 0 and not last:
            self._save(self.run.checkpoints, state, step)
        return self._out_of_patience(epoch)

    def _out_of_patience(self, epoch: int) -> bool:
        patience = self.settings.patience_epochs
        return bool(patience) and self.best.value is not None and epoch - self.best.epoch >= patience

    def _validate(self, state: TrainState, step: int, epoch: int) -> None:
        outputs = [
            jax.device_get(
                self._evaluate(
                    state.params, state.batch_stats, state.teacher, put_batch(batch, self.run.mesh)
                )
            )
            for batch in self.run.validation
        ]
        if not outputs:
            return
        values = self.run.task.summarise(outputs)
        if self.run.tracker is not None:
            self.run.tracker.metrics(step, "validation", values)
        monitored = values[self.settings.monitor]
        sign = 1.0 if self.settings.higher_is_better else -1.0
        better = np.isfinite(monitored) and (
            self.best.value is None or sign * monitored > sign * self.best.value
        )
        if better:
            self.best = Best(float(monitored), epoch)
            self._save(self.run.best_checkpoints, state, step)
        mark = " (best)" if better else f" (best {self.best.value:.4g} in epoch {self.best.epoch})"
        # The first few say most; all of them are in metrics.jsonl and in the report.
        figures = "  ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:6])
        self.say(f"validation after epoch {epoch}: {figures}{mark}")

    def _draw(self, state: TrainState, step: int) -> None:
        first = next(iter(self.run.validation), None)
        if self._picture is None or first is None:
            return
        arrays = self._picture(
            state.params, state.batch_stats, state.teacher, put_batch(first, self.run.mesh)
        )
        if self.run.tracker is not None:
            path = self.run.folder / "pictures" / f"step_{step:07d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.run.task.draw(jax.device_get(arrays), path)

    def _save(self, checkpoints: Checkpoints, state: TrainState, step: int) -> None:
        meta = {"best": dataclasses.asdict(self.best), "epoch": step // self.settings.steps_per_epoch}
        try:
            checkpoints.save(step, state, meta)
        except OSError as error:
            self.say(
                f"checkpoint at step {step} could not be written to {checkpoints.folder}: {error}; the earlier "
                f"ones are kept; train.on_disk_full is {self.settings.on_disk_full}"
            )
            if self.settings.on_disk_full == "stop":
                raise

    def _log(self, step: int, rows: int, state: TrainState) -> None:
        """The only place in a training epoch where the host waits for the device."""
        if not self._pending:
            return
        steps = [number for number, _ in self._pending]
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        self._pending.clear()
        now = time.monotonic()
        patches_per_s = rows * jax.process_count() * len(steps) / max(now - self._last_log, 1e-9)
        self._last_log = now
        self._report_bad(steps, fetched, state)
        names = [name for name in fetched[0] if name not in ("bad", "bad_in_row")]
        good = [metrics for metrics in fetched if not metrics["bad"]]
        if good and self.run.tracker is not None:
            means = {name: float(np.mean([metrics[name] for metrics in good])) for name in names}
            means["patches_per_s"] = patches_per_s
            self.run.tracker.metrics(step, "train", means)
            shown = {name: means[name] for name in ("loss", "grad_norm", "patches_per_s")}
            epoch = (step - 1) // self.settings.steps_per_epoch + 1
            self.run.tracker.progress(step, epoch, shown)

    def _report_bad(self, steps: list[int], fetched: list[dict[str, Any]], state: TrainState) -> None:
        samples = dict(self._samples)
        for number, metrics in zip(steps, fetched, strict=True):
            in_batch = samples.get(number, np.array([])).tolist()
            ids = ", ".join(map(str, in_batch))
            if metrics["bad"]:
                self._bad_samples += in_batch
                self.say(f"non-finite loss or gradient at step {number}: state kept as it was; samples {ids}")
                continue
            self._bad_samples.clear()
            loss = float(metrics["loss"])
            usual = self._running_loss
            if (
                usual is not None
                and self.settings.spike_factor
                and loss > self.settings.spike_factor * usual > 0
            ):
                self.say(f"loss spike at step {number}: {loss:.4g}, usually {usual:.4g}; samples {ids}")
            self._running_loss = loss if usual is None else 0.98 * usual + 0.02 * loss
        in_row = int(fetched[-1]["bad_in_row"])
        if in_row >= self.settings.max_bad_steps:
            self._save(self.run.checkpoints, state, steps[-1])
            self.run.checkpoints.seal()
            ids = ", ".join(map(str, sorted(set(self._bad_samples))))
            raise NonFiniteError(
                f"{in_row} non-finite steps in a row up to step {steps[-1]} (train.max_bad_steps is "
                f"{self.settings.max_bad_steps}); the state before them is saved; samples {ids}. Lower "
                "optim.learning_rate, set optim.clip_norm, or look at these samples with `lsmfm data info`"
            )
