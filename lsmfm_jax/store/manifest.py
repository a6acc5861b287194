"""The manifest of a patch store: a JSON line per part and patch, closed by a checksum of them all."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from lsmfm_jax.files import DamagedFile, canonical_json, read_bytes, sha256

MANIFEST = "manifest.jsonl"


@dataclasses.dataclass(frozen=True)
class PatchRow:
    """What a store knows of one patch.

    Attributes:
        id: unique and readable: source, path without its ending, and `#channel` where a file holds several.
        part: name of the zarr array that holds the patch; `index` is its place in it.
        volume: the group for splits: patches of one volume never stand on both sides.
        percentiles: intensity in raw counts, by the percentile's name ("0.1", "1", ... "99.9", "100").
        voxel_size_um: ZYX in micrometres, None where nothing is known; `voxel_size_source` says who claims
            it.
        shape: ZYX in voxels.
        sha256: of the source file; `pixels_sha256` of this channel's array alone.
        file: path relative to the folder that was ingested.
        affine: the first three rows of the file's voxel-to-world matrix (XYZ, as in the header), or None.
        origin: of a patch that was cut from a larger volume, the ZYX voxel of `level` at which it begins.
        foreground_frac: share of its voxels above `threshold`, in raw counts, as it was cut.
        volume_percentiles: as `percentiles`, of voxels sampled over the whole volume and channel it was cut from.
    """

    id: str
    part: str
    index: int
    source: str
    layout: str
    volume: str
    channel: int
    caption_key: str
    percentiles: dict[str, float]
    minimum: float
    maximum: float
    mean: float
    voxel_size_um: tuple[float, float, float] | None
    voxel_size_source: str
    shape: tuple[int, int, int]
    dtype: str
    sha256: str
    file: str
    std: float = 0.0
    pixels_sha256: str = ""
    file_size_bytes: int = 0
    file_mtime_ns: int = 0
    affine: tuple[tuple[float, ...], ...] | None = None
    origin: tuple[int, int, int] | None = None
    level: int = 0
    foreground_frac: float | None = None
    threshold: float | None = None
    volume_percentiles: dict[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """One immutable zarr array of a store: shape (N, Z, Y, X), type, and the checksum of each file."""

    name: str
    shape: tuple[int, int, int, int]
    dtype: str
    files: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All parts and patches of a store, in the order in which they were added."""

    parts: tuple[Part, ...]
    rows: tuple[PatchRow, ...]


def manifest_bytes(parts: Sequence[Part], rows: Sequence[PatchRow]) -> bytes:
    """Write a manifest: parts, patches, and a last line with counts and the checksum of the rest."""
    lines = [canonical_json({"kind": "part"} | vars(part)) for part in parts]
    lines += [canonical_json({"kind": "patch"} | vars(row)) for row in rows]
    body = b"".join(lines)
    return body + _last_line(body, parts=len(parts), patches=len(rows))


def read_manifest(path: pathlib.Path) -> Manifest:
    """Read a manifest and check every byte of it.

    Raises:
        DamagedFile: it is missing, cut short, or differs from what was written.
    """
    data = read_bytes(path)
    body_end = data.rfind(b"\n", 0, len(data) - 1) + 1
    body, last = data[:body_end], data[body_end:]
    try:
        records = [json.loads(line) for line in body.splitlines()]
    except (ValueError, RecursionError) as error:
        raise DamagedFile(str(path), f"a line is not readable as JSON ({error})") from None
    kinds = [record.pop("kind", None) if isinstance(record, dict) else None for record in records]
    if last != _last_line(body, parts=kinds.count("part"), patches=kinds.count("patch")):
        raise DamagedFile(str(path), "its checksum does not match its content, or it was cut short")
    try:
        parts = tuple(_part(record) for kind, record in zip(kinds, records, strict=True) if kind == "part")
        rows = tuple(_row(record) for kind, record in zip(kinds, records, strict=True) if kind == "patch")
    except (TypeError, KeyError) as error:
        raise DamagedFile(str(path), f"a line lacks an entry or has an unknown one ({error})") from None
    _check_names(path, parts, rows)
    return Manifest(parts, rows)


def _check_names(path: pathlib.Path, parts: Sequence[Part], rows: Sequence[PatchRow]) -> None:
    """Refuse names that lead out of the store: the checksum is no signature, anyone can write one."""
    for part in parts:
        if not re.fullmatch(r"\d{5,}", part.name):
            raise DamagedFile(str(path), f"part {part.name!r} is no number of five digits")
        for name in part.files:
            pieces = name.split("/")
            if not name or "\\" in name or "\0" in name or not {"", ".", ".."}.isdisjoint(pieces):
                raise DamagedFile(str(path), f"part {part.name} names the file {name!r}, which is not below its folder")
        if "zarr.json" not in part.files:
            raise DamagedFile(str(path), f"part {part.name} has no zarr.json")
    sizes = {part.name: part.shape[0] for part in parts}
    for row in rows:
        if not 0 <= row.index < sizes.get(row.part, 0):
            raise DamagedFile(str(path), f"patch {row.id!r} is number {row.index} of part {row.part!r}: there is none")


def _last_line(body: bytes, *, parts: int, patches: int) -> bytes:
    return canonical_json({"kind": "end", "parts": parts, "patches": patches, "sha256": sha256(body)})


def _part(record: dict[str, Any]) -> Part:
    return Part(**record | {"shape": tuple(record["shape"])})


def _row(record: dict[str, Any]) -> PatchRow:
    tuples = {name: _as_tuple(record.get(name)) for name in ("voxel_size_um", "shape", "affine", "origin")}
    return PatchRow(**record | tuples)


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
