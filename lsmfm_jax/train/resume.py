"""Whether a folder holds a run that may be continued: the same configuration, whole records, a checkpoint."""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from lsmfm_jax.config.load import as_json, differences
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import DamagedFile, read_json
from lsmfm_jax.store.reader import HEADER
from lsmfm_jax.train.checkpoint_checks import committed_steps
from lsmfm_jax.train.records import damaged_records


class ResumeError(LsmfmError, RuntimeError):
    """A run folder that does not belong to this configuration; the message shows the difference."""


def check_place(folder: pathlib.Path) -> None:
    """Refuses what cannot become the folder of a run, before anything is written there.

    Raises:
        ResumeError: a file, or a patch store.
    """
    if folder.exists() and not folder.is_dir():
        raise ResumeError(f"{folder}: a file, and a run is a folder: name another --workdir")
    if (folder / HEADER).is_file():
        raise ResumeError(
            f"{folder}: a patch store, and a run would write between its patches: name another --workdir, and the "
            "store in data.stores or data.folder"
        )


def check_run_folder(config: ConfigDict, folder: pathlib.Path, *, allow_change: bool = False) -> bool:
    """Whether the folder holds a run to be continued.

    Raises:
        ResumeError: it holds a run of another configuration, and that was not allowed by name; or as `check_place`.
    """
    file = folder / "config.json"
    check_place(folder)
    if not file.exists():
        return False
    damaged = damaged_records(folder, kept_only=True)
    if damaged:
        raise ResumeError(
            f"{'; '.join(damaged)}. Resume refused: restore the file from a copy, or use another --workdir"
        )
    try:
        before = read_json(file)
    except DamagedFile as error:
        raise ResumeError(
            f"{file}: damaged: {error.reason}. Resume refused: restore it from a copy, or remove it to have it "
            "written anew"
        ) from error
    # Data may move: the split of the run names each patch by its hash, and is compared with what is there now.
    now = as_json(config)
    moved = _may_have_moved(before, now) if (folder / "split.json").is_file() else ()
    changed = [line for line in differences(before, now) if line.partition(":")[0] not in moved]
    if changed and not allow_change:
        raise ResumeError(
            f"{folder} holds a run of another configuration: {'; '.join(changed)}. Resume refused: use another "
            "--workdir, undo the change, or pass --allow-config-change"
        )
    return True


def _may_have_moved(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """Keys that name where the data is, and as much of it as before."""
    stores = [values.get("data", {}).get("stores") for values in (before, now)]
    as_many = all(isinstance(value, list) for value in stores) and len(stores[0]) == len(stores[1])
    return ("data.folder", "data.stores") if as_many else ("data.folder",)


def has_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a run folder holds a checkpoint to continue from."""
    return bool(committed_steps(folder / "checkpoints"))
