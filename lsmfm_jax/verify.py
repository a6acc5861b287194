"""Reads all of a patch store or a run folder and names what is damaged."""

import json
import pathlib

from lsmfm_jax.data.store import HEADER
from lsmfm_jax.data.verify import verify_store


class VerifyError(ValueError):
    """A path that is neither a patch store nor a run folder."""


def verify(path: pathlib.Path) -> list[str]:
    """One line for each damaged file or leaf; empty where all is whole.

    Raises:
        VerifyError: the path is neither a store nor a run folder.
    """
    if (path / HEADER).exists() or (path / "manifest.jsonl").exists():
        return [f"{damage.path}: {damage.what}" for damage in verify_store(path)]
    if any((path / name).exists() for name in ("config.json", "run.json", "checkpoints", "best")):
        return verify_run(path)
    raise VerifyError(
        f"{path}: neither a patch store (it has no {HEADER}) nor a run folder (it has no config.json); name one"
    )


def verify_run(folder: pathlib.Path) -> list[str]:
    """One line for each damaged file or leaf of a run's checkpoints and records.

    Logs and pictures (`metrics.jsonl`, `tensorboard/`, `pictures/`, the report) are not covered: a run does not
    depend on them.
    """
    from lsmfm_jax.train.checkpoint import committed_steps
    from lsmfm_jax.train.records import SEAL, damaged_records

    # Folders of imported weights have a record and weights, and no seal when they are of an earlier release.
    imported = not (folder / "config.json").exists() and not (folder / "checkpoints").exists()
    lines = [] if imported and not (folder / SEAL).exists() else damaged_records(folder)
    if imported:
        lines += _not_json(folder / "run.json")
    for group in ("checkpoints", "best"):
        for step in committed_steps(folder / group):
            lines += _verify_checkpoint(folder / group, step)
        for seal in sorted((folder / group / "seals").glob("*.json")):
            if not (folder / group / seal.stem).is_dir():
                lines.append(f"{folder / group / seal.stem}: missing")
    return lines


def _not_json(file: pathlib.Path) -> list[str]:
    try:
        json.loads(file.read_text())
    except (OSError, ValueError) as error:
        return [f"{file}: cannot be read: {error}"]
    return []


def _verify_checkpoint(folder: pathlib.Path, step: int) -> list[str]:
    from lsmfm_jax.train.checkpoint import CheckpointError, damaged_files, read_part

    lines = damaged_files(folder, step)
    seal = folder / "seals" / f"{step}.json"
    if not seal.exists():
        lines.append(
            f"{seal}: missing: lost, or the run was killed before it was written; the next start of the run checks "
            "the leaves and writes it"
        )
    if not lines:
        try:
            read_part(folder, step, ("params", "batch_stats", "teacher", "opt_state"))
        except CheckpointError as error:
            lines = [str(error)]
    return lines
