"""Stores: what goes in comes out, a crash leaves them whole, and one flipped bit is found and named."""

import os
import pathlib
import pickle
import shutil

import numpy as np
import pytest
from data_files import make_row, noise

from lsmfm_jax import files as files_module
from lsmfm_jax.files import DamagedFile, seal
from lsmfm_jax.store import writer as writer_module
from lsmfm_jax.store.manifest import PatchRow
from lsmfm_jax.store.reader import DamagedPatch, PatchStore, StoreError
from lsmfm_jax.store.verify import verify_store
from lsmfm_jax.store.writer import StoreWriter

# About three patches of (6, 5, 4) in uint16 a part.
PART_BYTES = 800


def _add(writer: StoreWriter, count: int, *, start: int = 0, dtype: str = "uint16") -> None:
    for number in range(start, start + count):
        pixels = noise(number, dtype=dtype)
        writer.add(pixels, make_row(f"patch {number}"))


def _fill(path: pathlib.Path, *, count: int = 8) -> pathlib.Path:
    with StoreWriter(path, part_bytes=PART_BYTES) as writer:
        writer.add_captions({"k": ["one text", "another"]})
        _add(writer, count)
    return path


def _number(row: PatchRow) -> int:
    return int(row.id.removeprefix("patch "))


def _assert_holds(path: pathlib.Path, count: int) -> None:
    store = PatchStore.open(path)
    assert sorted(map(_number, store.rows)) == list(range(count))
    for i, row in enumerate(store.rows):
        np.testing.assert_array_equal(store.read(i), noise(_number(row)))
    assert verify_store(path) == []
    assert {entry.name for entry in (path / "parts").iterdir()} == set(store.parts)


def test_patches_and_rows_come_back_from_every_part(tmp_path: pathlib.Path) -> None:
    path = _fill(tmp_path / "s")
    _assert_holds(path, 8)
    store = PatchStore.open(path)
    assert len(store.parts) > 1 and store.captions == {"k": ["one text", "another"]}
    with StoreWriter(path) as writer:
        writer.add(noise(90, dtype="float32"), make_row("patch 8"))
        writer.add(noise(91, shape=(3, 7, 2)), make_row("patch 9"))
        writer.add_captions({"k": ["another", "third"], "l": ["new"]})
    grown = PatchStore.open(path)
    assert grown.rows[:8] == store.rows and len(grown.rows) == 10
    assert grown.captions == {"k": ["one text", "another", "third"], "l": ["new"]}
    at = next(i for i, row in enumerate(grown.rows) if row.id == "patch 8")
    assert grown.read(at).dtype == np.float32
    np.testing.assert_array_equal(grown.read(at), noise(90, dtype="float32"))


