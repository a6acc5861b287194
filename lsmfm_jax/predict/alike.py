"""Files that parts of a prediction which start together all write, with the same content."""

import os
import pathlib
import uuid

from lsmfm_jax.files import TEMPORARY, WriteError, sync_folder


def write_alike(path: pathlib.Path, content: bytes) -> None:
    """Writes a file in one step, by a temporary file of this call alone, as another process may write it meanwhile.

    Raises:
        WriteError: the system does not take the file.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise WriteError(path, error) from error
