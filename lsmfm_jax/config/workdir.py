"""A workdir goes on with the declaration that it was begun with: experiments and sweeps."""

import pathlib
from collections.abc import Mapping
from typing import Any

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import read_sealed


def check_workdir(path: pathlib.Path, kind: str, record: dict[str, Any], error: type[LsmfmError]) -> bool:
    """Whether a declaration was begun in the folder of `path`, and is the same.

    Args:
        path: sealed file in the workdir that holds the declaration under the key `kind`; may be missing.
        kind: what is declared, as a word for a message.
        record: the declaration as JSON values.
        error: what is raised.

    Returns:
        True where it was begun, False where the workdir is empty or not there.

    Raises:
        LsmfmError: of type `error`: another one was begun there, or the folder holds other files.
        DamagedFile: the record was edited.
    """
    workdir = path.parent
    if path.exists():
        change = first_difference(read_sealed(path)[kind], record)
        if change:
            raise error(
                f"{path}: another {kind} was begun there: {change}; name another --workdir, or declare it as it was"
            )
        return True
    if workdir.is_dir() and any(one.name != ".lock" for one in workdir.iterdir()):
        raise error(f"{workdir}: a folder with other files in it; name an empty --workdir")
    return False


def first_difference(before: Any, after: Any, where: str = "") -> str:
    """The first entry in which two declarations differ, as `studies.0.sizes: [5] -> [5, 15]`; empty where none."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted(before.keys() | after.keys())
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        keys = range(len(before))
    else:
        return "" if before == after else f"{where}: {_short(before)} -> {_short(after)}"
    for key in keys:
        pair = [one.get(key) if isinstance(one, Mapping) else one[key] for one in (before, after)]
        found = first_difference(*pair, f"{where}.{key}" if where else str(key))
        if found:
            return found
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
