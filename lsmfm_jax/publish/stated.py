"""What no run records and its owner states: licence and authors; and what of a run stays on its owner's machine."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from lsmfm_jax.errors import LsmfmError

# Keys of a run's records whose texts are paths, on whatever machine the run was made.
_PATH_KEYS = ("folder", "stores", "split", "init_from", "class_from", "file")
_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


class PackageError(LsmfmError, ValueError):
    """A run cannot be packaged as asked; the message names the option or the run, the value and what to do."""


@dataclasses.dataclass(frozen=True)
class Stated:
    """What the owner of a run states of it.

    Attributes:
        license: SPDX identifier of the weights' licence, such as `CC-BY-4.0`; empty: not stated.
        authors: names of who made the model.

    Raises:
        PackageError: the licence has not the form of an identifier, or a name is empty or holds a slash.
    """

    license: str = ""
    authors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.license and not _SPDX.fullmatch(self.license):
            raise PackageError(
                f"--license {self.license!r}: an SPDX identifier is needed, one word such as CC-BY-4.0, Apache-2.0 or "
                "MIT; https://spdx.org/licenses lists them"
            )
        for name in self.authors:
            if not name.strip() or "/" in name or len(name.splitlines()) > 1:
                raise PackageError(
                    f"--author {name!r}: a person's name is needed, on one line and without a slash; repeat --author "
                    "for each person"
                )


NOTHING_STATED = Stated()


def last_part(path: Any) -> str:
    """The name at the end of a path or URL: what others may know of where data lay."""
    return pathlib.PurePosixPath(str(path).rstrip("/")).name


def without_folders(record: Any, *, key: str = "") -> Any:
    """A record of a run in which each path is its last part.

    Args:
        record: JSON, as `run.json` or `config.json` have it.
        key: under which the record stands.
    """
    if isinstance(record, Mapping):
        return {name: without_folders(value, key=str(name)) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [without_folders(value, key=key) for value in record]
    # Elsewhere a slash may stand in the name of a model of the hub.
    local = isinstance(record, str) and (key in _PATH_KEYS or record.startswith(("/", "~", "./", "../")))
    return last_part(record) if local else record
