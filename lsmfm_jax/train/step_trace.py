"""A profiler trace of a few training steps, for `train.profile_steps`: where the time of a step goes on this device."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax

# The first compiles, and the next ones fill queues and caches: they are not what a step costs.
SKIPPED = 3
FOLDER = "profile"


class StepTrace:
    """Traces some steps of a run, once.

    The trace is a folder that TensorBoard's profiler reads, and in it `perfetto_trace.json.gz`, which
    https://ui.perfetto.dev opens. Loading of batches by other processes is not in it.

    Args:
        folder: the run folder; the trace goes to `profile/` there.
        steps: how many; 0: none.
        print_line: says where it is.
    """

    def __init__(self, folder: pathlib.Path, *, steps: int, print_line: Callable[[str], None]) -> None:
        self._folder, self._steps, self._print_line = folder / FOLDER, steps, print_line
        self._seen = 0
        self._tracing = False

    def before_step(self, earlier: Any) -> None:
        """Begins the trace where it is due, when the device has done what it was given before.

        Args:
            earlier: arrays that the step before it gave.
        """
        if self._steps and self._seen == SKIPPED:
            jax.block_until_ready(earlier)
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._tracing = True

    def after_step(self, results: Any) -> None:
        """Counts a step, and ends the trace after the last one that belongs to it.

        Args:
            results: arrays that the step gives.
        """
        self._seen += 1
        if self._tracing and self._seen == SKIPPED + self._steps:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a trace that is under way, with the steps that it has."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            self._print_line(f"profiler trace of {self._seen - SKIPPED} steps: {self._folder}")
