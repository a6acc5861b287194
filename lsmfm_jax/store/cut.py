"""Patches cut at random from whole volumes into a store, as in section 2.1 of the paper.

From each channel up to 10 patches of 96 voxels a side that do not overlap, each with at least 5 % foreground. What
counts as foreground is a threshold that is measured on the volume (see `volumes.survey`). Places are drawn
evenly over the volume; those that a coarse map shows to be empty are left out before anything is read.
"""

import dataclasses
import hashlib
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import read_sealed
from lsmfm_jax.store.captions import load_captions, normalise_key, require_captions
from lsmfm_jax.store.ingest import described, intensity_statistics
from lsmfm_jax.store.manifest import PatchRow
from lsmfm_jax.store.reader import CAPTIONS, HEADER
from lsmfm_jax.store.writer import StoreWriter
from lsmfm_jax.volumes.lazy import Box, LazyVolume, Voxels
from lsmfm_jax.volumes.names import SUFFIXES
from lsmfm_jax.volumes.open import open_volume
from lsmfm_jax.volumes.pictures import Panel, draw
from lsmfm_jax.volumes.survey import CoarseMap, Survey, coarse_map, survey

LAYOUT = "cut"
ENDINGS = (
    ".ome.zarr",
    ".zarr",
    ".n5",
    ".precomputed",
    ".h5",
    ".hdf5",
    ".hdf",
    ".he5",
    ".ims",
    ".btf",
    ".tf8",
    *SUFFIXES,
)
# Patches that are read for one that is wanted, and places that are drawn in all, before giving up.
READS_PER_PATCH = 40
DRAWN_AT_ONCE = 2**12
DRAWS = 50 * DRAWN_AT_ONCE


class CutError(LsmfmError, ValueError):
    """Patches cannot be cut as asked."""


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


def cut(
    volumes: Sequence[str | pathlib.Path],
    *,
    out: str | pathlib.Path,
    channel: int | None = None,
    level: int = 0,
    time: int | None = None,
    box: Box | None = None,
    count: int = 10,
    size: Voxels = (96, 96, 96),
    min_foreground_frac: float = 0.05,
    threshold: float | None = None,
    seed: int = 0,
    captions: Sequence[str | pathlib.Path] | None = None,
    caption_key: str | None = None,
    source: str = "brain",
    report: Callable[[ChannelCut], None] | None = None,
) -> list[ChannelCut]:
    """Cut patches from volumes into a store, making it if there is none; the same arguments give the same patches.

    Patches of a volume's channel that are in the store count: cutting again adds nothing, and with a larger
    `count` only what is missing. No two patches of a channel overlap, whichever call cut them.

    Args:
        volumes: files, folders or URLs that `open_volume` takes; the name of each is its volume in the store.
        channel: the only channel to cut from; None for all.
        level, time, box: as `open_volume` takes them.
        count: most patches of a channel.
        size: ZYX voxels of a patch.
        min_foreground_frac: least share of foreground voxels in a patch, from 0 to 1.
        threshold: voxels above it are foreground; None: measured on each channel.
        seed: of every draw, together with the volume's name and channel.
        captions: caption files; None for patches without captions.
        caption_key: key of all these patches in the caption files; by default the volume's name.
        source: name of the data set in the store.
        report: called with what came of each channel.

    Raises:
        CutError: two volumes of one name, a volume smaller than a patch, or values out of range.
        CaptionError: a caption is missing; nothing has been written then.
        VolumeError: a volume cannot be opened or read; patches of the volumes before it are in the store.
        StoreError, DamagedFile: `out` cannot be added to.
    """
    out = pathlib.Path(out)
    _check(count=count, size=size, min_foreground_frac=min_foreground_frac)
    names = _names(volumes)
    opened = {name: _channels(path, channel, level, time, box) for name, path in names.items()}
    for name, channels in opened.items():
        if any(wanted > have for wanted, have in zip(size, channels[0].shape, strict=True)):
            raise CutError(
                f"{names[name]}: its {channels[0].shape} voxels (Z, Y, X) are fewer than a patch of {tuple(size)}; "
                "give a smaller --size, or another --level or --box"
            )
    keys = {name: normalise_key(caption_key or name) for name in names}
    texts = {} if captions is None else _captions(captions, set(keys.values()), out)
    cuts = []
    with StoreWriter(out) as writer:
        writer.add_captions(texts)
        for name, channels in opened.items():
            for volume in channels:
                one = _cut_channel(
                    volume,
                    writer,
                    name=name,
                    source=source,
                    time=time,
                    caption_key=keys[name],
                    count=count,
                    size=size,
                    min_foreground_frac=min_foreground_frac,
                    threshold=threshold,
                    seed=seed,
                )
                cuts.append(one)
                if report is not None:
                    report(one)
    return cuts


