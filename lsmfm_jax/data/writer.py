"""Adding patches to a store, so that a kill at any moment leaves a whole store behind."""

import dataclasses
import fcntl
import os
import pathlib
import shutil
from types import TracebackType

import numpy as np
from jaxtyping import Shaped

from lsmfm_jax.data.manifest import MANIFEST, Manifest, Part, PatchRow, manifest_bytes, read_manifest
from lsmfm_jax.data.sealed import TEMPORARY, read_sealed, replace_file, seal, sha256, sync_folder
from lsmfm_jax.data.store import (
    CAPTIONS,
    FORMAT,
    HEADER,
    PARTS,
    VERSION,
    StoreError,
    check_header,
    open_for_writing,
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
        StoreError: the folder holds something else, or another process is adding to it.
        DamagedFile: the store's own text files are damaged.
    """

    def __init__(self, path: pathlib.Path, *, part_bytes: int = PART_BYTES) -> None:
        self.path, self._part_bytes = path, part_bytes
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path)
        try:
            manifest, self.captions = _open(path)
        except BaseException:
            os.close(self._lock)
            raise
        self.rows: list[PatchRow] = list(manifest.rows)
        self._parts: list[Part] = list(manifest.parts)
        self._committed_parts = len(self._parts)
        self._buffers: dict[tuple[tuple[int, ...], str], list[tuple[np.ndarray, PatchRow]]] = {}

    def add_captions(self, captions: dict[str, list[str]]) -> None:
        """Add texts to the store's captions; a key that is there keeps its texts and gains the new ones."""
        merged = {key: list(texts) for key, texts in self.captions.items()}
        for key, texts in captions.items():
            known = merged.setdefault(key, [])
            known.extend(text for text in texts if text not in known)
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
        temporary = folder.with_name(name + TEMPORARY)
        shape, dtype = (len(patches), *group[0]), group[1]
        array = open_for_writing(temporary, shape=shape, dtype=dtype)
        array.write(np.stack([pixels for pixels, _ in patches])).result()
        files = {
            file.relative_to(temporary).as_posix(): sha256(file.read_bytes())
            for file in sorted(temporary.rglob("*"))
            if file.is_file()
        }
        os.replace(temporary, folder)
        sync_folder(folder.parent)
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
            os.close(self._lock)


def sweep(path: pathlib.Path, parts: set[str]) -> list[str]:
    """Remove what an interrupted writer left: temporary files, and parts that the manifest does not name."""
    orphans = [entry for entry in sorted((path / PARTS).iterdir()) if entry.name not in parts]
    orphans += sorted(path.glob(f"*{TEMPORARY}"))
    for orphan in orphans:
        if orphan.is_dir():
            shutil.rmtree(orphan)
        else:
            orphan.unlink()
    return [orphan.name for orphan in orphans]


def _open(path: pathlib.Path) -> tuple[Manifest, dict[str, list[str]]]:
    if not (path / HEADER).is_file():
        _create(path)
    check_header(path)
    manifest = read_manifest(path / MANIFEST)
    captions = read_sealed(path / CAPTIONS)["captions"]
    sweep(path, {part.name for part in manifest.parts})
    return manifest, captions


def _create(path: pathlib.Path) -> None:
    ours = {HEADER, CAPTIONS, MANIFEST, PARTS}
    strangers = [entry.name for entry in path.iterdir() if entry.name.removesuffix(TEMPORARY) not in ours]
    if strangers:
        raise StoreError(
            f"{path} is not a patch store and not empty (it holds {strangers[0]!r}): name a new folder with --out."
        )
    # The header comes last, so patches under a missing header are a damaged store, not an interrupted start.
    if (path / PARTS).is_dir() and any((path / PARTS).iterdir()):
        raise StoreError(f"{path} has patches but no {HEADER}: the store is damaged; ingest to a new folder.")
    (path / PARTS).mkdir(exist_ok=True)
    replace_file(path / MANIFEST, manifest_bytes([], []))
    replace_file(path / CAPTIONS, seal({"captions": {}}))
    replace_file(path / HEADER, seal({"format": FORMAT, "version": VERSION}))


def _lock(path: pathlib.Path) -> int:
    # On the folder itself: the system drops the lock when the process dies, and no file is left behind.
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise StoreError(f"{path}: another process is adding to this store; wait until it ends.") from None
    except OSError:
        pass  # a file system without locks: nothing to do but trust the user
    return handle


def _size(buffer: list[tuple[np.ndarray, PatchRow]]) -> int:
    return sum(pixels.nbytes for pixels, _ in buffer)
