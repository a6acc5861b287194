"""Folders that one process at a time writes to: a lock that the system drops when its holder dies."""

import contextlib
import datetime
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import WriteError

LOCK = ".lock"


class Locked(LsmfmError, RuntimeError):
    """Another process writes to the folder; the message names it."""


@contextlib.contextmanager
def locked(folder: pathlib.Path, *, use: str) -> Iterator[None]:
    """Hold a folder for this process; the system drops the lock when the process dies, however it dies.

    Args:
        folder: made if absent.
        use: what this process does there, for the message that another one prints.

    Raises:
        Locked: another process holds it.
    """
    there = folder.exists()
    handle = hold(folder, use=use)
    try:
        yield
    finally:
        release(folder, handle)
        if not there:
            # A folder that was made for the lock alone, as what was asked for was then refused.
            with contextlib.suppress(OSError):
                folder.rmdir()


def hold(folder: pathlib.Path, *, use: str) -> int:
    """As `locked`, for holders that are no `with` block: gives a handle for `release`."""
    path = folder / LOCK
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise WriteError(path, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 4096, 0).decode(errors="replace").strip()
            os.close(handle)
            raise Locked(
                f"{folder}: another process is writing there: {holder or 'unknown'}; wait until it ends, or name "
                "another folder"
            ) from None
        except OSError:
            return handle  # a file system without locks: nothing to do but trust the user
        # Its last holder may have removed the file between our opening and our locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                break
        os.close(handle)
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    with contextlib.suppress(OSError):  # on a full disk the lock holds, and only the name of its holder is missing
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{use}, process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
    return handle


def release(folder: pathlib.Path, handle: int) -> None:
    """Let go of a folder that `hold` has taken, and leave no file of it behind."""
    with contextlib.suppress(OSError):
        (folder / LOCK).unlink()
    os.close(handle)
