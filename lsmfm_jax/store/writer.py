"""Adding patches to a store, so that a kill at any moment leaves a whole store behind."""

import dataclasses
import os
import pathlib
import re
import shutil
from types import TracebackType

import numpy as np
from jaxtyping import Shaped

from lsmfm_jax.files import TEMPORARY, WriteError, file_sha256, replace_file, replacing_folder, seal
from lsmfm_jax.locks import LOCK, Locked, hold, release
from lsmfm_jax.store.manifest import MANIFEST, Manifest, Part, PatchRow, manifest_bytes, read_manifest
from lsmfm_jax.store.reader import (
    CAPTIONS,
    FORMAT,
    HEADER,
    PARTS,
    VERSION,
    StoreError,
    check_header,
    open_for_writing,
    read_captions,
)

# Pixels gathered before a part is written; also what one interrupted writer can lose per shape and type.
PART_BYTES = 64 * 2**20
BUFFER_BYTES = 256 * 2**20


class StoreWriter:
    """Appends patches to a store, made if it does not exist; use as a context manager.

    Leaving the block without an exception writes what is buffered. With an exception, what was committed
    stays.

    Attributes:
        rows: rows in the store when it was opened, then those added.
        captions: caption key -> texts, as committed.

    Raises:
        StoreError: the folder holds something else or a link, or another process is adding to it.
        DamagedFile: the store's own text files are damaged.
    """

    def __init__(self, path: pathlib.Path, *, part_bytes: int = PART_BYTES) -> None:
        self.path, self._part_bytes = path, part_bytes
        # Before the lock, which leaves a file in the folder.
        _check_place(path)
        _refuse_strangers(path)
        try:
            self._lock = hold(path, use="adding to this store")
        except Locked as error:
            raise StoreError(str(error)) from None
        try:
            manifest, self.captions = _open(path)
        except BaseException:
            release(path, self._lock)
            raise
        self.rows: list[PatchRow] = list(manifest.rows)
        self._parts: list[Part] = list(manifest.parts)
        self._committed_parts = len(self._parts)
        self._buffers: dict[tuple[tuple[int, ...], str], list[tuple[np.ndarray, PatchRow]]] = {}

    def add_captions(self, captions: dict[str, list[str]]) -> None:
        """Add texts to the store's captions; a key that is there keeps its texts and gains the new ones."""
        merged = {key: list(texts) for key, texts in self.captions.items()}
        for key, texts in captions.items():
            merged[key] = list(dict.fromkeys([*merged.get(key, []), *texts]))
        if merged != self.captions:
            self.captions = merged
            replace_file(self.path / CAPTIONS, seal({"captions": merged}))

    def add(self, pixels: Shaped[np.ndarray, "z y x"], row: PatchRow) -> None:
        """Add one patch; its row's `part` and `index` are filled in here.

        Buffered until a part is full, so the rows appear in `self.rows` in the order of the parts.
        """
        group = (pixels.shape, str(pixels.dtype))
        buffer = self._buffers.setdefault(group, [])
        buffer.append((pixels, row))
        if _size(buffer) + pixels.nbytes > self._part_bytes:
            self._write_part(group)
        elif sum(map(_size, self._buffers.values())) > BUFFER_BYTES:
            self._write_part(max(self._buffers, key=lambda name: _size(self._buffers[name])))
        # The manifest is written whole, so its rewrites are spaced as the store grows.
        if len(self._parts) - self._committed_parts > self._committed_parts // 20:
            self._commit()

    def _write_part(self, group: tuple[tuple[int, ...], str]) -> None:
        patches = self._buffers.pop(group)
        name = f"{len(self._parts):05d}"
        folder = self.path / PARTS / name
        shape, dtype = (len(patches), *group[0]), group[1]
        with replacing_folder(folder) as temporary:
            try:
                array = open_for_writing(temporary, shape=shape, dtype=dtype)
                array.write(np.stack([pixels for pixels, _ in patches])).result()
            except ValueError as error:  # tensorstore's kind for whatever the disk refuses
                raise WriteError(folder, _os_error(error)) from error
            files = {
                file.relative_to(temporary).as_posix(): file_sha256(file)
                for file in sorted(temporary.rglob("*"))
                if file.is_file()
            }
        self._parts.append(Part(name=name, shape=shape, dtype=dtype, files=files))
        self.rows += [dataclasses.replace(row, part=name, index=index) for index, (_, row) in enumerate(patches)]

    def _commit(self) -> None:
        replace_file(self.path / MANIFEST, manifest_bytes(self._parts, self.rows))
        self._committed_parts = len(self._parts)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for group in list(self._buffers):
                    self._write_part(group)
                if len(self._parts) > self._committed_parts:
                    self._commit()
        finally:
            if len(self._parts) > self._committed_parts:
                # Parts that no manifest names only take up room, perhaps on a disk that is full.
                sweep(self.path, {part.name for part in self._parts[: self._committed_parts]})
            release(self.path, self._lock)


