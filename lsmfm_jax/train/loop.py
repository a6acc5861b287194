"""The training loop, blind to what is trained: steps, validations, pictures, checkpoints, and when to stop."""

import contextlib
import dataclasses
import enum
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from lsmfm_jax.train.bad_steps import BadSteps
from lsmfm_jax.train.checkpoint import Checkpoints
from lsmfm_jax.train.compilation import compiler_options, return_compiler_memory
from lsmfm_jax.train.processes import any_process, compiled_together, gathered
from lsmfm_jax.train.saving import Best, Saving
from lsmfm_jax.train.sharding import put_batch, replicated, split_volumes
from lsmfm_jax.train.signals import StopRequest
from lsmfm_jax.train.state import TrainState
from lsmfm_jax.train.step_trace import StepTrace
from lsmfm_jax.train.task import PyTree, Task
from lsmfm_jax.train.tracking import Tracker


class Ending(enum.Enum):
    """Why a run ended."""

    FINISHED = "all epochs done"
    PATIENCE = "no better validation for the epochs of train.patience_epochs"
    STOPPED = "asked to stop by a signal"


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
    profile_steps: int
    on_disk_full: str
    monitor: str
    higher_is_better: bool
    xla: str = "default"

    @property
    def total_steps(self) -> int:
        """Optimiser steps of a run that goes to its end."""
        return self.epochs * self.steps_per_epoch


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


def compile_on_validation(
    function: Callable[..., PyTree], task: Task, mesh: Mesh, *, xla: str = "default"
) -> Callable[..., PyTree]:
    """Jits `evaluate` or `picture` to take a validation batch as it was read; results come whole to every device."""

    def prepared(params: PyTree, batch_stats: PyTree, teacher: PyTree, batch: PyTree) -> PyTree:
        return function(params, batch_stats, teacher, split_volumes(task.prepare_validation(batch), mesh))

    program = jax.jit(prepared, out_shardings=replicated(mesh), compiler_options=compiler_options(mesh, xla))
    return compiled_together(program)


