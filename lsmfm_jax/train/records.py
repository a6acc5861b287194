"""The text files of a run folder: sealed, so that one changed bit in any of them is found and named."""

import importlib.metadata
import pathlib
import platform

from lsmfm_jax import __version__
from lsmfm_jax.errors import os_reason
from lsmfm_jax.files import DamagedFile, file_sha256, read_sealed, replace_file, seal

SEAL = "seal.json"
# Written anew at each start; of these, `split.json` is read before, and notices a changed bit by itself.
REWRITTEN = ("config.json", "run.json", "groups.txt", "sharding.txt", "split.json")
# Written once; a run cannot continue with other files than these.
TEXT_FOLDER = "text"
KEPT_FOLDERS = (TEXT_FOLDER,)


def versions() -> dict[str, str]:
    """Versions of what a run is computed by, as its `run.json` has them."""
    found = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    return {"lsmfm_jax": __version__, "python": platform.python_version(), **found}


def seal_records(folder: pathlib.Path) -> None:
    """Writes the checksums of a run's text files, and of its text model, to `seal.json`."""
    files = {str(path.relative_to(folder)): file_sha256(path) for path in _records(folder)}
    replace_file(folder / SEAL, seal({"files": files}))


def damaged_record(folder: pathlib.Path, name: str) -> list[str]:
    """A line where one text file of a run differs from what was written, or the seal that says so is damaged.

    Folders without a seal (imported by an earlier release) have nothing to compare with.
    """
    if not (folder / SEAL).exists():
        return []
    return [line for line in damaged_records(folder) if line.startswith((f"{folder / name}:", f"{folder / SEAL}:"))]


def damaged_records(folder: pathlib.Path, *, kept_only: bool = False) -> list[str]:
    """One line for each text file of a run that is missing or differs from what was written; empty where whole.

    Args:
        folder: run folder.
        kept_only: pass over the files that a start of the run writes anew; a folder without a seal is then taken
            for a run that was killed before it wrote one.
    """
    if kept_only and not (folder / SEAL).exists():
        return []
    try:
        expected = read_sealed(folder / SEAL).get("files")
    except DamagedFile as error:
        return [f"{error.path}: {error.reason}"]
    if not isinstance(expected, dict):
        return [f"{folder / SEAL}: it names no files"]
    lines = []
    for name in sorted(expected):
        if kept_only and name in REWRITTEN:
            continue
        try:
            if not (folder / name).exists():
                lines.append(f"{folder / name}: it is missing")
            elif not (folder / name).is_file():
                lines.append(f"{folder / name}: it is not a regular file")
            elif file_sha256(folder / name) != expected[name]:
                lines.append(f"{folder / name}: contents differ from what was written")
        except OSError as error:
            lines.append(f"{folder / name}: cannot be read ({os_reason(error)})")
    return lines


def _records(folder: pathlib.Path) -> list[pathlib.Path]:
    files = [folder / name for name in REWRITTEN]
    for name in KEPT_FOLDERS:
        files += sorted((folder / name).rglob("*"))
    return [file for file in files if file.is_file()]
