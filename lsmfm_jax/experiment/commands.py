"""The command line in processes of its own: finetune, predict, evaluate and baseline, with a log, marked when done."""

import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import replace_json

PROGRAM = "from lsmfm_jax.cli import main; raise SystemExit(main())"
Command = tuple[str, ...]


class CommandFailed(LsmfmError, RuntimeError):
    """A command ended with an error; the message has its last line."""


def lsmfm(*arguments: object) -> Command:
    """A command line of `lsmfm` by this interpreter."""
    return (sys.executable, "-c", PROGRAM, *map(str, arguments))


def run_command(
    command: Sequence[str],
    *,
    log: pathlib.Path,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> None:
    """Runs a command; its output goes to the end of `log`.

    Args:
        command: program and arguments.
        log: file; made if absent.
        pass_fds: handles that the process keeps open for as long as it lives.
        environment: variables of the process; None: those of this one.

    Raises:
        CommandFailed: it ended with another code than 0, or could not be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        start = file.tell()
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                env=environment,
                check=False,
            ).returncode
        except OSError as error:
            raise CommandFailed(f"{command[0]} cannot be started: {error.strerror or error}") from error
    if code:
        raise CommandFailed(last_line(log, start) or f"ended with {code} and said nothing")


def run_once(
    command: Sequence[str],
    mark: pathlib.Path,
    *,
    log: pathlib.Path,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> None:
    """Runs a command unless its mark is there, which is written when it has ended well; arguments as `run_command`.

    Raises:
        CommandFailed: see `run_command`.
    """
    if not mark.exists():
        run_command(command, log=log, pass_fds=pass_fds, environment=environment)
        replace_json(mark, {"command": [*map(str, command)]})


def finetune_command(
    recipe: str,
    run: pathlib.Path,
    *,
    folder: pathlib.Path,
    train: Sequence[str],
    validation: Sequence[str],
    seed: int,
    init_from: str = "",
    overrides: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
) -> Command:
    """`lsmfm finetune` on patches that are named.

    Args:
        recipe: what `--config` takes.
        run: the run folder.
        folder: of the patches.
        train: names of the training patches.
        validation: names of the validation patches.
        seed: of the run.
        init_from: a pretrained run; empty: from scratch.
        overrides: keys of the configuration with their values.
        arguments: further ones, as they are.
    """
    values: dict[str, Any] = {
        "data.folder": str(folder),
        "data.train_names": tuple(train),
        "data.validation_names": tuple(validation),
        **({"init_from": init_from} if init_from else {}),
        "seed": seed,
        **(overrides or {}),
    }
    return lsmfm("finetune", "--config", recipe, "--workdir", run, *overriding(values), *arguments)


def overriding(values: Mapping[str, Any]) -> list[str]:
    """Keys of a configuration with their values, as the command line takes them."""
    return [f"--config.{key}={value if isinstance(value, str) else repr(value)}" for key, value in values.items()]


def last_line(log: pathlib.Path, start: int) -> str:
    """The last line that is not blank, of what a command has added to its log."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")
