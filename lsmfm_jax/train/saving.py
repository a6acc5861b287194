"""The checkpoints that a run saves on its way, the latest and the best, and what becomes of it when one fails."""

import dataclasses
from collections.abc import Callable

from lsmfm_jax.train.checkpoint import Checkpoints, Restored, SaveError
from lsmfm_jax.train.checkpoint_checks import committed_steps
from lsmfm_jax.train.processes import any_process
from lsmfm_jax.train.state import TrainState


@dataclasses.dataclass
class Best:
    """The best validation so far."""

    value: float | None = None
    epoch: int = 0


class Saving:
    """Saves the latest and the best state; writing goes on in the background until the next save.

    Args:
        latest: checkpoints of the latest states.
        best_checkpoints: that of the best by validation.
        steps_per_epoch: optimiser steps of an epoch.
        on_disk_full: `continue` or `stop`, where one cannot be saved (`train.on_disk_full`).
        print_line: prints a line.

    Attributes:
        best: the best validation whose state is saved, or is being saved.
    """

    def __init__(
        self,
        latest: Checkpoints,
        best_checkpoints: Checkpoints,
        *,
        steps_per_epoch: int,
        on_disk_full: str,
        print_line: Callable[[str], None],
    ) -> None:
        self._latest, self._best_checkpoints = latest, best_checkpoints
        self._steps_per_epoch, self._on_disk_full, self._print_line = steps_per_epoch, on_disk_full, print_line
        self.best = Best()
        # What was the best before, as long as it is not known whether the new one is written.
        self._best_before: Best | None = None

    def resume_from(self, restored: Restored) -> None:
        """Restores the record of the best validation, if a best checkpoint is there: else the next one is the best."""
        if committed_steps(self._best_checkpoints.folder):
            self.best = Best(**(restored.meta.get("best") or {}))

    def best_so_far(self) -> str:
        """The best validation in words."""
        best = self.best
        return "none saved yet" if best.value is None else f"best {best.value:.4g} in epoch {best.epoch}"

    def save_latest(self, state: TrainState, step: int) -> None:
        """Starts to save the state of a step."""
        self._save(self._latest, state, step, self.best)

    def save_best(self, state: TrainState, step: int, best: Best) -> str:
        """Starts to save the best state; what the line of the validation says of it."""
        self.seal_best()
        if not self._save(self._best_checkpoints, state, step, best):
            return f" (better, but not saved; {self.best_so_far()})"
        self._best_before, self.best = self.best, best
        return " (best)"

    def seal_latest(self, *, on_failure: str = "") -> None:
        """Waits for the latest checkpoint that is being written; `on_failure` in place of the run's `on_disk_full`."""
        self._try(self._latest.seal, on_failure=on_failure)

    def seal_best(self) -> None:
        """Waits for the best checkpoint that is being written; if it is not, that before it is the best again."""
        if not self._try(self._best_checkpoints.seal) and self._best_before is not None:
            self._print_line(f"the state of epoch {self.best.epoch} is not saved as the best")
            self.best = self._best_before
        self._best_before = None

    def _save(self, checkpoints: Checkpoints, state: TrainState, step: int, best: Best) -> bool:
        meta = {"best": dataclasses.asdict(best), "epoch": step // self._steps_per_epoch}
        # Saves run in the background: the failure of the last one shows here, and is no reason to skip this one.
        self._try(checkpoints.seal)
        return self._try(lambda: checkpoints.save(step, state, meta))

    def _try(self, save: Callable[[], None], *, on_failure: str = "") -> bool:
        """Saves; where that fails it is printed, and the run stopped if so configured. Whether it was done."""
        on_failure = on_failure or self._on_disk_full
        failure = None
        try:
            save()
        except OSError as error:
            failure = error
        failed = any_process(failure is not None)
        if failed:
            self._print_line(f"{failure or 'another process could not save'}; train.on_disk_full is {on_failure}")
            if on_failure == "stop":
                raise failure or SaveError("another process could not save; see its messages")
        return not failed
