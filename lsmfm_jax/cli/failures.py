"""What a user sees of errors: one line each; of other libraries' logs, what is not said in our own words."""

import logging
import sys
import threading
import traceback
import warnings

from lsmfm_jax.errors import LsmfmError, os_reason

log = logging.getLogger("lsmfm_jax")


def explained(error: Exception) -> str | None:
    """An expected error as one line; None for what is a mistake in the program, and deserves its traceback.

    Expected are errors of this package, those of the operating system, and memory that does not suffice.
    """
    if isinstance(error, LsmfmError):
        return _one_line(error)
    if isinstance(error, MemoryError):
        details = f" ({_one_line(error)})" if str(error) else ""
        return (
            f"out of memory{details}: close other programs, work on smaller volumes or fewer at a time "
            "(--batch 1, --config.train.batch_size=1), or take a machine with more memory"
        )
    if isinstance(error, OSError):
        if error.errno is None:
            return _one_line(error)
        named = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{' -> '.join(named) or 'the system'}: {os_reason(error)}"
    if "RESOURCE_EXHAUSTED" in str(error):
        return (
            f"the device is out of memory: {_one_line(error)[:300]}; see RESOURCE_EXHAUSTED in RUNBOOK.md: "
            "--config.train.accumulate_steps=2, more devices, or a smaller --config.train.batch_size"
        )
    return None


def _one_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


def set_up_logging() -> None:
    """Our own log from INFO on; of others, warnings in one line; nothing of what we report ourselves."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, logging.Formatter):
            handler.setFormatter(_OneLine("%(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    # Orbax warns of its own file layout at every read of a part, and logs a failed save with the traceback of each of
    # its threads; `train.checkpoint` says the same in a line.
    for name in ("absl", "orbax", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    threading.excepthook = _failed_thread
    sys.unraisablehook = _unless_told
    # A cache that cannot be written costs time at the next start, nothing else.
    warnings.filterwarnings("ignore", "Error (writing|reading) persistent compilation cache")


class _OneLine(logging.Formatter):
    """Leaves tracebacks out of the log: the message names what failed."""

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_info and record.exc_info[1] is not None and record.levelno < logging.CRITICAL:
            record.msg = f"{record.getMessage()}: {_one_line(record.exc_info[1])}"
            record.args, record.exc_info, record.exc_text = (), None, None
        return super().format(record)


def _failed_thread(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_value is None or failure.exc_type is SystemExit:
        return
    name = failure.thread.name if failure.thread else "unknown"
    line = explained(failure.exc_value) or _where(failure.exc_value)
    log.warning("in the background (thread %s): %s", name, line)


def _unless_told(failure: "sys.UnraisableHookArgs") -> None:
    """What nobody can catch gets its traceback.

    Not so what the threads of a save that failed say afterwards, once for each tensor: `train.checkpoint` tells that in
    a line.
    """
    if not (failure.exc_type is RuntimeError and str(failure.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(failure)


def _where(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" ({last[0].filename}, line {last[0].lineno})" if last else ""
    return f"{type(error).__name__}: {_one_line(error)[:300]}{place}"
