"""Parts that start together write some files twice."""

import pytest

from lsmfm_jax.files import WriteError
from lsmfm_jax.predict.alike import write_alike


def _overtaken(path, other):
    """As `replace_file`, of a process whose temporary file another one has put in place under its own name."""

    def write(path_, content):
        path.write_bytes(other)
        raise WriteError(path, FileNotFoundError(2, "No such file or directory"))

    return write


def test_the_same_content_of_another_process_counts_as_written(tmp_path, monkeypatch):
    path = tmp_path / "zarr.json"
    monkeypatch.setattr("lsmfm_jax.predict.alike.replace_file", _overtaken(path, b"same"))
    write_alike(path, b"same")
    assert path.read_bytes() == b"same"
    monkeypatch.setattr("lsmfm_jax.predict.alike.replace_file", _overtaken(path, b"other"))
    with pytest.raises(WriteError):
        write_alike(path, b"same")
