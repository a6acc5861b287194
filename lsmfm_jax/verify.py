"""Reads all of a patch store or a run folder and names what is damaged."""

import pathlib

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import DamagedFile, read_json
from lsmfm_jax.store.reader import HEADER
from lsmfm_jax.store.verify import verify_store


class VerifyError(LsmfmError, ValueError):
    """A path that is neither a patch store nor a run folder."""


def verify(path: pathlib.Path) -> list[str]:
    """One line for each damaged file or leaf; empty where all is whole.

    Raises:
        VerifyError: the path is neither a store nor a run folder.
    """
    if (path / HEADER).exists() or (path / "manifest.jsonl").exists():
        return [printable(f"{damage.path}: {damage.what}") for damage in verify_store(path)]
    if any((path / name).exists() for name in ("config.json", "run.json", "checkpoints", "best")):
        return [printable(line) for line in verify_run(path)]
    raise VerifyError(
        f"{path}: neither a patch store (it has no {HEADER}) nor a run folder (it has no config.json); name one"
    )


def verify_run(folder: pathlib.Path) -> list[str]:
    """One line for each damaged file or leaf of a run's checkpoints and records.

    Logs and pictures (`metrics.jsonl`, `tensorboard/`, `pictures/`, the report) are not covered: a run does not
    depend on them.
    """
    from lsmfm_jax.train.checkpoint_checks import committed_steps
    from lsmfm_jax.train.records import SEAL, damaged_records

    # Folders of imported weights have a record and weights, and no seal when they are of an earlier release.
    imported = not (folder / "config.json").exists() and not (folder / "checkpoints").exists()
    lines = [] if imported and not (folder / SEAL).exists() else damaged_records(folder)
    if imported:
        lines += _not_json(folder / "run.json")
    groups = [group for group in ("checkpoints", "best") if (folder / group).exists()]
    lines += [f"{folder / group}: not a folder of checkpoints" for group in groups if not (folder / group).is_dir()]
    steps = [(group, step) for group in groups for step in committed_steps(folder / group)]
    if not steps:
        lines.append(
            f"{folder}: no checkpoint there: the run ended before its first one, or they were removed; start it again, "
            "or restore the folder from a copy"
        )
    for group in groups:
        for step in [number for of, number in steps if of == group]:
            lines += _verify_checkpoint(folder / group, step)
        for seal in sorted((folder / group / "seals").glob("*.json")):
            if not (folder / group / seal.stem).is_dir():
                lines.append(f"{folder / group / seal.stem}: missing")
    return lines


def _not_json(file: pathlib.Path) -> list[str]:
    try:
        read_json(file)
    except DamagedFile as error:
        return [f"{file}: {error.reason}"]
    return []


def printable(line: str) -> str:
    """The text as one line: what a name may hold and a terminal cannot show stands as Python writes it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def _verify_checkpoint(folder: pathlib.Path, step: int) -> list[str]:
    from lsmfm_jax.train.checkpoint import CheckpointError, read_part
    from lsmfm_jax.train.checkpoint_checks import damaged_files

    lines = damaged_files(folder, step)
    seal = folder / "seals" / f"{step}.json"
    if not seal.exists():
        lines.append(
            f"{seal}: missing: lost, or the run was killed before it was written; the next start of the run checks "
            "the leaves and writes it"
        )
    if not lines:
        try:
            read_part(folder, step, None)
        except CheckpointError as error:
            lines = [str(error)]
    return lines
