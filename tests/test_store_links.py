"""Stores that lead somewhere else: by links, by names in their text files, by a backslash in their path."""

import dataclasses
import os
import pathlib

import pytest
from data_files import make_row, noise, save_nifti

from lsmfm_jax.files import DamagedFile
from lsmfm_jax.store.ingest import ingest
from lsmfm_jax.store.manifest import manifest_bytes, read_manifest
from lsmfm_jax.store.reader import DamagedPatch, PatchStore, StoreError
from lsmfm_jax.store.verify import verify_store
from lsmfm_jax.store.writer import StoreWriter, sweep


def _store(path: pathlib.Path) -> pathlib.Path:
    with StoreWriter(path) as writer:
        writer.add(noise(1), make_row("a"))
    return path


def _files(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("with_header", [True, False])
def test_nothing_outside_is_swept_through_a_link(tmp_path, with_header):
    path, precious = _store(tmp_path / "s"), tmp_path / "precious"
    (path / "parts").rename(precious)
    (precious / "12345").mkdir()
    (precious / "12345" / "thesis.txt").write_text("mine")
    (precious / "notes.tmp").write_text("mine")
    (path / "parts").symlink_to(precious)
    if not with_header:
        (path / "store.json").unlink()
    before = _files(precious)
    with pytest.raises(StoreError, match=r"parts is a link"):
        StoreWriter(path)
    with pytest.raises(StoreError, match="is a link"):
        sweep(path, set())
    assert _files(precious) == before


def test_of_a_link_in_the_store_only_the_link_is_swept(tmp_path):
    path, precious = _store(tmp_path / "s"), tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    (path / "parts" / "00007").symlink_to(precious)
    (path / "manifest.jsonl.tmp").symlink_to(precious / "thesis.txt")
    with StoreWriter(path) as writer:
        writer.add(noise(2), make_row("b"))
    assert _files(precious) == {str(precious / "thesis.txt"): b"mine"}
    assert not os.path.lexists(path / "parts" / "00007") and len(PatchStore.open(path)) == 2


def test_a_new_store_writes_through_no_link(tmp_path):
    path, precious = tmp_path / "s", tmp_path / "thesis.txt"
    path.mkdir()
    precious.write_text("mine")
    (path / "manifest.jsonl.tmp").symlink_to(precious)
    _store(path)
    assert precious.read_text() == "mine" and verify_store(path) == []


def test_what_a_person_put_into_a_store_is_not_swept(tmp_path):
    path = _store(tmp_path / "s")
    (path / "parts" / "README").write_text("mine")
    (path / "draft.tmp").write_text("mine")
    with StoreWriter(path) as writer:
        writer.add(noise(2), make_row("b"))
    assert (path / "parts" / "README").read_text() == (path / "draft.tmp").read_text() == "mine"


@pytest.mark.parametrize("name", ["in\\side", "..\\outside", "end\\"])
def test_a_backslash_in_the_path_is_refused_before_anything_is_written(tmp_path, name):
    save_nifti(tmp_path / "d" / "glia" / "a.nii", noise(1))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match="backslash"):
        ingest(layout="selma", root=tmp_path / "d", out=tmp_path / name, captions=None)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["../../../secret.txt", "/etc/hostname", "c/../../../secret.txt", "..\\secret.txt", "", "c//0", "./x", ".."]
)
def test_names_of_files_in_a_manifest_stay_in_its_part(tmp_path, name):
    path = _store(tmp_path / "s")
    (tmp_path / "secret.txt").write_text("secret")
    manifest = read_manifest(path / "manifest.jsonl")
    part = dataclasses.replace(manifest.parts[0], files=manifest.parts[0].files | {name: "0" * 64})
    (path / "manifest.jsonl").write_bytes(manifest_bytes([part], manifest.rows))
    with pytest.raises(DamagedFile, match=r"manifest\.jsonl is damaged: part 00000 names the file"):
        PatchStore.open(path)
    assert [damage.path for damage in verify_store(path)] == [str(path / "manifest.jsonl")]


@pytest.mark.parametrize("name", ["..", "../../precious", "/tmp", "00000/../..", "a", "", "00000\n"])
def test_names_of_parts_are_numbers(tmp_path, name):
    path = _store(tmp_path / "s")
    manifest = read_manifest(path / "manifest.jsonl")
    part = dataclasses.replace(manifest.parts[0], name=name)
    row = dataclasses.replace(manifest.rows[0], part=name)
    (path / "manifest.jsonl").write_bytes(manifest_bytes([part], [row]))
    for use in (PatchStore.open, StoreWriter):
        with pytest.raises(DamagedFile, match="is no number of five digits"):
            use(path)


def test_rows_and_parts_that_do_not_fit_are_damage(tmp_path):
    path = _store(tmp_path / "s")
    manifest = read_manifest(path / "manifest.jsonl")
    row, part = manifest.rows[0], manifest.parts[0]
    for parts, rows in (
        ([part], [dataclasses.replace(row, index=1)]),
        ([part], [dataclasses.replace(row, index=-1)]),
        ([part], [dataclasses.replace(row, part="00001")]),
        ([dataclasses.replace(part, files={})], [row]),
    ):
        (path / "manifest.jsonl").write_bytes(manifest_bytes(parts, rows))
        with pytest.raises(DamagedFile, match="manifest"):
            PatchStore.open(path)


def test_parts_are_not_read_through_links_or_pipes(tmp_path):
    path = _store(tmp_path / "s")
    shard = next(file for file in (path / "parts").rglob("*") if file.is_file() and file.name != "zarr.json")
    data = shard.read_bytes()
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    assert "it is a link" in verify_store(path)[0].what
    shard.unlink()
    os.mkfifo(shard)
    assert "no plain file" in verify_store(path)[0].what
    shard.unlink()
    shard.write_bytes(data)
    assert verify_store(path) == []
    (path / "parts" / "00000").rename(tmp_path / "00000")
    (path / "parts" / "00000").symlink_to(tmp_path / "00000")
    with pytest.raises(DamagedPatch, match="it is a link"):
        PatchStore.open(path).read(0)
