"""Steps that went wrong, non-finite ones and spikes of the loss, with the samples that were in them."""

import collections
from collections.abc import Callable
from typing import Any

import numpy as np

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.train.processes import gathered


class NonFiniteError(LsmfmError, RuntimeError):
    """Too many non-finite steps in a row; the message names the samples."""


class BadSteps:
    """Tells of bad steps when their metrics have come from the device, and of what was in their batches.

    Args:
        max_in_row: non-finite steps in a row at which a run ends (`train.max_bad_steps`).
        spike_factor: times its running mean that a loss must exceed to be told; 0: none is (`train.spike_factor`).
        print_line: prints a line.
    """

    def __init__(self, *, max_in_row: int, spike_factor: float, print_line: Callable[[str], None]) -> None:
        self._max_in_row, self._spike_factor, self._print_line = max_in_row, spike_factor, print_line
        self._samples: collections.deque[tuple[int, np.ndarray]] = collections.deque(maxlen=1000)
        self._running_loss: float | None = None
        self._bad_samples: list[int] = []

    def note(self, step: int, samples: np.ndarray) -> None:
        """Keeps the samples of a step, of this process's rows, until its metrics are there."""
        self._samples.append((step, samples))

    def report(self, steps: list[int], fetched: list[dict[str, Any]]) -> NonFiniteError | None:
        """Prints what went wrong in these steps; the error with which the run is to end, if it is."""
        samples = dict(self._samples)
        for number, metrics in zip(steps, fetched, strict=True):
            # Every process sees the same figures, so all of them come here and exchange their samples.
            shown = bool(metrics["bad"]) or self._spikes(float(metrics["loss"]))
            in_batch = gathered(samples[number]).ravel().tolist() if shown and number in samples else []
            ids = ", ".join(map(str, in_batch))
            if metrics["bad"]:
                self._bad_samples += in_batch
                self._print_line(
                    f"non-finite loss, gradient or new state at step {number}: state kept as it was; samples {ids}"
                )
                continue
            self._bad_samples.clear()
            loss = float(metrics["loss"])
            usual = self._running_loss
            if shown:
                self._print_line(f"loss spike at step {number}: {loss:.4g}, usually {usual:.4g}; samples {ids}")
            self._running_loss = loss if usual is None else 0.98 * usual + 0.02 * loss
        in_row = int(fetched[-1]["bad_in_row"])
        if in_row < self._max_in_row:
            return None
        ids = ", ".join(map(str, sorted(set(self._bad_samples))))
        return NonFiniteError(
            f"{in_row} non-finite steps in a row up to step {steps[-1]} (train.max_bad_steps is {self._max_in_row}); "
            f"the state before them is saved; samples {ids}. Lower optim.learning_rate, set optim.clip_norm, or look "
            "at these samples with `lsmfm data info`"
        )

    def _spikes(self, loss: float) -> bool:
        usual, factor = self._running_loss, self._spike_factor
        return usual is not None and bool(factor) and loss > factor * usual > 0
