"""The `lsmfm` command: parses its arguments and calls what they name."""

# Little is imported before `main` listens to signals: an import of seconds could be interrupted.
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

# Set before it is imported: transformers warns that PyTorch is absent, which is not needed here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. An expected error is one line on stderr and exit code 2.

    Args:
        arguments: of the command; None: those of the process, which then belongs to the command: Ctrl-C and
            SIGTERM end it with one line (`train/signals.py`).
    """
    if arguments is None:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _end_at_once)
        from lsmfm_jax.train.signals import watch

        watch(requeue=sys.argv[1:2] in (["pretrain"], ["finetune"]))
        # A name that is no UTF-8 must not end the command that prints it.
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(arguments)
    except Exception as error:
        from lsmfm_jax.cli.failures import explained
        from lsmfm_jax.train.signals import ending

        if ending():
            signal.pause()  # its end is under way, and was told
        if isinstance(error, BrokenPipeError) and error.filename is None:
            # Whoever read our output, as `head`, has closed it. What is left in the buffer goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        line = explained(error)
        if line is None:
            raise
        print(f"lsmfm: {line}", file=sys.stderr)
        return 2


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Until the thread for signals runs, a few hundredths of a second after the start."""
    os.write(2, b"lsmfm: stopped by Ctrl-C\n")
    os._exit(128 + number)


def _run(arguments: Sequence[str] | None) -> int:
    import argparse

    from lsmfm_jax import __version__
    from lsmfm_jax.cli import (
        annotation,
        conversion,
        data,
        evaluation,
        experiment,
        planning,
        prediction,
        publishing,
        ranking,
        recipes,
        sweep,
        training,
        upkeep,
    )
    from lsmfm_jax.cli.failures import set_up_logging

    set_up_logging()
    parser = argparse.ArgumentParser(
        prog="lsmfm", description="Pretrain and finetune 3D networks on light-sheet microscopy."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    rooms = (
        *(recipes, data, planning, training, prediction, annotation, evaluation, experiment, ranking, conversion),
        *(sweep, publishing, upkeep),
    )
    for room in rooms:
        room.add(commands)
    options, rest = parser.parse_known_args(arguments)
    if rest and not getattr(options, "takes_overrides", False):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    options.overrides = rest
    return options.run(options)
