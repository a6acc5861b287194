"""What one sees of a run: a progress line, a JSONL of metrics, TensorBoard files, Weights & Biases if asked for."""

import json
import math
import pathlib
import sys
import time
from typing import Any, TextIO

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import replace_text


class TrackingError(LsmfmError, RuntimeError):
    """A service that the configuration asks for is not installed."""


class Tracker:
    """Writes metrics of one run; only process 0 should make one.

    Args:
        folder: the run folder; `metrics.jsonl` and `tensorboard/` go there.
        start_step: step the run continues from; lines of later steps, left by an interrupted run, are dropped.
        total_steps: length of the run, for the estimate of the time left.
        tensorboard: write TensorBoard files.
        wandb_project: Weights & Biases project, or empty.
        stream: where the progress lines go.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        start_step: int,
        total_steps: int,
        tensorboard: bool = True,
        wandb_project: str = "",
        stream: TextIO | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = stream or sys.stdout
        self._total_steps = total_steps
        self._began = time.monotonic()
        self._start_step = start_step
        path = folder / "metrics.jsonl"
        _drop_after(path, start_step)
        self._file = path.open("a")
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)
        self._wandb = _start_wandb(wandb_project, folder) if wandb_project else None

    def metrics(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Writes scalars of one step.

        Args:
            step: optimiser step.
            kind: `train` or `validation`.
            values: name to scalar; a non-finite one is written as null.
        """
        clean = {name: float(value) for name, value in values.items()}
        record = {name: value if math.isfinite(value) else None for name, value in clean.items()}
        self._file.write(json.dumps({"step": step, "kind": kind, **record}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in clean.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{name}": value for name, value in clean.items()}, step=step)

    def progress(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Prints one line: step, epoch, the given figures, and the time left at the pace since the start."""
        done = max(1, step - self._start_step)
        left_s = (time.monotonic() - self._began) / done * max(0, self._total_steps - step)
        figures = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.print_line(f"step {step}/{self._total_steps}  epoch {epoch}  {figures}  left {duration(left_s)}")

    def print_line(self, text: str) -> None:
        """Prints one line at once."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Flushes and closes all files."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(folder: pathlib.Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind in a run's `metrics.jsonl`, in order of steps."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [line for line in _whole_lines(path) if line.get("kind") == kind]


def _whole_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines that can be read: a run that was killed, or met a full disk, leaves half a line."""
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def duration(seconds: float) -> str:
    """A length of time as people write it: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _drop_after(path: pathlib.Path, step: int) -> None:
    """Keeps the whole lines up to a step: a killed run leaves later ones, and perhaps half a line."""
    if not path.exists():
        return
    replace_text(path, "".join(json.dumps(line) + "\n" for line in _whole_lines(path) if line["step"] <= step))


def _start_wandb(project: str, folder: pathlib.Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise TrackingError(
            f"train.wandb_project: {project!r} is set, but wandb is not installed; "
            "pip install 'lsmfm-jax[wandb]', or set it to ''"
        ) from error
    return wandb.init(project=project, dir=str(folder), name=folder.name)
