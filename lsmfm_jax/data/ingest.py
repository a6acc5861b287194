"""From a folder of images to a patch store: only what is new is read, and nothing is lost silently."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from lsmfm_jax.data.captions import load_captions, require_captions
from lsmfm_jax.data.formats import Size
from lsmfm_jax.data.layouts import SourceFile, stem, survey
from lsmfm_jax.data.manifest import PatchRow
from lsmfm_jax.data.sealed import read_sealed, sha256
from lsmfm_jax.data.store import CAPTIONS, HEADER
from lsmfm_jax.data.volumes import VolumeError, VolumeInfo, decode_volume
from lsmfm_jax.data.writer import StoreWriter

PERCENTILES = (0.1, 1, 5, 50, 95, 99, 99.5, 99.9, 100)

Progress = Callable[[int, int, pathlib.Path], None]


@dataclasses.dataclass
class IngestSummary:
    """What one ingestion did.

    Attributes:
        added: patches added, from `added_files` files; `known` files were in the store and not read again.
        failed: files (path, reason) that could not be used.
        duplicates: files (path, what they repeat) whose bytes or pixels are in the store under another name.
        notes: what else a reader should know, such as merged captions.
    """

    store: pathlib.Path
    added: int = 0
    added_files: int = 0
    known: int = 0
    failed: list[tuple[pathlib.Path, str]] = dataclasses.field(default_factory=list)
    duplicates: list[tuple[pathlib.Path, str]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def text(self) -> str:
        """Give the summary for people: counts, then a line for each file that was left out."""
        lines = [
            f"{self.store}: {self.added} patches added from {self.added_files} files, "
            f"{self.known} files known, {len(self.failed)} failed, {len(self.duplicates)} duplicates"
        ]
        lines += [f"failed: {path}: {reason}" for path, reason in self.failed]
        lines += [f"duplicate: {path}: {reason}" for path, reason in self.duplicates]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


class IngestFailed(ValueError):
    """A strict ingestion met files that it could not use; what could be used is in the store."""

    def __init__(self, summary: IngestSummary) -> None:
        super().__init__(summary.text())
        self.summary = summary


def ingest(
    *,
    layout: str,
    root: str | pathlib.Path,
    out: str | pathlib.Path,
    captions: Sequence[str | pathlib.Path] | None,
    source: str | None = None,
    volume_pattern: str | None = None,
    voxel_size_um: Size | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> IngestSummary:
    """Read the images of a folder into a patch store, making the store if there is none.

    A file is known, and not read, if the store holds one of the same source and relative path with the same
    size and modification time; failing that, if it holds the same bytes (SHA-256) under that path.

    Args:
        layout: one of `layouts.LAYOUTS`.
        captions: caption files, or None for an image-only store.
        source: name of the data set in the store, the layout's by default; part of each volume's and patch's
            id.
        volume_pattern: see `layouts.survey`.
        voxel_size_um: ZYX; overrides what the headers claim.
        strict: raise at the end if a file failed or was a duplicate.
        progress: called after each file with (files done, files in all, path).

    Raises:
        LayoutError: the folder holds no images in this layout.
        CaptionError: a caption file is unreadable or lacks keys; nothing has been written then.
        StoreError, DamagedFile: `out` cannot be added to.
        IngestFailed: `strict`, and not all files could be used.
    """
    out = pathlib.Path(out)
    summary = IngestSummary(store=out)
    files, problems = survey(layout, root, volume_pattern=volume_pattern)
    summary.failed += problems
    texts: dict[str, list[str]] = {}
    if captions is not None:
        texts = _captions_for(files, captions, out=out, notes=summary.notes)
    with StoreWriter(out) as writer:
        # First, so that an interruption leaves captions without patches and never the reverse.
        writer.add_captions(texts)
        intake = _Intake(
            writer=writer,
            summary=summary,
            layout=layout,
            source=source or layout,
            voxel_size_um=voxel_size_um,
            by_place={(row.source, row.file): row for row in writer.rows},
            by_file={row.sha256: row.id for row in writer.rows},
            by_pixels={row.pixels_sha256: row.id for row in writer.rows},
        )
        for number, file in enumerate(files):
            intake.take(file)
            if progress is not None:
                progress(number + 1, len(files), file.path)
    if strict and (summary.failed or summary.duplicates):
        raise IngestFailed(summary)
    return summary


@dataclasses.dataclass
class _Intake:
    """The state of one ingestion, and what happens to one file."""

    writer: StoreWriter
    summary: IngestSummary
    layout: str
    source: str
    voxel_size_um: Size | None
    by_place: dict[tuple[str, str], PatchRow]
    by_file: dict[str, str]
    by_pixels: dict[str, str]

    def take(self, file: SourceFile) -> None:
        known = self.by_place.get((self.source, file.relative))
        try:
            status = file.path.stat()
            stamp = (status.st_size, status.st_mtime_ns)
            if known is not None and (known.file_size_bytes, known.file_mtime_ns) == stamp:
                self.summary.known += 1
                return
            data = file.path.read_bytes()
        except OSError as error:
            self.summary.failed.append((file.path, f"cannot be read ({error.strerror or error})"))
            return
        digest = sha256(data)
        if known is not None and known.sha256 == digest:
            self.summary.known += 1
        elif known is not None:
            reason = "it changed since it was ingested, and a store keeps what it has: ingest it to a new store"
            self.summary.failed.append((file.path, reason))
        elif digest in self.by_file:
            self.summary.duplicates.append((file.path, f"the same bytes as {self.by_file[digest]}"))
        else:
            self._read(file, data, digest=digest, stamp=stamp)

    def _read(self, file: SourceFile, data: bytes, *, digest: str, stamp: tuple[int, int]) -> None:
        try:
            channels, info = decode_volume(data, path=file.path)
        except VolumeError as error:
            self.summary.failed.append((file.path, f"{error.reason}; {error.hint}"))
            return
        pixel_digests = [hashlib.sha256(_described(channel)).hexdigest() for channel in channels]
        repeated = next((one for one in pixel_digests if one in self.by_pixels), None)
        if repeated is not None:
            self.summary.duplicates.append((file.path, f"the same pixels as {self.by_pixels[repeated]}"))
            return
        name = f"{self.source}/{file.relative[: -len(file.path.name)]}{stem(file.path)}"
        for number, (pixels, pixel_digest) in enumerate(zip(channels, pixel_digests, strict=True)):
            several = len(channels) > 1
            row = PatchRow(
                id=f"{name}#{number}" if several else name,
                part="",
                index=0,
                source=self.source,
                layout=self.layout,
                volume=f"{self.source}/{file.volume}",
                channel=number if several else file.channel,
                caption_key=file.caption_key,
                shape=pixels.shape,
                dtype=str(pixels.dtype),
                sha256=digest,
                file=file.relative,
                pixels_sha256=pixel_digest,
                file_size_bytes=stamp[0],
                file_mtime_ns=stamp[1],
                affine=_affine_rows(info),
                **self._voxel_size(info),
                **intensity_statistics(pixels),
            )
            self.writer.add(pixels, row)
            self.by_pixels[pixel_digest] = row.id
        self.by_file[digest] = name
        self.summary.added += len(channels)
        self.summary.added_files += 1

    def _voxel_size(self, info: VolumeInfo) -> dict[str, Any]:
        if self.voxel_size_um is not None:
            return {"voxel_size_um": self.voxel_size_um, "voxel_size_source": "given"}
        return {"voxel_size_um": info.voxel_size_um, "voxel_size_source": info.voxel_size_source}


def intensity_statistics(pixels: Shaped[np.ndarray, "z y x"]) -> dict[str, Any]:
    """Give minimum, maximum, mean, standard deviation and percentiles of a volume, in raw counts.

    Percentiles interpolate linearly between voxels, as numpy and torch do by default.
    """
    values = np.percentile(pixels, PERCENTILES)
    return {
        "minimum": float(pixels.min()),
        "maximum": float(pixels.max()),
        "mean": float(pixels.mean(dtype=np.float64)),
        "std": float(pixels.std(dtype=np.float64)),
        "percentiles": {f"{q:g}": float(value) for q, value in zip(PERCENTILES, values, strict=True)},
    }


def _captions_for(
    files: list[SourceFile], paths: Sequence[str | pathlib.Path], *, out: pathlib.Path, notes: list[str]
) -> dict[str, list[str]]:
    texts, merge_notes = load_captions(paths)
    stored = read_sealed(out / CAPTIONS)["captions"] if (out / HEADER).is_file() else {}
    needed = {file.caption_key for file in files}
    require_captions(needed, [*texts, *stored])
    notes += merge_notes
    return {key: texts[key] for key in sorted(needed) if key in texts}


def _described(pixels: np.ndarray) -> bytes:
    # Equal bytes of another shape or type are another image.
    return f"{pixels.dtype}{pixels.shape}".encode() + pixels.tobytes()


def _affine_rows(info: VolumeInfo) -> tuple[tuple[float, ...], ...] | None:
    if info.affine is None or not np.isfinite(info.affine).all():
        return None
    return tuple(tuple(float(value) for value in row) for row in info.affine[:3])
