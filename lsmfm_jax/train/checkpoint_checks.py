"""Which checkpoints a folder holds, and whether each is whole: hashes of its files, fingerprints of its leaves."""

import contextlib
import json
import logging
import pathlib
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

from lsmfm_jax.errors import os_reason
from lsmfm_jax.files import DamagedFile, file_sha256, json_text, read_bytes, read_json, sha256
from lsmfm_jax.train.fingerprints import fingerprints
from lsmfm_jax.train.task import PyTree


def committed_steps(folder: pathlib.Path) -> list[int]:
    """Steps of the checkpoint folders that are there under their final name, in order."""
    if not folder.is_dir():
        return []
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def remove_halves(folder: pathlib.Path) -> None:
    """Removes checkpoints that were begun and will not be completed."""
    # Half a checkpoint is of no use, and fills the disk that the next one needs. Other threads of its writer may
    # still be at it for a moment.
    for _ in range(20):
        halves = list(folder.glob("*.orbax-checkpoint-tmp*"))
        if not halves:
            return
        for half in halves:
            shutil.rmtree(half, ignore_errors=True)
        time.sleep(0.1)


def damaged_files(folder: pathlib.Path, step: int) -> list[str]:
    """One line for each file of a checkpoint that is missing or differs from what was written; empty where whole."""
    marker = folder / str(step) / "_CHECKPOINT_METADATA"
    if not marker.exists():
        return [f"{marker}: missing: the checkpoint was not committed"]
    # Reading a pipe would never end.
    odd = [path for path in sorted((folder / str(step)).rglob("*")) if not path.is_file() and not path.is_dir()]
    if odd:
        return [f"{path}: neither a file nor a folder" for path in odd]
    seal = folder / "seals" / f"{step}.json"
    if not seal.exists():
        return []
    try:
        data = read_bytes(seal)
        expected = read_json(seal)
        body = expected.pop("_seal", None)
    except DamagedFile as error:
        return [f"{seal}: damaged: {error.reason}"]
    if body != record_hash(expected) or data != json_text({**expected, "_seal": body}).encode():
        return [f"{seal}: damaged: its own checksum differs"]
    try:
        actual = hash_files(folder / str(step))
    except OSError as error:
        return [f"{error.filename or folder / str(step)}: cannot be read: {os_reason(error)}"]
    actual.pop("_seal")
    lines = []
    for name in sorted(expected.keys() | actual.keys()):
        if name not in actual:
            lines.append(f"{folder / str(step) / name}: missing")
        elif name not in expected:
            lines.append(f"{folder / str(step) / name}: was not written with the checkpoint")
        elif expected[name] != actual[name]:
            lines.append(f"{folder / str(step) / name}: contents differ from what was written")
    return lines


def hash_files(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint by its path in the folder, and of these hashes under `_seal`."""
    hashes = {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    return {**hashes, "_seal": record_hash(hashes)}


def record_hash(record: dict[str, Any]) -> str:
    """SHA-256 of a dictionary of JSON values, whatever the order of its keys."""
    return sha256(json.dumps(record, sort_keys=True).encode())


def differing_leaves(place: pathlib.Path, state: PyTree, meta: dict[str, Any], *, partial: bool = False) -> list[str]:
    """One line for each leaf that is not what was written, or for a damaged record; empty where all are.

    Args:
        place: of the checkpoint, for the lines.
        state: as it was read.
        meta: the record that was written with it.
        partial: leaves may be missing, as only parts were read.
    """
    expected, actual = meta["fingerprints"], fingerprints(state)
    if not partial and expected.keys() != actual.keys():
        changed = sorted(expected.keys() ^ actual.keys())
        return [f"{place}: leaves differ from those written: {', '.join(changed[:10])}"]
    damaged = [f"{place}: leaf {name} is damaged" for name in actual if expected.get(name) != actual[name]]
    record = dict(meta)
    if not damaged and record.pop("checksum", None) != record_hash(record):
        return [f"{place}: its record is damaged"]
    return damaged


@contextlib.contextmanager
def without_warnings_of_orbax() -> Iterator[None]:
    """Leaves out what Orbax says at every read of a part of a checkpoint: that its own file layout has no metadata."""
    log = logging.getLogger("absl")

    # A filter of its own, and no level that is set back: threads read at the same time.
    def serious(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    log.addFilter(serious)
    try:
        yield
    finally:
        log.removeFilter(serious)