def sweep(path: pathlib.Path, parts: set[str]) -> list[str]:
    """Remove what an interrupted writer left: temporary files, and parts that the manifest does not name.

    Of a link only the link is removed.

    Raises:
        StoreError: the folder of the parts is itself a link.
    """
    _refuse_links(path)
    orphans = [entry for entry in sorted((path / PARTS).iterdir()) if entry.name not in parts and _ours(entry)]
    orphans += [file for name in (HEADER, CAPTIONS, MANIFEST) if os.path.lexists(file := path / f"{name}{TEMPORARY}")]
    for orphan in orphans:
        if orphan.is_dir() and not orphan.is_symlink():
            shutil.rmtree(orphan)
        else:
            orphan.unlink()
    return [orphan.name for orphan in orphans]


def _ours(entry: pathlib.Path) -> bool:
    """Whether a writer names its parts so; whatever else a person has put there stays."""
    return re.fullmatch(r"\d{5,}", entry.name.removesuffix(TEMPORARY)) is not None


def _open(path: pathlib.Path) -> tuple[Manifest, dict[str, list[str]]]:
    _refuse_links(path)
    if not (path / HEADER).is_file():
        _create(path)
    check_header(path)
    manifest = read_manifest(path / MANIFEST)
    captions = read_captions(path)
    sweep(path, {part.name for part in manifest.parts})
    return manifest, captions


def _check_place(path: pathlib.Path) -> None:
    # The library that writes the pixels takes a backslash for a slash, so they would land in another folder.
    if "\\" in str(path):
        raise StoreError(f"{str(path)!r}: the path of a store may not have a backslash; name another with --out.")


def _refuse_links(path: pathlib.Path) -> None:
    """Nothing is written, or swept, through a link: it may lead to files that are none of the store's."""
    for name in (HEADER, CAPTIONS, MANIFEST, PARTS):
        if (path / name).is_symlink():
            raise StoreError(
                f"{path / name} is a link: nothing is added to a store through links. Copy the store as a whole, or "
                "name the folder that the link leads to."
            )


def _refuse_strangers(path: pathlib.Path) -> None:
    if (path / HEADER).is_file() or not path.exists():
        return
    if not path.is_dir():
        raise StoreError(f"{path} is a file, and a store is a folder: name a new folder with --out.")
    ours = {HEADER, CAPTIONS, MANIFEST, PARTS, LOCK}
    strangers = [entry.name for entry in path.iterdir() if entry.name.removesuffix(TEMPORARY) not in ours]
    if strangers:
        raise StoreError(
            f"{path} is not a patch store and not empty (it holds {strangers[0]!r}): name a new folder with --out."
        )


def _create(path: pathlib.Path) -> None:
    # The header comes last, so patches under a missing header are a damaged store, not an interrupted start.
    if (path / PARTS).is_dir() and any((path / PARTS).iterdir()):
        raise StoreError(f"{path} has patches but no {HEADER}: the store is damaged; ingest to a new folder.")
    (path / PARTS).mkdir(exist_ok=True)
    sweep(path, set())
    replace_file(path / MANIFEST, manifest_bytes([], []))
    replace_file(path / CAPTIONS, seal({"captions": {}}))
    replace_file(path / HEADER, seal({"format": FORMAT, "version": VERSION}))


def _os_error(error: ValueError) -> OSError:
    """The error of the system that a message of tensorstore quotes, such as `[OS error 28: ...]`."""
    found = re.search(r"OS error (\d+)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else OSError(str(error))


def _size(buffer: list[tuple[np.ndarray, PatchRow]]) -> int:
    return sum(pixels.nbytes for pixels, _ in buffer)
