"""Patches cut at random from whole volumes into a store, as in section 2.1 of the paper.

From each channel up to 10 patches of 96 voxels a side that do not overlap, each with at least 5 % foreground. What
counts as foreground is a threshold that is measured on the volume (see `volumes.survey`). Places are drawn
evenly over the volume; those that a coarse map shows to be empty are left out before anything is read.
"""

import pathlib
from collections.abc import Callable, Sequence

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import read_sealed
from lsmfm_jax.store.captions import load_captions, normalise_key, require_captions
from lsmfm_jax.store.cut_channel import ChannelCut, CutRule, cut_channel
from lsmfm_jax.store.reader import CAPTIONS, HEADER
from lsmfm_jax.store.writer import StoreWriter
from lsmfm_jax.volumes.lazy import Box, LazyVolume, Voxels
from lsmfm_jax.volumes.names import volume_name
from lsmfm_jax.volumes.open import open_volume
from lsmfm_jax.volumes.pictures import Panel, draw


class CutError(LsmfmError, ValueError):
    """Patches cannot be cut as asked."""


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
    rule = CutRule(count, size, min_foreground_frac, threshold, seed)
    with StoreWriter(out) as writer:
        writer.add_captions(texts)
        for name, channels in opened.items():
            for volume in channels:
                one = cut_channel(volume, writer, rule, name=name, source=source, caption_key=keys[name], time=time)
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
