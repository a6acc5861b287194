"""The patches of one channel of a volume: drawn evenly, without overlap, each with enough foreground.

Places that a coarse map shows to be empty are left out before anything is read (`_Occupied`).
"""

import dataclasses
import hashlib
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, Num

from lsmfm_jax.store.ingest import described, intensity_statistics
from lsmfm_jax.store.manifest import PatchRow
from lsmfm_jax.store.writer import StoreWriter
from lsmfm_jax.volumes.lazy import LazyVolume, Voxels
from lsmfm_jax.volumes.names import volume_name
from lsmfm_jax.volumes.survey import CoarseMap, Survey, coarse_map, survey

LAYOUT = "cut"
# Patches that are read for one that is wanted, and places that are drawn in all, before giving up.
READS_PER_PATCH = 40
DRAWN_AT_ONCE = 2**12
DRAWS = 50 * DRAWN_AT_ONCE


@dataclasses.dataclass(frozen=True)
class CutRule:
    """Which patches are wanted of each channel.

    Attributes:
        count: most patches.
        size: ZYX voxels of a patch.
        min_foreground_frac: least share of foreground voxels in a patch, from 0 to 1.
        threshold: voxels above it are foreground; None: measured on each channel.
        seed: of every draw, together with the volume's name and channel.
    """

    count: int = 10
    size: Voxels = (96, 96, 96)
    min_foreground_frac: float = 0.05
    threshold: float | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class _Group:
    """What the patches of a volume have in common in the store: `volume` is its name there."""

    source: str
    volume: str
    caption_key: str


@dataclasses.dataclass
class ChannelCut:
    """What was cut from one channel of one volume.

    Attributes:
        boxes: corners ZYX of all its patches that are in the store now, in voxels of the level; `added` are new.
        read: patches that were read to find them.
    """

    path: str
    volume: str
    channel: int
    survey: Survey
    threshold: float
    shape: Voxels
    voxel_size_um: tuple[float, float, float] | None
    map: CoarseMap
    origin: Voxels
    size: Voxels
    wanted: int
    boxes: list[Voxels] = dataclasses.field(default_factory=list)
    added: int = 0
    read: int = 0

    def text(self) -> str:
        """A line for people, and one on the rule of the foreground."""
        known = len(self.boxes) - self.added
        line = f"{self.volume}, channel {self.channel}: {self.added} patches added"
        line += f", {known} known" if known else ""
        if len(self.boxes) < self.wanted:
            line += (
                f"; {len(self.boxes)} of {self.wanted} found in {self.read} boxes that were read: lower "
                "--min-foreground, --size or --threshold for more"
            )
        given = self.threshold != self.survey.threshold
        rule = f"foreground is above {self.threshold:.6g} as given" if given else self.survey.rule()
        return f"{line}\n  {rule}"


def cut_channel(
    volume: LazyVolume,
    writer: StoreWriter,
    rule: CutRule,
    *,
    name: str,
    source: str,
    caption_key: str,
    time: int | None = None,
) -> ChannelCut:
    """Cut what the store does not have yet of the patches of a channel.

    Args:
        volume: one channel.
        writer: of the store, open.
        rule: which patches are wanted.
        name: of the volume.
        source: name of the data set in the store.
        caption_key: of the patches.
        time: of the volume's coarse map.
    """
    seen = survey(volume)
    limit = seen.threshold if rule.threshold is None else rule.threshold
    map_of_it = coarse_map(volume, time=time)
    group = _Group(source, f"{source}/{name}", caption_key)
    result = ChannelCut(
        path=volume.path,
        volume=group.volume,
        channel=volume.channel,
        survey=seen,
        threshold=limit,
        shape=volume.shape,
        voxel_size_um=volume.voxel_size_um,
        map=map_of_it,
        origin=volume.origin,
        size=rule.size,
        wanted=rule.count,
    )
    occupied = _Occupied(map_of_it, limit=limit, background=seen.background, least=rule.min_foreground_frac)
    rng = np.random.default_rng([rule.seed, zlib.crc32(name.encode()), volume.channel, volume.level])
    room = [have - wanted + 1 for have, wanted in zip(volume.shape, rule.size, strict=True)]
    shapes = _known(writer, group, volume)
    for corner in _places(room, rng, occupied, size=rule.size):
        if len(shapes) >= rule.count or result.read >= READS_PER_PATCH * rule.count:
            break
        origin = (corner[0] + volume.origin[0], corner[1] + volume.origin[1], corner[2] + volume.origin[2])
        if any(_overlap(origin, rule.size, *other) for other in shapes.items()):
            continue
        z, y, x = (slice(start, start + length) for start, length in zip(corner, rule.size, strict=True))
        pixels = volume.read((z, y, x))
        result.read += 1
        if _usable(pixels, limit, rule.min_foreground_frac):
            writer.add(pixels, _row(pixels, volume, group, seen, origin=origin, threshold=limit))
            shapes[origin] = rule.size
            result.added += 1
    result.boxes = list(shapes)
    return result