class Loop:
    """Drives a run from a state to its end."""

    def __init__(self, run: Run, settings: LoopSettings) -> None:
        self.run = run
        self.settings = settings
        self.saving = Saving(
            run.checkpoints,
            run.best_checkpoints,
            steps_per_epoch=settings.steps_per_epoch,
            on_disk_full=settings.on_disk_full,
            print_line=self.print_line,
        )
        self._bad_steps = BadSteps(
            max_in_row=settings.max_bad_steps, spike_factor=settings.spike_factor, print_line=self.print_line
        )
        self._trace = StepTrace(
            run.folder,
            steps=settings.profile_steps if jax.process_index() == 0 else 0,
            print_line=self.print_line,
        )
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._damaged_count = 0
        # Patches and seconds of steps alone, since the last line of metrics.
        self._patches = 0
        self._timed_from: float | None = None
        self._evaluate = compile_on_validation(run.task.evaluate, run.task, run.mesh, xla=settings.xla)
        picture = run.task.picture
        self._picture = compile_on_validation(picture, run.task, run.mesh, xla=settings.xla) if picture else None

    def train(self, state: TrainState) -> tuple[TrainState, Ending]:
        """Trains until the end, a lack of progress or a signal; leaves a checkpoint of the last state.

        Raises:
            NonFiniteError: `max_bad_steps` non-finite steps in a row; the last good state is saved before.
        """
        settings = self.settings
        step = int(state.step)
        ending = Ending.FINISHED
        if self._out_of_patience(step // settings.steps_per_epoch):
            return state, Ending.PATIENCE
        with (
            StopRequest() as stop,
            contextlib.closing(self.run.batches(step)) as stream,
            contextlib.closing(self._trace),
        ):
            while step < settings.total_steps:
                batch = next(stream)
                self._bad_steps.note(step + 1, np.asarray(batch["sample"]))
                self._trace.before_step(state)
                state, metrics = self.run.step(state, put_batch(batch, self.run.mesh))
                self._trace.after_step(metrics)
                step += 1
                self._pending.append((step, metrics))
                if self._timed_from is None:
                    # What is counted begins and ends with a device that has nothing to do: neither compiling nor the
                    # first step, nor what is between epochs, belongs to the pace of the steps.
                    jax.block_until_ready(metrics)
                    return_compiler_memory()
                    self._timed_from = time.monotonic()
                else:
                    self._patches += len(batch["sample"]) * jax.process_count()
                at_epoch_end = step % settings.steps_per_epoch == 0
                at_log = at_epoch_end or step % settings.log_every_steps == 0
                if at_log:
                    self._log(step, state, stream)
                if at_epoch_end:
                    if self._after_epoch(state, step):
                        ending = Ending.PATIENCE
                        break
                    self._timed_from = time.monotonic()
                # To ask the other processes is to wait for them: only where all wait anyway.
                if (at_log or jax.process_count() == 1) and any_process(stop.asked):
                    self.print_line(f"{stop.name or 'another process'}: stopping at step {step}, saving")
                    ending = Ending.STOPPED
                    break
        self._log(step, state)
        self.saving.save_latest(state, step)
        if ending is not Ending.STOPPED:
            self._draw(state, step)
        # The last state has no later save to replace it: without it the run has not reached its end.
        self.saving.seal_best()
        self.saving.seal_latest(on_failure="stop" if ending is not Ending.STOPPED else "")
        return state, ending

    def print_line(self, text: str) -> None:
        """Prints a line on process 0."""
        if self.run.tracker is not None:
            self.run.tracker.print_line(text)

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
            self.saving.save_latest(state, step)
        return self._out_of_patience(epoch)

    def _out_of_patience(self, epoch: int) -> bool:
        patience, best = self.settings.patience_epochs, self.saving.best
        return bool(patience) and best.value is not None and epoch - best.epoch >= patience

    def _validate(self, state: TrainState, step: int, epoch: int) -> None:
        outputs = [
            jax.device_get(
                self._evaluate(state.params, state.batch_stats, state.teacher, put_batch(batch, self.run.mesh))
            )
            for batch in self.run.validation
        ]
        if not outputs:
            return
        values = self.run.task.summarise(outputs)
        if self.run.tracker is not None:
            self._note(step, "validation", values)
        monitored = values[self.settings.monitor]
        sign = 1.0 if self.settings.higher_is_better else -1.0
        best = self.saving.best.value
        if np.isfinite(monitored) and (best is None or sign * monitored > sign * best):
            mark = self.saving.save_best(state, step, Best(float(monitored), epoch))
        else:
            mark = f" ({self.saving.best_so_far()})"
        # The first few say most; all of them are in metrics.jsonl and in the report.
        figures = "  ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:6])
        self.print_line(f"validation after epoch {epoch}: {figures}{mark}")

    def _draw(self, state: TrainState, step: int) -> None:
        first = next(iter(self.run.validation), None)
        if self._picture is None or first is None:
            return
        arrays = self._picture(state.params, state.batch_stats, state.teacher, put_batch(first, self.run.mesh))
        if self.run.tracker is not None:
            path = self.run.folder / "pictures" / f"step_{step:07d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.run.task.draw(jax.device_get(arrays), path)

    def _log(self, step: int, state: TrainState, stream: object = None) -> None:
        """The only place in a training epoch, after its first step, where the host waits for the device."""
        if not self._pending:
            return
        steps = [number for number, _ in self._pending]
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        self._pending.clear()
        pace = self._pace()
        too_many = self._bad_steps.report(steps, fetched)
        if too_many is not None:
            self.saving.save_latest(state, steps[-1])
            self.saving.seal_latest()
            raise too_many
        damaged = self._damaged(stream)
        names = [name for name in fetched[0] if name not in ("bad", "bad_in_row")]
        good = [metrics for metrics in fetched if not metrics["bad"]]
        if good and self.run.tracker is not None:
            means = {name: float(np.mean([metrics[name] for metrics in good])) for name in names}
            means |= pace | damaged
            self._note(step, "train", means)
            shown = {name: means[name] for name in ("loss", "grad_norm", "patches_per_s") if name in means}
            epoch = (step - 1) // self.settings.steps_per_epoch + 1
            self.run.tracker.progress(step, epoch, shown)

    def _pace(self) -> dict[str, float]:
        """Patches per second of the steps since the last line; nothing where none of them was timed."""
        now = time.monotonic()
        patches, since = self._patches, self._timed_from
        self._patches, self._timed_from = 0, now
        return {"patches_per_s": patches / max(now - since, 1e-9)} if patches and since is not None else {}

    def _note(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Writes metrics; a full disk costs the line, not the run."""
        try:
            self.run.tracker.metrics(step, kind, values)
        except OSError as error:
            self.print_line(f"metrics of step {step} could not be written to {self.run.folder}: {error}")

    def _damaged(self, stream: object) -> dict[str, float]:
        """Patches that the stream of batches found damaged so far, where it counts them; told when there are more."""
        found = getattr(stream, "damaged", None)
        if found is None:
            return {}
        count = int(gathered(np.array(len(found))).sum())
        if count > self._damaged_count:
            self.print_line(
                f"{count} damaged patches so far, each replaced by another; `lsmfm verify` on the stores names them"
            )
        self._damaged_count = count
        return {"damaged_patches": float(count)}
