"""Being told to stop: SIGTERM and SIGUSR1 end a run at the same step on every process, with its state saved."""

import signal
from types import FrameType

# What a scheduler takes for "run me again": EX_TEMPFAIL of sysexits.h.
REQUEUE_EXIT_CODE = 75


class StopRequest:
    """Remembers a signal that asks for a stop, between `with` and its end."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name

    @property
    def asked(self) -> bool:
        """Whether this process was asked to stop."""
        return bool(self.name)
