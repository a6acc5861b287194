"""One run of a sweep: started as a process, watched by its validations, stopped where it lags behind."""

import json
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.experiment.commands import last_line

LOG = "log.txt"
# Between two looks at a run's metrics, seconds.
LOOK_EVERY_S = 0.5
# A run that is told to stop saves first.
PATIENCE_S = 120.0


class TrialFailed(LsmfmError, RuntimeError):
    """A run ended with an error, or without a validation; the message has the last line of its log."""


class Validation(NamedTuple):
    """The searched metric of one validation."""

    step: int
    value: float


def run_trial(
    command: tuple[str, ...],
    folder: pathlib.Path,
    *,
    metric: str,
    lags: Callable[[Validation], bool],
) -> tuple[list[Validation], bool]:
    """Runs a command that trains in `folder/run` until it ends, or until it lags behind.

    Args:
        command: program and arguments.
        folder: of the trial; its log goes there.
        metric: name in the validations of `metrics.jsonl`.
        lags: is given each validation in order and says whether to stop.

    Returns:
        All validations, and whether it was stopped.

    Raises:
        TrialFailed: the command failed, or logged no such metric.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a") as log:
        start = log.tell()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    metrics, seen, stopped = folder / "run" / "metrics.jsonl", 0, False
    try:
        while True:
            ended = process.poll() is not None
            found = list(validations(metrics, metric))
            for one in found[seen:]:
                seen += 1
                stopped = stopped or lags(one)
            if ended or stopped:
                break
            time.sleep(LOOK_EVERY_S)
    finally:
        _end(process)
    if not stopped and process.returncode:
        raise TrialFailed(last_line(folder / LOG, start) or f"ended with {process.returncode} and said nothing")
    if not seen:
        raise TrialFailed(f"{metrics} has no validation with {metric!r}; see its names in the run's report")
    return found, stopped


def validations(metrics: pathlib.Path, metric: str) -> Iterator[Validation]:
    """The values of a metric in the validations that a run has written so far."""
    if not metrics.exists():
        return
    # The last line may still be being written.
    for line in metrics.read_text().split("\n")[:-1]:
        record = json.loads(line)
        if record.get("kind") == "validation" and record.get(metric) is not None:
            yield Validation(int(record["step"]), float(record[metric]))


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
