"""Small text files that notice when one bit of them changes.

A sealed file is canonical JSON that holds the SHA-256 of the rest of itself. Since the bytes are canonical,
reading compares the whole file with what writing it again would give: every byte counts, blanks and line ends
included. Files are replaced, never edited: a temporary file is flushed to the disk and renamed over the old
one.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

TEMPORARY = ".tmp"


class DamagedFile(ValueError):
    """A file of a store or split does not hold what was written into it."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} is damaged: {self.reason}"


def sha256(data: bytes) -> str:
    """Give the SHA-256 of the bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sync_folder(folder: pathlib.Path) -> None:
    """Flush a folder's entries, so that a rename in it outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: pathlib.Path, data: bytes) -> None:
    """Put `data` at `path` in one step: readers see the old content or the new, never a part."""
    temporary = path.with_name(path.name + TEMPORARY)
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def canonical_json(value: Any, *, indent: int | None = None) -> bytes:
    """Write JSON in the one form that a sealed file may have."""
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(value, sort_keys=True, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def seal(body: dict[str, Any]) -> bytes:
    """Write a dictionary as canonical JSON with the checksum of itself under `sha256`."""
    if "sha256" in body:
        raise ValueError("a sealed dictionary names its own checksum 'sha256': call that entry something else")
    return canonical_json(body | {"sha256": sha256(canonical_json(body, indent=1))}, indent=1)


def read_bytes(path: pathlib.Path) -> bytes:
    """Read a whole file.

    Raises:
        DamagedFile: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DamagedFile(str(path), reason) from None


def read_sealed(path: pathlib.Path) -> dict[str, Any]:
    """Read what `seal` wrote, without the checksum.

    Raises:
        DamagedFile: the file is missing, is not JSON, or one byte of it differs from what was written.
    """
    data = read_bytes(path)
    try:
        body = json.loads(data.decode())
    except ValueError as error:
        raise DamagedFile(str(path), f"not readable as JSON ({error})") from None
    if not isinstance(body, dict):
        raise DamagedFile(str(path), "not a JSON object")
    body.pop("sha256", None)
    if seal(body) != data:
        raise DamagedFile(str(path), "its checksum does not match its content")
    return body
