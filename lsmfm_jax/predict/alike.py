"""Files that parts of a prediction which start together all write, with the same content."""

import pathlib

from lsmfm_jax.files import WriteError, replace_file


def write_alike(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, and takes it for written where another process has put the same content there meanwhile.

    Both use one temporary file, so whoever is second may find it gone.

    Raises:
        WriteError: the system does not take the file, and what is there is something else.
    """
    try:
        replace_file(path, content)
    except WriteError:
        if not path.is_file() or path.read_bytes() != content:
            raise