def test_a_store_travels_to_other_processes_by_pickle(tmp_path: pathlib.Path) -> None:
    store = PatchStore.open(_fill(tmp_path / "s"))
    before = store.read(3)
    again = pickle.loads(pickle.dumps(store))
    assert not again._arrays and again.rows == store.rows
    np.testing.assert_array_equal(again.read(3), before)


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_child_gets_a_clear_error_and_no_abort(tmp_path: pathlib.Path) -> None:
    store = PatchStore.open(_fill(tmp_path / "s"))
    store.read(0)
    child = os.fork()
    if child == 0:
        try:
            store.read(1)
        except RuntimeError as error:
            os._exit(7 if "spawn" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize("moment", ["in the middle of a part", "before its rename", "before the manifest"])
def test_an_interrupted_writer_leaves_a_store_that_the_next_completes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path = _fill(tmp_path / "s", count=3)

    def crash(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    class HalfArray:
        def write(self, pixels: np.ndarray) -> None:
            (path / "parts" / "00001.tmp" / "c").mkdir(parents=True)
            (path / "parts" / "00001.tmp" / "c" / "half").write_bytes(b"half a shard")
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        # As a kill leaves it: nothing is tidied up, and the system drops the lock.
        patched.setattr(StoreWriter, "__exit__", lambda self, *_: os.close(self._lock))
        patched.setattr(files_module, "_remove", lambda temporary: None)
        if moment == "in the middle of a part":
            patched.setattr(writer_module, "open_for_writing", lambda *a, **k: HalfArray())
        elif moment == "before its rename":
            patched.setattr(files_module.os, "replace", crash)
        else:
            patched.setattr(StoreWriter, "_commit", crash)
        with StoreWriter(path, part_bytes=PART_BYTES) as writer:
            _add(writer, 4, start=3)
    assert len(list((path / "parts").iterdir())) > len(PatchStore.open(path).parts)
    assert len(PatchStore.open(path)) == 3 and verify_store(path) == []
    with StoreWriter(path, part_bytes=PART_BYTES) as writer:
        _add(writer, 5, start=3)
    _assert_holds(path, 8)


def test_a_store_whose_making_was_interrupted_is_made_anew(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s"
    path.mkdir()
    (path / "manifest.jsonl.tmp").write_bytes(b"half")
    with pytest.raises(StoreError, match=r"no store\.json"):
        PatchStore.open(path)
    _fill(path)
    _assert_holds(path, 8)
    assert not list(path.glob("*.tmp"))


def test_foreign_and_damaged_folders_are_never_written_into(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"not empty .*thesis\.txt"):
        StoreWriter(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]
    path = _fill(tmp_path / "s")
    (path / "manifest.jsonl").unlink()
    with pytest.raises(DamagedFile, match=r"manifest.*missing"):
        StoreWriter(path)
    (path / "store.json").unlink()
    with pytest.raises(StoreError, match="damaged"):
        StoreWriter(path)
    assert len(list((path / "parts").iterdir())) > 1


def test_one_writer_at_a_time(tmp_path: pathlib.Path) -> None:
    path = _fill(tmp_path / "s")
    with StoreWriter(path), pytest.raises(StoreError, match="another process"):
        StoreWriter(path)
    with StoreWriter(path) as writer:
        assert len(writer.rows) == 8


def test_unknown_versions_and_other_folders(tmp_path: pathlib.Path) -> None:
    path = _fill(tmp_path / "s")
    (path / "store.json").write_bytes(seal({"format": "lsmfm-patch-store", "version": 2}))
    with pytest.raises(StoreError, match="version 2 is unknown, this program reads 1"):
        PatchStore.open(path)
    (path / "store.json").write_bytes(seal({"format": "other", "version": 1}))
    with pytest.raises(StoreError, match="format is 'other'"):
        PatchStore.open(path)
    with pytest.raises(StoreError, match="not a patch store"):
        PatchStore.open(tmp_path)


def test_one_flipped_bit_anywhere_is_found_named_and_never_read(tmp_path: pathlib.Path) -> None:
    path = _fill(tmp_path / "s", count=4)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    assert {file.name for file in files} == {
        "store.json",
        "captions.json",
        "manifest.jsonl",
        "zarr.json",
        "0",
    }
    expected = {_number(row): noise(_number(row)) for row in PatchStore.open(path).rows}
    rng = np.random.default_rng(0)
    for flip in range(60):
        file = files[flip % len(files)]
        good = file.read_bytes()
        bad = bytearray(good)
        bad[rng.integers(len(good))] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        found = verify_store(path)
        assert str(file) in {damage.path for damage in found}, (file, flip)
        assert all(damage.what for damage in found)
        for number, pixels in _readable(path):
            np.testing.assert_array_equal(pixels, expected[number])
        file.write_bytes(good)
    assert verify_store(path) == []


def _readable(path: pathlib.Path) -> list[tuple[int, np.ndarray]]:
    try:
        store = PatchStore.open(path)
    except DamagedFile:
        return []
    whole = []
    for i, row in enumerate(store.rows):
        try:
            whole.append((_number(row), store.read(i)))
        except DamagedPatch as error:
            assert (error.part, error.index) == (row.part, row.index) and error.reason
            assert pickle.loads(pickle.dumps(error)).args == error.args
    return whole


def test_missing_and_truncated_files_are_found_and_named(tmp_path: pathlib.Path) -> None:
    path = _fill(tmp_path / "s", count=4)
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        good = file.read_bytes()
        file.write_bytes(good[:-1])
        assert str(file) in {damage.path for damage in verify_store(path)} | {str(path)}
        assert verify_store(path)
        file.unlink()
        assert any("missing" in damage.what or "has no" in damage.what for damage in verify_store(path))
        file.write_bytes(good)
    shutil.rmtree(path / "parts" / "00000")
    store = PatchStore.open(path)
    lost = next(i for i, row in enumerate(store.rows) if row.part == "00000")
    with pytest.raises(DamagedPatch, match="patch 0 of part 00000"):
        store.read(lost)
    assert "unreadable patches: patch 0" in verify_store(path)[0].what
