"""Reading every byte of a patch store and naming what is damaged."""

import pathlib
from typing import NamedTuple

from lsmfm_jax.files import DamagedFile, read_bytes, sha256
from lsmfm_jax.store.manifest import Part
from lsmfm_jax.store.reader import PARTS, DamagedPatch, PatchStore, StoreError, check_plain_file


class Damage(NamedTuple):
    """One damaged file of a store, and in what way."""

    path: str
    what: str


def verify_store(path: str | pathlib.Path) -> list[Damage]:
    """Read everything that a store holds; an empty list means that every byte is as it was written.

    A damaged text file hides what it lists, so it is reported alone: restore it, then verify again.
    """
    path = pathlib.Path(path)
    try:
        store = PatchStore.open(path)
    except DamagedFile as error:
        return [Damage(error.path, error.reason)]
    except StoreError as error:
        return [Damage(str(path), str(error))]
    return [damage for part in store.parts.values() for damage in _verify_part(store, part)]


def _verify_part(store: PatchStore, part: Part) -> list[Damage]:
    folder = store.path / PARTS / part.name
    damaged = []
    for name, expected in part.files.items():
        try:
            check_plain_file(folder, name)
            if sha256(read_bytes(folder / name)) != expected:
                damaged.append(Damage(str(folder / name), "its checksum does not match the manifest's"))
        except DamagedFile as error:
            damaged.append(Damage(error.path, error.reason))
    if not damaged:
        return []
    lost = [row.id for i, row in enumerate(store.rows) if row.part == part.name and not _readable(store, i)]
    patches = f"; unreadable patches: {', '.join(lost)}" if lost else "; its patches can still be read"
    return [Damage(path, what + patches) for path, what in damaged]


def _readable(store: PatchStore, i: int) -> bool:
    try:
        store.read(i)
    except DamagedPatch:
        return False
    return True
