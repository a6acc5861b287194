"""From a folder of images to a patch store: only what is new is read, and nothing is lost silently."""

import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from lsmfm_jax.store.captions import load_captions, require_captions
from lsmfm_jax.store.ingest_summary import IngestFailed, IngestSummary
from lsmfm_jax.store.layouts import SourceFile, masks_left_out, survey
from lsmfm_jax.store.manifest import PatchRow
from lsmfm_jax.store.reader import HEADER, read_captions
from lsmfm_jax.store.writer import StoreWriter
from lsmfm_jax.volumes.formats import Size, Unreadable
from lsmfm_jax.volumes.names import VOLUME_RULE, printable, stem
from lsmfm_jax.volumes.ome import ome_files
from lsmfm_jax.volumes.read import VolumeError, VolumeInfo, read_volume

PERCENTILES = (0.1, 1, 5, 50, 95, 99, 99.5, 99.9, 100)

Progress = Callable[[int, int, pathlib.Path], None]


def ingest(
    *,
    layout: str,
    root: str | pathlib.Path,
    out: str | pathlib.Path,
    captions: Sequence[str | pathlib.Path] | None,
    source: str | None = None,
    volume_pattern: str | None = None,
    voxel_size_um: Size | None = None,
    channel: int | None = None,
    axes: str | None = None,
    series: int | None = None,
    nan_fill: float | None = None,
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
        channel, axes, series, nan_fill: see `volumes.read.read_volume`; for every file.
        strict: raise at the end if a file failed or was a duplicate.
        progress: called after each file with (files done, files in all, path).

    Raises:
        LayoutError: no file of the folder follows this layout.
        CaptionError: a caption file is unreadable or lacks keys; nothing has been written then.
        StoreError, DamagedFile: `out` cannot be added to.
        IngestFailed: no file could be used, or `strict` and one could not.
    """
    out = pathlib.Path(out)
    summary = IngestSummary(store=out)
    files, problems = survey(layout, root, volume_pattern=volume_pattern)
    summary.failed += problems
    summary.left_out += [(path, "named as a mask of the image beside it") for path in masks_left_out(layout, root)]
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
            source=printable(source or layout),
            voxel_size_um=voxel_size_um,
            choice={"channel": channel, "axes": axes, "series": series, "nan_fill": nan_fill},
            order={file.path: number for number, file in enumerate(files)},
        )
        for number, file in enumerate(files):
            intake.take(file)
            if progress is not None:
                progress(number + 1, len(files), file.path)
    if summary.volumes and volume_pattern is None:
        summary.notes.append(VOLUME_RULE)
    nothing = summary.failed and not (summary.added or summary.known)
    if nothing or (strict and (summary.failed or summary.duplicates)):
        raise IngestFailed(summary)
    return summary


class _Intake:
    """The state of one ingestion, and what happens to one file."""

    def __init__(
        self,
        *,
        writer: StoreWriter,
        summary: IngestSummary,
        layout: str,
        source: str,
        voxel_size_um: Size | None,
        choice: dict[str, Any],
        order: dict[pathlib.Path, int],
    ) -> None:
        self.writer, self.summary, self.layout, self.source = writer, summary, layout, source
        self.voxel_size_um, self.choice, self.order = voxel_size_um, choice, order
        self.by_place: dict[tuple[str, str], list[PatchRow]] = {}
        self.by_file: dict[str, str] = {}
        self.by_pixels: dict[str, str] = {}
        self.names: set[str] = set()
        for row in writer.rows:
            self.by_place.setdefault((row.source, row.file), []).append(row)
            self.by_file[row.sha256] = row.id
            self.by_pixels[row.pixels_sha256] = row.id
            self.names |= {row.id, _without_channel(row)}
        # Files of an image that was met under the name of another of its files.
        self.claimed: dict[pathlib.Path, pathlib.Path] = {}

    def take(self, file: SourceFile) -> None:
        known = self.by_place.get((self.source, file.relative), [])
        try:
            status = file.path.stat()
            stamp = (status.st_size, status.st_mtime_ns)
            first = known[0] if known else None
            wanted = self._wants_another_channel(known)
            if first is not None and not wanted and (first.file_size_bytes, first.file_mtime_ns) == stamp:
                self.summary.known += 1
                return
            if first is None and (main := self._main_file(file.path)) != file.path:
                self.summary.members.append((file.path, main))
                return
            digest = _digest(file.path)
        except OSError as error:
            self.summary.failed.append((file.path, f"cannot be read ({error.strerror or error})"))
            return
        if first is not None and first.sha256 != digest:
            reason = "it changed since it was ingested, and a store keeps what it has: ingest it to a new store"
            self.summary.failed.append((file.path, reason))
        elif first is not None and not wanted:
            self.summary.known += 1
        elif first is None and digest in self.by_file:
            self.summary.duplicates.append((file.path, f"the same bytes as {self.by_file[digest]}"))
        else:
            self._read(file, digest=digest, stamp=stamp, name=_without_channel(first) if first else None)

    def _wants_another_channel(self, known: list[PatchRow]) -> bool:
        channel = self.choice["channel"]
        several = bool(known) and all(row.id != _without_channel(row) for row in known)
        return channel is not None and several and channel not in {row.channel for row in known}

    def _main_file(self, path: pathlib.Path) -> pathlib.Path:
        """The file by which an image of several files goes into the store: the first of them in the order."""
        if path not in self.claimed and path.name.lower().endswith((".tif", ".tiff")):
            try:
                members = ome_files(path).members
            except Unreadable:  # told when it is read
                members = ()
            there = sorted((member for member in members if member in self.order), key=self.order.__getitem__)
            self.claimed |= dict.fromkeys(there, there[0]) if there else {}
        return self.claimed.get(path, path)

    def _read(self, file: SourceFile, *, digest: str, stamp: tuple[int, int], name: str | None) -> None:
        try:
            channels, info = read_volume(file.path, **self.choice)
        except VolumeError as error:
            listed = self.summary.left_out if error.blank else self.summary.failed
            listed.append((file.path, error.reason if error.blank else f"{error.reason}; {error.hint}"))
            return
        pixel_digests = [hashlib.sha256(described(channel)).hexdigest() for channel in channels]
        repeated = next((one for one in pixel_digests if one in self.by_pixels), None)
        if repeated is not None:
            self.summary.duplicates.append((file.path, f"the same pixels as {self.by_pixels[repeated]}"))
            return
        name = name or self._free_name(file, info.channel_numbers)
        several = info.channels_in_file > 1
        for number, pixels, pixel_digest in zip(info.channel_numbers, channels, pixel_digests, strict=True):
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
            self.names |= {row.id, name}
            self.summary.volumes.append(row.volume)
        self.by_file[digest] = name
        self.summary.added += len(channels)
        self.summary.added_files += 1
        for note in info.notes:
            self.summary.file_notes.setdefault(note, []).append(file.path)

    def _free_name(self, file: SourceFile, numbers: tuple[int, ...]) -> str:
        """The path without its suffix; with it where another file has that name, so that ids stay unique."""
        folder, _, base = file.relative.rpartition("/")
        short = "/".join(part for part in (self.source, folder, stem(pathlib.PurePosixPath(base))) if part)
        full = f"{self.source}/{file.relative}"
        return next(
            name
            for name in _candidates(short, full)
            if self.names.isdisjoint([name, *(f"{name}#{number}" for number in numbers)])
        )

    def _voxel_size(self, info: VolumeInfo) -> dict[str, Any]:
        if self.voxel_size_um is not None:
            return {"voxel_size_um": self.voxel_size_um, "voxel_size_source": "given"}
        return {"voxel_size_um": info.voxel_size_um, "voxel_size_source": info.voxel_size_source}


def intensity_statistics(pixels: Shaped[np.ndarray, "z y x"]) -> dict[str, Any]:
    """Give minimum, maximum, mean, standard deviation and percentiles of a volume, in raw counts.

    Percentiles interpolate linearly between voxels, as numpy and torch do by default.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.percentile(pixels, PERCENTILES)
        if not np.isfinite(values).all():  # between values near the limits of float32
            values = np.percentile(pixels.astype(np.float64), PERCENTILES)
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
    stored = read_captions(out) if (out / HEADER).is_file() else {}
    needed = {file.caption_key for file in files}
    require_captions(needed, [*texts, *stored])
    notes += merge_notes
    return {key: texts[key] for key in sorted(needed) if key in texts}


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_channel(row: PatchRow) -> str:
    return row.id.removesuffix(f"#{row.channel}")


def _candidates(short: str, full: str) -> Iterator[str]:
    yield short
    yield full
    for number in itertools.count(2):
        yield f"{full}~{number}"


def described(pixels: np.ndarray) -> bytes:
    """Give what the checksum of pixels is made of: equal bytes of another shape or type are another image."""
    return f"{pixels.dtype}{pixels.shape}".encode() + pixels.tobytes()


def _affine_rows(info: VolumeInfo) -> tuple[tuple[float, ...], ...] | None:
    if info.affine is None or not np.isfinite(info.affine).all():
        return None
    return tuple(tuple(float(value) for value in row) for row in info.affine[:3])
