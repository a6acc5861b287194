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
    if (path / "config.json").exists() or (path / "checkpoints").is_dir():
        return verify_run(path)
    raise VerifyError(
        f"{path}: neither a patch store (it has no {HEADER}) nor a run folder (it has no config.json); name one"
    )


def verify_run(folder: pathlib.Path) -> list[str]:
    """One line for each damaged file or leaf of a run's checkpoints and records."""
    from lsmfm_jax.train.checkpoint import CheckpointError, committed_steps, damaged_files, read_part

    lines = []
    for name in ("config.json", "run.json", "split.json"):
        file = folder / name
        try:
            json.loads(file.read_text())
        except FileNotFoundError:
            lines.append(f"{file}: missing")
        except (ValueError, UnicodeDecodeError) as error:
            lines.append(f"{file}: not valid JSON: {error}")
    for group in ("checkpoints", "best"):
        for step in committed_steps(folder / group):
            damage = damaged_files(folder / group, step)
            if not damage:
                try:
                    read_part(folder / group, step, ("params", "batch_stats", "teacher", "opt_state"))
                except CheckpointError as error:
                    damage = [str(error)]
            lines += damage
    return lines