def _known(writer: StoreWriter, group: _Group, volume: LazyVolume) -> dict[Voxels, Voxels]:
    """Corners and sizes of the channel's patches that are in the store."""
    mine = (group.volume, volume.channel, volume.level)
    rows = (row for row in writer.rows if (row.volume, row.channel, row.level) == mine)
    return {row.origin: row.shape for row in rows if row.origin}


def _usable(pixels: Num[np.ndarray, "z y x"], threshold: float, least: float) -> bool:
    if _foreground(pixels, threshold) < least or pixels.min() == pixels.max():
        return False
    return pixels.dtype.kind != "f" or bool(np.isfinite(pixels).all())


def _foreground(pixels: Num[np.ndarray, "z y x"], threshold: float) -> float:
    return float((pixels > threshold).mean())


def _row(
    pixels: Num[np.ndarray, "z y x"],
    volume: LazyVolume,
    group: _Group,
    seen: Survey,
    *,
    origin: Voxels,
    threshold: float,
) -> PatchRow:
    digest = hashlib.sha256(described(pixels)).hexdigest()
    return PatchRow(
        id=_identity(group.volume, volume, origin),
        part="",
        index=0,
        source=group.source,
        layout=LAYOUT,
        volume=group.volume,
        channel=volume.channel,
        caption_key=group.caption_key,
        voxel_size_um=volume.voxel_size_um,
        voxel_size_source=volume.voxel_size_source,
        shape=pixels.shape,
        dtype=str(pixels.dtype),
        sha256=digest,
        file=f"{volume_name(volume.path)} {origin}",
        pixels_sha256=digest,
        origin=origin,
        level=volume.level,
        foreground_frac=_foreground(pixels, threshold),
        threshold=threshold,
        volume_percentiles=seen.percentiles,
        **intensity_statistics(pixels),
    )


class _Occupied:
    """Which places a coarse map leaves possible: the mean there must allow for the least foreground."""

    def __init__(self, coarse: CoarseMap, *, limit: float, background: float, least: float) -> None:
        self._cell, self._covers = coarse.cell, coarse.covers
        # If that share of a patch is above the limit and the rest at the background, the mean is at least this;
        # half of it, since levels of a pyramid are smoothed, rounded and shifted by a voxel.
        self._least = background + 0.5 * least * max(0.0, limit - background)
        self._sums = np.pad(coarse.mean.astype(np.float64), ((1, 0), (1, 0), (1, 0)))
        for axis in range(3):
            self._sums = self._sums.cumsum(axis=axis)

    def possible(self, corners: Int[np.ndarray, "n 3"], size: Voxels) -> Bool[np.ndarray, " n"]:
        if not self._covers:
            return np.ones(len(corners), bool)
        last = np.array(self._sums.shape) - 1
        low = np.minimum((corners / self._cell).astype(int), last - 1)
        high = np.clip(np.ceil((corners + size) / self._cell).astype(int), low + 1, last)
        (z0, y0, x0), (z1, y1, x1), sums = low.T, high.T, self._sums
        total = sums[z1, y1, x1] - sums[z0, y1, x1] - sums[z1, y0, x1] - sums[z1, y1, x0]
        total += sums[z0, y0, x1] + sums[z0, y1, x0] + sums[z1, y0, x0] - sums[z0, y0, x0]
        return total / (high - low).prod(axis=1) >= self._least


def _places(
    room: Sequence[int], rng: np.random.Generator, occupied: _Occupied, *, size: Voxels
) -> Iterator[tuple[int, int, int]]:
    """Corners drawn evenly, without those that the map shows to be empty."""
    for _ in range(DRAWS // DRAWN_AT_ONCE):
        corners = rng.integers(0, room, (DRAWN_AT_ONCE, 3))
        yield from map(tuple, corners[occupied.possible(corners, size)].tolist())


def _identity(group: str, volume: LazyVolume, origin: Voxels) -> str:
    level = f"_level{volume.level}" if volume.level else ""
    channel = f"#{volume.channel}" if volume.channels > 1 else ""
    return f"{group}/z{origin[0]}_y{origin[1]}_x{origin[2]}{level}{channel}"


def _overlap(a: Voxels, size_a: Voxels, b: Voxels, size_b: Voxels) -> bool:
    return all(p < q + m and q < p + n for p, n, q, m in zip(a, size_a, b, size_b, strict=True))
