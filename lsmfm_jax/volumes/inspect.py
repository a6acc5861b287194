"""What a volume of any size is, says of itself and would cost to predict, as text and as a picture."""

import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from lsmfm_jax.volumes.lazy import Box, LazyVolume, box_text
from lsmfm_jax.volumes.open import open_volume
from lsmfm_jax.volumes.pictures import Panel, draw
from lsmfm_jax.volumes.survey import Survey, coarse_map, survey

# What `lsmfm predict` takes by default.
WINDOW = 96
OVERLAP_FRAC = 0.25


class VolumeReport(NamedTuple):
    """The text for people, and what `draw` makes the picture of."""

    text: str
    panels: list[Panel]


def inspect(
    path: str,
    *,
    channel: int | None = None,
    level: int = 0,
    time: int | None = None,
    box: Box | None = None,
) -> VolumeReport:
    """Describe a volume, all its channels unless one is chosen; arguments as `open_volume` takes them.

    Raises:
        VolumeError: it cannot be opened or read.
    """
    first = open_volume(path, channel=channel or 0, level=level, time=time, box=box)
    numbers = range(first.channels) if channel is None else [channel]
    lines = [f"{path}", *_facts(first, box, time)]
    panels = []
    notes = []
    for number in numbers:
        volume = open_volume(path, channel=number, level=level, time=time, box=box)
        seen = survey(volume)
        lines += _intensities(volume, seen)
        notes += [f"channel {number}: {note}" if len(numbers) > 1 else note for note in _notes(volume, seen)]
        of_all = coarse_map(volume, time=time)
        title = f"{pathlib.PurePath(path).name}" + (f", channel {number}" if first.channels > 1 else "")
        said = [f"{_product(volume.shape)} voxels, {volume.dtype}, drawn from {of_all.source}", seen.rule()]
        panels.append(Panel(title, said, of_all, seen, seen.threshold, volume.voxel_size_um))
        emptiest = seen.empty_frac
    lines += _cost(first, emptiest if len(numbers) == 1 else None)
    lines += [f"  note: {note}" for note in notes]
    return VolumeReport("\n".join(lines), panels)


def write_page(report: VolumeReport, png: str | pathlib.Path) -> None:
    """Draw the projections and histograms of a report."""
    draw(report.panels, png)


def _facts(volume: LazyVolume, box: Box | None, time: int | None) -> list[str]:
    facts = [("shape (Z, Y, X)", f"{_product(volume.shape)} voxels, {volume.dtype}, {_bytes(_size(volume))}")]
    if box is not None:
        facts.append(("box", f"{box_text(box)}, begins at {volume.origin}"))
    if volume.voxel_size_um is None:
        facts.append(("voxel size", "unknown: give it where a command asks for it"))
    else:
        extent = [size * um / 1000 for size, um in zip(volume.shape, volume.voxel_size_um, strict=True)]
        um = " x ".join(f"{value:g}" for value in volume.voxel_size_um)
        mm = " x ".join(f"{value:.3g}" for value in extent)
        facts.append(("voxel size", f"{um} um, {volume.voxel_size_source}; in all {mm} mm"))
    facts.append(("kept together", f"{_product(volume.chunk)} voxels"))
    if volume.levels > 1:
        every = [open_volume(volume.path, channel=volume.channel, level=n, time=time) for n in range(volume.levels)]
        shapes = ", ".join(_product(one.shape) for one in every)
        facts.append(("levels", f"{volume.levels}: {shapes}; level {volume.level} is described"))
    if volume.channels > 1:
        facts.append(("channels", f"{volume.channels}; choose one with --channel 0 to {volume.channels - 1}"))
    return [f"  {name:<16} {text}" for name, text in facts]


def _intensities(volume: LazyVolume, seen: Survey) -> list[str]:
    share = seen.sampled / max(1, math.prod(volume.shape))
    name = f"channel {volume.channel}" if volume.channels > 1 else "intensities"
    how = "all voxels" if seen.exact else f"{seen.sampled / 1e6:.1f} million sampled voxels, {share:.2%} of all"
    marks = ", ".join(f"p{name} {seen.percentiles[name]:.6g}" for name in ("1", "50", "99", "99.9"))
    return [
        f"  {name:<16} from {how}: min {seen.minimum:.6g}, {marks}, max {seen.maximum:.6g}",
        f"  {'':<16} {seen.rule()}",
        f"  {'':<16} {seen.foreground_frac:.1%} of the voxels are foreground, {seen.saturated_frac:.2%} saturated; "
        f"{seen.empty_frac:.0%} of the blocks are empty",
    ]


def _notes(volume: LazyVolume, seen: Survey) -> list[str]:
    notes = []
    if seen.not_finite:
        notes.append(f"{seen.not_finite} sampled voxels are NaN or Inf: export it again, or cut a --box without them")
    if seen.saturated_frac >= 1e-3:
        notes.append(f"at least 0.1 % of the voxels hold {seen.maximum:.6g}, so the brightest structures are clipped")
    if seen.minimum == seen.maximum:
        notes.append(f"every voxel that was looked at is {seen.minimum:.6g}")
    if volume.voxel_size_um is not None and "unverified" in volume.voxel_size_source:
        notes.append("the voxel size is doubtful, see above")
    return notes


def _cost(volume: LazyVolume, empty_frac: float | None) -> list[str]:
    stride = int(WINDOW * (1 - OVERLAP_FRAC))
    counts = [1 + math.ceil(max(0, size - WINDOW) / stride) for size in volume.shape]
    windows = math.prod(counts)
    skipped = f", about {empty_frac:.0%} of them empty" if empty_frac else ""
    voxels = math.prod(volume.shape)
    return [
        f"  {'a prediction':<16} {windows} windows of {WINDOW} voxels a side at overlap {OVERLAP_FRAC} "
        f"({_product(counts)}){skipped}",
        f"  {'':<16} in memory at once {_bytes(_size(volume) + 8 * voxels)}, on the disk, before "
        f"compression, {_bytes(voxels)} for a mask and as much for probabilities",
    ]


def _size(volume: LazyVolume) -> int:
    return math.prod(volume.shape) * volume.dtype.itemsize


def _product(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
