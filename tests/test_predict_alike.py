"""Parts that start together write some files at the same time."""

import concurrent.futures

import pytest

from lsmfm_jax.files import WriteError
from lsmfm_jax.predict.alike import write_alike


def test_writers_at_the_same_time_do_not_meet_and_readers_see_all_of_it(tmp_path):
    path, content = tmp_path / "new" / "zarr.json", bytes(range(256)) * 400

    def write(number):
        write_alike(path, content)
        return path.read_bytes() == content

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write, range(200)))
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_is_told_and_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(WriteError, match="taken"):
        write_alike(tmp_path / "taken", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