def picture(cuts: Sequence[ChannelCut], png: str | pathlib.Path) -> None:
    """Draw where the patches of each channel lie: projections with their boxes."""
    panels = []
    for one in cuts:
        corners = [tuple(a - b for a, b in zip(place, one.origin, strict=True)) for place in one.boxes]
        lines = [f"{len(one.boxes)} patches of {one.size}", one.text().splitlines()[-1].strip()]
        panels.append(
            Panel(
                title=f"{one.volume}, channel {one.channel}",
                lines=lines,
                map=one.map,
                survey=one.survey,
                threshold=one.threshold,
                voxel_size_um=one.voxel_size_um,
                boxes=[((z, y, x), one.size) for z, y, x in corners],
            )
        )
    draw(panels, png)


def volume_name(path: str | pathlib.Path) -> str:
    """Give the last part of a path or address without the ending of its format."""
    name = str(path).split("?")[0].rstrip("/").replace("\\", "/").rpartition("/")[2]
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)] or name


def _cut_channel(
    volume: LazyVolume,
    writer: StoreWriter,
    *,
    name: str,
    source: str,
    time: int | None,
    caption_key: str,
    count: int,
    size: Voxels,
    min_foreground_frac: float,
    threshold: float | None,
    seed: int,
) -> ChannelCut:
    seen = survey(volume)
    limit = seen.threshold if threshold is None else threshold
    map_of_it = coarse_map(volume, time=time)
    group = f"{source}/{name}"
    known = {
        row.origin: row
        for row in writer.rows
        if row.volume == group and row.channel == volume.channel and row.level == volume.level and row.origin
    }
    result = ChannelCut(
        path=volume.path,
        volume=group,
        channel=volume.channel,
        survey=seen,
        threshold=limit,
        shape=volume.shape,
        voxel_size_um=volume.voxel_size_um,
        map=map_of_it,
        origin=volume.origin,
        size=size,
        wanted=count,
    )
    occupied = _Occupied(map_of_it, limit=limit, background=seen.background, least=min_foreground_frac)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), volume.channel, volume.level])
    room = [have - wanted + 1 for have, wanted in zip(volume.shape, size, strict=True)]
    shapes = {origin: row.shape for origin, row in known.items()}
    for corner in _places(room, rng, occupied, size=size):
        if len(shapes) >= count or result.read >= READS_PER_PATCH * count:
            break
        origin = (corner[0] + volume.origin[0], corner[1] + volume.origin[1], corner[2] + volume.origin[2])
        if any(_overlap(origin, size, *other) for other in shapes.items()):
            continue
        z, y, x = (slice(start, start + length) for start, length in zip(corner, size, strict=True))
        pixels = volume.read((z, y, x))
        result.read += 1
        foreground = float((pixels > limit).mean())
        if foreground < min_foreground_frac or pixels.min() == pixels.max():
            continue
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            continue
        digest = hashlib.sha256(described(pixels)).hexdigest()
        row = PatchRow(
            id=_identity(group, volume, origin),
            part="",
            index=0,
            source=source,
            layout=LAYOUT,
            volume=group,
            channel=volume.channel,
            caption_key=caption_key,
            voxel_size_um=volume.voxel_size_um,
            voxel_size_source=volume.voxel_size_source,
            shape=pixels.shape,
            dtype=str(pixels.dtype),
            sha256=digest,
            file=f"{volume_name(volume.path)} {origin}",
            pixels_sha256=digest,
            origin=origin,
            level=volume.level,
            foreground_frac=foreground,
            threshold=limit,
            volume_percentiles=seen.percentiles,
            **intensity_statistics(pixels),
        )
        writer.add(pixels, row)
        shapes[origin] = size
        result.added += 1
    result.boxes = list(shapes)
    return result


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


def _check(*, count: int, size: Voxels, min_foreground_frac: float) -> None:
    if count < 1:
        raise CutError(f"--count {count}: at least 1 is needed")
    if min(size) < 2:
        raise CutError(f"--size {size}: at least 2 voxels along each axis are needed")
    if not 0 <= min_foreground_frac <= 1:
        raise CutError(f"--min-foreground {min_foreground_frac}: a share from 0 to 1 is needed, such as 0.05")


def _names(volumes: Sequence[str | pathlib.Path]) -> dict[str, str]:
    names: dict[str, str] = {}
    for path in map(str, volumes):
        name = volume_name(path)
        if name in names:
            raise CutError(
                f"{names[name]} and {path} are both called {name}; cut them one by one, each with its own "
                "--source, so that a split keeps them apart"
            )
        names[name] = path
    if not names:
        raise CutError("no volume was given: name at least one")
    return names


def _channels(path: str, channel: int | None, level: int, time: int | None, box: Box | None) -> list[LazyVolume]:
    if channel is not None:
        return [open_volume(path, channel=channel, level=level, time=time, box=box)]
    # Any channel tells how many there are.
    first = open_volume(path, channel=0, level=level, time=time, box=box)
    rest = range(1, first.channels)
    return [first, *(open_volume(path, channel=n, level=level, time=time, box=box) for n in rest)]


def _captions(paths: Sequence[str | pathlib.Path], needed: set[str], out: pathlib.Path) -> dict[str, list[str]]:
    texts = load_captions(paths).texts
    stored = read_sealed(out / CAPTIONS)["captions"] if (out / HEADER).is_file() else {}
    require_captions(needed, [*texts, *stored])
    return {key: texts[key] for key in sorted(needed) if key in texts}
