"""Every file that the package writes: whole or not at all; checksums; whose an existing output is.

A sealed file is canonical JSON that holds the SHA-256 of the rest of itself. Since the bytes are canonical,
reading compares the whole file with what writing it again would give: every byte counts, blanks and line ends
included. Files are replaced, never edited: a temporary file is flushed to the disk and renamed over the old
one. A write that fails removes its temporary file and raises one error, which names the file.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from lsmfm_jax.errors import LsmfmError, os_reason

TEMPORARY = ".tmp"
# In a folder that a command fills with files of its own.
MARK = ".lsmfm.json"

# Temporary files and folders being written, for a program that is about to end at once.
_unfinished: set[pathlib.Path] = set()


class DamagedFile(LsmfmError, ValueError):
    """A file of a store or split does not hold what was written into it."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} is damaged: {self.reason}"


class WriteError(LsmfmError, OSError):
    """A file could not be written; what was there before is as it was."""

    def __init__(self, path: pathlib.Path, error: OSError) -> None:
        super().__init__(error.errno, os_reason(error))
        self.filename = str(path)

    def __str__(self) -> str:
        return f"{self.filename}: could not be written: {self.strerror}"


class ForeignOutput(LsmfmError, FileExistsError):
    """An output that is there already and that the command did not make."""


def sha256(data: bytes) -> str:
    """Give the SHA-256 of the bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: pathlib.Path) -> str:
    """Give the SHA-256 of a file in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: pathlib.Path) -> None:
    """Flush a folder's entries, so that a rename in it outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Give a temporary path for a writer that wants a path; put the file in place when the block ends well.

    Missing folders are made. Readers see the old content or the new, never a part; when the block fails, the
    temporary file is removed. The temporary name ends in `.tmp`, so a writer that goes by endings needs to be
    told the format.

    Raises:
        WriteError: the system does not take the file; OSErrors of the block count as that.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + TEMPORARY)
    _unfinished.add(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except LsmfmError:
        raise
    except OSError as error:
        raise WriteError(path, error) from error
    finally:
        _remove(temporary)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Give a new folder beside `path` to be filled; rename it to `path` when the block ends well.

    `path` may be an empty folder. When the block fails, the new folder is removed with all that is in it.

    Raises:
        WriteError: the system does not take the folder, or something is in `path`.
    """
    path = pathlib.Path(path)
    temporary = path.absolute().with_name(f".{path.name}.lsmfm{TEMPORARY}")
    _remove(temporary)
    _unfinished.add(temporary)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
        sync_folder(path.absolute().parent)
    except LsmfmError:
        raise
    except OSError as error:
        raise WriteError(path, error) from error
    finally:
        _remove(temporary)


def _remove(temporary: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
    _unfinished.discard(temporary)


def remove_unfinished() -> None:
    """Remove the temporary files of writes that are going on; for a process that ends now."""
    for temporary in list(_unfinished):
        _remove(temporary)


def replace_file(path: pathlib.Path, data: bytes) -> None:
    """Put `data` at `path` in one step: readers see the old content or the new, never a part.

    Raises:
        WriteError: the system does not take it.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)


def replace_text(path: pathlib.Path, text: str) -> None:
    """Put UTF-8 text at `path` in one step."""
    replace_file(path, text.encode("utf-8", "surrogateescape"))


def json_text(value: Any) -> str:
    """JSON as our records have it: keys sorted, an entry a line."""
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def replace_json(path: pathlib.Path, value: Any) -> None:
    """Put JSON at `path` in one step."""
    replace_text(path, json_text(value))


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
    """Read a whole file; a pipe or a device, which might never end, is none.

    Raises:
        DamagedFile: it is missing or cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise DamagedFile(str(path), "it is not a regular file")
        return path.read_bytes()
    except OSError as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DamagedFile(str(path), reason) from None


def parse_json(path: pathlib.Path, data: bytes) -> Any:
    """Read JSON from the bytes of a file.

    Raises:
        DamagedFile: it is not JSON.
    """
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DamagedFile(str(path), f"not readable as JSON ({reason})") from None


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DamagedFile: the file is missing, cannot be read, or holds no JSON object.
    """
    body = parse_json(path, read_bytes(path))
    if not isinstance(body, dict):
        raise DamagedFile(str(path), "not a JSON object")
    return body


def read_sealed(path: pathlib.Path) -> dict[str, Any]:
    """Read what `seal` wrote, without the checksum.

    Raises:
        DamagedFile: the file is missing, is not JSON, or one byte of it differs from what was written.
    """
    data = read_bytes(path)
    body = parse_json(path, data)
    if not isinstance(body, dict):
        raise DamagedFile(str(path), "not a JSON object")
    body.pop("sha256", None)
    try:
        whole = seal(body) == data
    except ValueError:  # NaN, or half a surrogate pair: no file of ours has them
        whole = False
    if not whole:
        raise DamagedFile(str(path), "its checksum does not match its content")
    return body


def refuse_foreign(
    path: str | os.PathLike[str],
    *,
    made_by: str,
    mark: bytes = b"",
    overwrite: bool = False,
    name: str = "--out",
    flag: bool = True,
) -> None:
    """Refuse to write over what the command did not make.

    Allowed are a path where nothing is, an empty file or folder, a file that has `mark` among its first 4096 bytes,
    and a folder that `mark_folder` marked for the same command.

    Args:
        path: file or folder that is to be written.
        made_by: the command, such as "data phantom".
        mark: what the command's own files begin with; none: any file that is there is refused.
        overwrite: allow it anyway, because the user asked for it.
        flag: whether the command has `--overwrite`, for the advice.

    Raises:
        ForeignOutput: something else is there.
    """
    path = pathlib.Path(path)
    if overwrite or not os.path.lexists(path) or _is_ours(path, made_by=made_by, mark=mark):
        return
    what = "a folder with files in it" if path.is_dir() else "a file"
    raise ForeignOutput(
        f"{path}: {what} that `lsmfm {made_by}` did not write is there already; name another path"
        f"{', or pass --overwrite to replace it' if flag else ', or remove it'}"
    )


def _is_ours(path: pathlib.Path, *, made_by: str, mark: bytes) -> bool:
    if path.is_dir():
        if not any(path.iterdir()):
            return True
        try:
            return read_json(path / MARK).get("made_by") == made_by
        except DamagedFile:
            return False
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    return not start or (bool(mark) and mark in start)


def mark_folder(path: pathlib.Path, *, made_by: str) -> None:
    """Mark a folder as filled by a command, made if absent, so that the same command may fill it again."""
    replace_json(path / MARK, {"made_by": made_by})
