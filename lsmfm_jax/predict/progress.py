"""How far a long job is: one line that is renewed on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import Any

# Seconds between two renewals on a terminal, and between two lines elsewhere.
TERMINAL_S = 0.5
PLAIN_S = 30.0


class Progress:
    """Counts what is done and says it with the time that is left.

    Args:
        title: of the job.
        total: of what is counted; voxels are shown in millions.
        print_line: prints a line, where there is no terminal.
        stream: text to write to if it is a terminal; None: stderr.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        print_line: Callable[[str], None],
        stream: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._total, self._print_line, self._clock = title, total, print_line, clock
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._done, self._began = 0, clock()
        self._last, self._shown = self._began, False

    def add(self, count: int) -> None:
        """Counts what has been done more."""
        self._done += count
        now = self._clock()
        if now - self._last < (TERMINAL_S if self._terminal else PLAIN_S):
            return
        self._last, self._shown = now, True
        if self._terminal:
            self._stream.write(f"\r\x1b[K{self.line()}")
            self._stream.flush()
        else:
            self._print_line(self.line())

    def line(self) -> str:
        """How far it is now."""
        passed = max(self._clock() - self._began, 1e-9)
        share = self._done / self._total if self._total else 1.0
        left = "" if not self._done or self._done >= self._total else f", {duration(passed / share - passed)} left"
        speed = f"{self._done / passed / 1e6:.1f} Mvoxel/s"
        return f"{self._title}: {share:.0%} of {self._total / 1e6:.1f} Mvoxel, {speed}, {duration(passed)}{left}"

    def end(self) -> None:
        """Leaves the terminal's line."""
        if self._terminal and self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def duration(seconds: float) -> str:
    """A time for people: 45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
