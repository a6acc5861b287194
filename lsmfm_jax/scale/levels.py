"""The scales themselves: what one volume measured, and a tile of it scaled by that."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from lsmfm_jax.errors import LsmfmError

SCALES = ("percentile", "log_ratio", "local", "z_score")
# Those that take the logarithm of counts.
RATIOS = ("log_ratio", "local")
# What becomes 0 and 1: octaves above the background, and standard deviations.
OCTAVES = (-1.0, 4.0)
DEVIATIONS = (-3.0, 12.0)
# What the background becomes.
BACKGROUND = -OCTAVES[0] / (OCTAVES[1] - OCTAVES[0])
# Of a volume that a scale of ratios can be used for, at least this share of the voxels is above one count, unless
# brighter ones stand on a background that is dark everywhere.
LEAST_SEEN = 1e-3
# What counts of a microscope reach where there is anything, above the camera's offset.
LEAST_COUNTS = 16.0
# Tiles are scaled so many voxels at a time, which stay in the processor's cache from one operation to the next.
_VOXELS_AT_A_TIME = 2**17

Volume = Num[np.ndarray, "z y x"]
Map = Float[np.ndarray, "a b c"]
Size = tuple[int, int, int]


class ScaleError(LsmfmError, ValueError):
    """An intensity scale cannot be used as asked; the message names the key, the value and what to do."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """Which scale, and its settings.

    Attributes:
        name: one of `SCALES`.
        percentiles: of `percentile`, that become 0 and 1.
        sigma_voxels: of the Gaussian that a `local` background is a mean over, in voxels; several times an object.
        sigma_um: the same in micrometres; where it is not 0 and the voxel size is known it is used instead.
        offset_counts: what the camera records in the dark, taken off before any ratio.
        fixed_level: of `log_ratio` and `local`, log2 of the counts that stand for the background everywhere, in place
            of what is measured; `lsmfm calibrate` sets it for one volume. None: it is measured.
    """

    name: str = "percentile"
    percentiles: tuple[float, float] = (1.0, 99.0)
    sigma_voxels: float = 12.0
    sigma_um: float = 0.0
    offset_counts: float = 0.0
    fixed_level: float | None = None

    def record(self) -> dict[str, Any]:
        """What a run writes down of it; `scale_of` reads it."""
        return {
            "name": self.name,
            "lower": f"{self.percentiles[0]:g}",
            "upper": f"{self.percentiles[1]:g}",
            "sigma_voxels": self.sigma_voxels,
            "sigma_um": self.sigma_um,
            "offset_counts": self.offset_counts,
            **({} if self.fixed_level is None else {"fixed_level": self.fixed_level}),
        }


def scale_of(record: dict[str, Any]) -> Scale:
    """The scale of a run, from what it wrote down; runs that named none used percentiles.

    Raises:
        ScaleError: the record names a scale that does not exist.
    """
    if record.get("name", "percentile") not in SCALES:
        raise ScaleError(f"scaling: {record['name']!r} is unknown; allowed: {', '.join(SCALES)}")
    defaults = Scale()
    return Scale(
        name=record.get("name", "percentile"),
        percentiles=(float(record.get("lower", 1)), float(record.get("upper", 99))),
        sigma_voxels=float(record.get("sigma_voxels", defaults.sigma_voxels)),
        sigma_um=float(record.get("sigma_um", 0.0)),
        offset_counts=float(record.get("offset_counts", 0.0)),
        fixed_level=None if record.get("fixed_level") is None else float(record["fixed_level"]),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """What one volume measured: enough to scale any tile of it.

    Attributes:
        scale: by which tiles are scaled.
        low: count that becomes 0 (for `local`, where the background is the volume's level).
        high: count that becomes 1, likewise.
        level: log2 of the tissue's median counts, of block means, above the camera's offset; of the ratios alone.
        background: log2 of the counts around the middle of each block, for `local` where it is measured; else None.
        block: voxels of a block along Z, Y, X.
        tissue_frac: share of the volume that is tissue.
        seen_frac: of the voxels that are not 0, the share that is more than a count above the camera's offset; the
            scales of ratios show all others alike. 1 for the other scales.
        counts_range: the least and the largest value of the volume, where the scale is of ratios.
    """

    scale: Scale
    low: float
    high: float
    level: float = 0.0
    background: Map | None = None
    block: Size = (1, 1, 1)
    tissue_frac: float = 1.0
    seen_frac: float = 1.0
    counts_range: tuple[float, float] = (0.0, 0.0)

    def apply(
        self, tile: Volume, origin: Sequence[int] = (0, 0, 0), *, clip: bool = True
    ) -> Float[np.ndarray, "z y x"]:
        """A tile of the volume, scaled to float32.

        Args:
            tile: raw counts.
            origin: where in the volume its first voxel is.
            clip: to [0, 1].
        """
        scaled = np.empty(tile.shape, np.float32)
        rows = max(1, _VOXELS_AT_A_TIME // max(1, math.prod(tile.shape[1:])))
        for first in range(0, len(tile), rows):
            some = scaled[first : first + rows]
            self._scale(tile[first : first + rows], (origin[0] + first, *origin[1:]), some)
            if clip:
                np.clip(some, 0.0, 1.0, out=some)
        return scaled

    def _scale(self, tile: Volume, origin: Sequence[int], scaled: Float[np.ndarray, "z y x"]) -> None:
        """Writes a scaled tile."""
        in_octaves = self.scale.name in RATIOS
        if in_octaves:
            scaled[...] = log_counts(tile, self.scale.offset_counts)
            scaled -= np.float32(self.level) if self.background is None else self._around(tile.shape, origin)
            low, span = OCTAVES[0], OCTAVES[1] - OCTAVES[0]
        else:
            scaled[...] = tile
            low, span = self.low, self.high - self.low if self.high > self.low else 1.0
        scaled -= np.float32(low)
        scaled /= np.float32(span)
        if in_octaves and self.scale.offset_counts >= 0.0:
            # Where nothing was recorded (a volume padded with zeros) there is no edge to be seen: it is background.
            np.putmask(scaled, tile == 0, np.float32(BACKGROUND))

    def facts(self) -> dict[str, Any]:
        """All but the background, in plain numbers; `levels_of` puts both together again."""
        return {
            "scale": self.scale.record(),
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "block": list(self.block),
            "tissue_frac": self.tissue_frac,
        }

    def _around(self, shape: Sequence[int], origin: Sequence[int]) -> Float[np.ndarray, "z y x"]:
        """The background of each voxel of a tile: linear between the middles of blocks."""
        field = self.background
        assert field is not None
        places = []
        for size, start, block, blocks in zip(shape, origin, self.block, field.shape, strict=True):
            place = np.clip((np.arange(start, start + size) + 0.5) / block - 0.5, 0.0, blocks - 1.0)
            before = np.minimum(place.astype(np.int64), max(blocks - 2, 0))
            places.append((before, np.minimum(before + 1, blocks - 1), (place - before).astype(np.float32)))
        # The blocks near the tile alone: a brain has millions.
        field = field[tuple(slice(before[0], after[-1] + 1) for before, after, _ in places)]
        for axis, (before, after, share) in enumerate(places):
            share = share.reshape([-1 if other == axis else 1 for other in range(3)])
            first = before[0]
            field = np.take(field, before - first, axis) * (1 - share) + np.take(field, after - first, axis) * share
        return field


def log_counts(counts: Num[np.ndarray, "..."], offset_counts: float) -> Float[np.ndarray, "..."]:
    """log2 of counts above the camera's offset, of at least one count; float32."""
    if counts.dtype in (np.uint8, np.uint16):
        # Looked up: a third of the time of computing it for each voxel.
        return _table_of_logs(offset_counts)[counts]
    return _logs(counts, offset_counts)


def _logs(counts: Num[np.ndarray, "..."], offset_counts: float) -> Float[np.ndarray, "..."]:
    # In place, as tiles of brains are large.
    logs = counts.astype(np.float32)
    logs -= np.float32(offset_counts)
    np.maximum(logs, 1.0, out=logs)
    return np.log2(logs, out=logs)


@functools.lru_cache(maxsize=4)
def _table_of_logs(offset_counts: float) -> Float[np.ndarray, "65536"]:
    return _logs(np.arange(2**16), offset_counts)


def check_seen(levels: Levels) -> Levels:
    """The levels again, of a volume in which the scale sees something.

    The scales of ratios take the logarithm of counts, of one count at least. A volume that was scaled to [0, 1], or
    whose counts begin at a negative offset, would be the same everywhere.

    Raises:
        ScaleError: fewer than `LEAST_SEEN` of its voxels differ on the scale, though the volume is not constant, and
            its values are not those of a few structures on a dark background.
    """
    low, high = levels.counts_range
    offset = levels.scale.offset_counts
    sparse = low >= offset and high >= offset + LEAST_COUNTS
    if levels.seen_frac >= LEAST_SEEN or low == high or sparse:
        return levels
    raise ScaleError(
        f"its values from {low:g} to {high:g} are nearly all below {offset + 1:g}, where data.scale "
        f"{levels.scale.name!r} (the logarithm of counts above a camera offset of {offset:g}) sees no difference. Give "
        "the counts as the microscope wrote them, in training and prediction; or train with --config.data.scale=z_score"
        + (f" or --config.data.camera_offset={math.floor(low)}" if low < 0 else "")
    )


@contextlib.contextmanager
def naming(source: object) -> Iterator[None]:
    """Puts the name of a file before the message of a ScaleError that is raised in the block."""
    try:
        yield
    except ScaleError as error:
        raise ScaleError(f"{source}: {error}") from None


def levels_of(facts: dict[str, Any], background: Map | None) -> Levels:
    """Levels as they were, from `Levels.facts` and the background."""
    numbers = {name: float(facts[name]) for name in ("low", "high", "level", "tissue_frac")}
    z, y, x = (int(side) for side in facts["block"])
    return Levels(scale_of(facts["scale"]), background=background, block=(z, y, x), **numbers)
