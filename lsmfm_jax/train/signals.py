"""Signals: SIGTERM and SIGUSR1 end a run with its state saved, Ctrl-C ends any command; one line, nothing orphaned.

Python runs a signal's handler in the main thread, and only between two of its instructions: minutes late where XLA
compiles, and as an exception that any library may swallow or answer with a traceback. So the program (`watch`) has a
thread that reads the signals from a pipe and ends the process by itself. That is safe at any moment: every file is
written whole or not at all (`files.py`), and a run, a store and a table survive a kill.
"""

import os
import signal
import sys
import threading
from types import FrameType

from lsmfm_jax.files import remove_unfinished

# What a scheduler takes for "run me again": EX_TEMPFAIL of sysexits.h.
REQUEUE_EXIT_CODE = 75
# Of a program that was ended by Ctrl-C, as shells have it.
INTERRUPT_EXIT_CODE = 128 + signal.SIGINT


class _Watch:
    """What this process knows of signals."""

    active = False
    # A training command: told to stop, it ends with the code that has it started again.
    requeue = False
    # There are steps that no checkpoint has: the loop sees the request by itself, saves, and ends.
    saves_first = False
    heard = ""
    ending = False


class StopRequest:
    """Remembers a signal that asks for a stop, between `with` and its end."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if not _Watch.active:
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
        self.name = self.name or _Watch.heard
        return bool(self.name)


def watch(*, requeue: bool) -> None:
    """Has this process end by itself when it is interrupted; for programs, called once, in the main thread.

    Ctrl-C: one line, exit code 130. SIGTERM, and SIGUSR1 of a training command: exit code 75 if `requeue`, else
    128 and the signal's number; after `save_before_stopping` they are left to the loop. A signal that was ignored
    from the start, as that of Ctrl-C for background processes of a script, stays ignored.

    Args:
        requeue: whether the same command, started again, goes on with what it did.
    """
    _Watch.active, _Watch.requeue = True, requeue
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    listen()
    # The processes that clean up after us say that there is something to clean up.
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]))
    threading.Thread(target=_attend, args=(reading,), name="signals", daemon=True).start()


def listen() -> None:
    """Takes the signals again from a library that has taken them; does nothing in a process without `watch`."""
    if not _Watch.active:
        return
    for number in (signal.SIGINT, *StopRequest.SIGNALS):
        if signal.getsignal(number) is not signal.SIG_IGN and (_Watch.requeue or number != signal.SIGUSR1):
            signal.signal(number, _leave_to_the_thread)


def save_before_stopping() -> None:
    """From now on SIGTERM and SIGUSR1 are left to the loop, which saves what it has done."""
    _Watch.saves_first = True


def stop_was_asked() -> bool:
    """Whether SIGTERM or SIGUSR1 came while the loop, or what follows it, was to end by itself."""
    return bool(_Watch.heard)


def ending() -> bool:
    """Whether this process is being ended: errors that follow from it are not to be reported."""
    return _Watch.ending


def _leave_to_the_thread(number: int, frame: FrameType | None) -> None:
    """A handler there must be, for the number to be written to the pipe."""


def _attend(reading: int) -> None:
    while True:
        for number in os.read(reading, 64):
            if number == signal.SIGINT:
                more = "; the same command continues from the last checkpoint" if _Watch.requeue else ""
                end(INTERRUPT_EXIT_CODE, f"stopped by Ctrl-C{more}")
            elif number in StopRequest.SIGNALS:
                _stop(signal.Signals(number))


def _stop(number: signal.Signals) -> None:
    if _Watch.saves_first:
        _Watch.heard = number.name
    elif _Watch.requeue:
        end(
            REQUEUE_EXIT_CODE,
            f"{number.name} before the first step; the same command continues this run; exit code {REQUEUE_EXIT_CODE}",
        )
    else:
        end(128 + number, f"stopped by {number.name}")


def end(code: int, text: str) -> None:
    """Ends this process at once: one line, no half-written file, no process of its own left."""
    _Watch.ending = True
    # Not by `print`: the main thread may be in the middle of one.
    os.write(2, f"lsmfm: {text}\n".encode())
    remove_unfinished()
    if "multiprocessing" in sys.modules:
        import multiprocessing

        for child in multiprocessing.active_children():
            child.kill()
    os._exit(code)
