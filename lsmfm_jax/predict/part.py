"""The work of one process on a result: its tasks swept, their shards written, read back and marked."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool

from lsmfm_jax.predict.background import Behind, ahead
from lsmfm_jax.predict.blocks import Layer, layers_of, make_grid, make_layers, read_layers
from lsmfm_jax.predict.brain_settings import BrainSettings
from lsmfm_jax.predict.memory import give_back
from lsmfm_jax.predict.network import Predictor
from lsmfm_jax.predict.output import MASK, PROBABILITY, Array, Image
from lsmfm_jax.predict.plan import Size
from lsmfm_jax.predict.progress import Progress, duration
from lsmfm_jax.predict.shards import Record, clear, damage, mark_done, part_of, read_mark
from lsmfm_jax.predict.skipping import wanted_cells, zero_outside
from lsmfm_jax.predict.statistics import CELL, Box, Readable, VolumeStatistics, narrowed
from lsmfm_jax.predict.sweep import sweep
from lsmfm_jax.predict.tissue import TissueMask
from lsmfm_jax.scale import Levels
from lsmfm_jax.volumes.lazy import LazyVolume


class _Timed:
    """A volume whose reading is timed."""

    def __init__(self, volume: Readable) -> None:
        self._volume, self.shape, self.dtype, self.chunk = volume, volume.shape, volume.dtype, volume.chunk
        self.seconds = 0.0

    def read(self, box: Box) -> np.ndarray:
        began = time.perf_counter()
        tile = narrowed(self._volume.read(box), box)
        self.seconds += time.perf_counter() - began
        return tile


@dataclasses.dataclass(eq=False)
class Part:
    """The shards of one process: sweeps its tasks, and writes and marks what is missing."""

    predictor: Predictor
    volume: LazyVolume
    out: pathlib.Path
    settings: BrainSettings
    tissue: TissueMask | None
    record: Record
    images: list[Image]
    print_line: Callable[[str], None]

    def run(self) -> None:
        """Predicts all shards of the part that are missing."""
        plan, began = self.record.plan, time.monotonic()
        # The windows and cells of the whole volume, so that a box of it has the values that it has in the whole.
        self.grid = make_grid(self.volume.shape, window=plan.window, overlap_frac=self.settings.overlap_frac)
        self.wanted = self._wanted()
        self.arrays = [Array(self.out, image) for image in self.images]
        mine = part_of(plan.tasks(), self.settings.part)
        missing = {index: self._missing(task) for index, task in enumerate(mine)}
        total = sum(len(shards) for shards in missing.values())
        here = sum(len(self._shards_in(task)) for task in mine)
        part = "" if self.settings.part[1] == 1 else f"part {self.settings.part[0]} of {self.settings.part[1]}: "
        left_out = 1 - self._cells_of(tuple(slice(0, size) for size in plan.shape)).mean()
        self.print_line(
            f"{part}{total} of {here} shards to do; {left_out:.1%} of the volume is left out"
            f"{' (blank)' if self.tissue is None else ' (blank, or outside of --mask)'}"
        )
        voxels = sum(self._voxels(shard) for shards in missing.values() for shard in shards)
        self.progress = Progress("predicting", voxels, print_line=self.print_line)
        for index, task in enumerate(mine):
            if missing[index]:
                self._sweep(task, missing[index])
                give_back()
        self.progress.end()
        if total:
            passed = time.monotonic() - began
            self.print_line(f"{part}{total} shards in {duration(passed)}, {voxels / passed / 1e6:.1f} Mvoxel/s")

    def _wanted(self) -> Bool[np.ndarray, "cz cy cx"]:
        statistics, settings = self.record.statistics, self.settings
        below = settings.blank_below
        if below is None:
            below = statistics.low if self.predictor.task == "segment" else 0.0
        wanted = wanted_cells(statistics, below if settings.skip_blank else None)
        return wanted if self.tissue is None else wanted & self.tissue.cells()

    def _shards_in(self, task: Box) -> list[Size]:
        side = self.record.plan.shard
        ranges = [range(one.start // s, -(-one.stop // s)) for one, s in zip(task, side, strict=True)]
        return [(z, y, x) for z in ranges[0] for y in ranges[1] for x in ranges[2]]

    def _voxels(self, shard: Size) -> int:
        return int(np.prod([one.stop - one.start for one in self.record.plan.shard_box(shard)]))

    def _missing(self, task: Box) -> list[Size]:
        """Shards of a task that are not done, or are no longer what was written; those are removed."""
        missing = []
        for shard in self._shards_in(task):
            mark = read_mark(self.out, shard)
            wrong = None if mark is None else damage(self.out, shard, mark)
            if wrong:
                self.print_line(f"{wrong}: predicted again")
            if mark is None or wrong:
                clear(self.out, self.images, shard)
                missing.append(shard)
        return missing

    def _sweep(self, task: Box, missing: list[Size]) -> None:
        """Predicts the missing shards of a task, one run of rows of shards after the other."""
        plan = self.record.plan
        layers = make_layers(self.grid, plan.in_volume(task), self.wanted)
        rows = sorted({shard[0] for shard in missing if self._touched(shard)})
        for shard in missing:
            if shard[0] not in rows:
                mark_done(self.out, self.images, shard, {"blank": True, "foreground": 0, "seconds": {}})
                self.progress.add(self._voxels(shard))
        runs = np.split(np.array(rows, int), np.flatnonzero(np.diff(rows) > 1) + 1) if rows else []
        for run in runs:
            start, stop = int(run[0]) * plan.shard[0], min((int(run[-1]) + 1) * plan.shard[0], plan.shape[0])
            box = (slice(start, stop), task[1], task[2])
            self._sweep_run(box, [shard for shard in missing if run[0] <= shard[0] <= run[-1]], layers)

    def _touched(self, shard: Size) -> bool:
        return bool(self._cells_of(self.record.plan.shard_box(shard)).any())

    def _cells_of(self, box: Box) -> Bool[np.ndarray, "cz cy cx"]:
        there = self.record.plan.in_volume(box)
        return self.wanted[tuple(slice(one.start // CELL, -(-one.stop // CELL)) for one in there)]

    def _sweep_run(self, box: Box, missing: list[Size], layers: Sequence[Layer]) -> None:
        there = self.record.plan.in_volume(box)
        layers = layers_of(layers, self.grid, there[0].start, there[0].stop)
        timed = _Timed(self.volume)
        levels = self.record.statistics.levels

        def prepare(tile: np.ndarray, where: Box) -> np.ndarray:
            return self.predictor.prepare(tile, where, levels)

        rows = _Rows(self, box, missing, timed)
        tiles = ahead(read_layers(timed, prepare, grid=self.grid, layers=layers, box=there))
        with Behind() as behind:

            def emit(first: int, last: int, values: np.ndarray | None) -> None:
                top = self.record.plan.origin[0]
                behind.do(lambda: rows.add(first - top, last - top, values))

            sweep(
                self.predictor.apply,
                tiles,
                grid=self.grid,
                layers=layers,
                box=there,
                batch_size=self.settings.batch_size,
                emit=emit,
            )


class _Rows:
    """Gathers planes to rows of shards, and writes each shard that is complete; runs in the writing thread."""

    def __init__(self, part: Part, box: Box, missing: list[Size], timed: _Timed) -> None:
        self._part, self._box, self._missing, self._timed = part, box, missing, timed
        self._side = part.record.plan.shard
        self._images = part.images
        self._buffers: dict[str, np.ndarray] = {}
        self._read_s, self._began = 0.0, time.perf_counter()

    def add(self, first: int, last: int, values: np.ndarray | None) -> None:
        """Takes planes of the box, the next ones."""
        start = first
        while start < last:
            row = start // self._side[0]
            end = min((row + 1) * self._side[0], self._box[0].stop)
            stop = min(end, last)
            self._fill(row, slice(start, stop), None if values is None else values[start - first : stop - first])
            if stop == end:
                self._write(row)
                self._buffers = {}
            start = stop

    def _fill(self, row: int, planes: slice, values: np.ndarray | None) -> None:
        top = row * self._side[0]
        if not self._buffers:
            depth = min((row + 1) * self._side[0], self._box[0].stop) - top
            shape = (depth, *(one.stop - one.start for one in self._box[1:]))
            self._buffers = {image.name: np.zeros(shape, image.dtype) for image in self._images}
        if values is not None:
            there = slice(planes.start - top, planes.stop - top)
            for image in self._images:
                self._convert(image, values, self._buffers[image.name][there])

    def _convert(self, image: Image, values: np.ndarray, to: np.ndarray) -> None:
        """Writes planes of a map as an image has them. They are few voxels at a time, which stay in the cache."""
        threshold, statistics = self._part.settings.threshold, self._part.record.statistics
        for one, plane in zip(values, to, strict=True):
            if image is PROBABILITY:
                scaled = np.clip(one, 0.0, 1.0)
                scaled *= np.float32(255)
                plane[:] = np.rint(scaled, out=scaled)
            elif image is MASK:
                # As in memory, where probabilities are clipped first.
                plane[:] = (one >= threshold) | (threshold <= 0.0)
            else:
                plane[:] = in_counts(one, statistics, np.dtype(image.dtype))

    def _write(self, row: int) -> None:
        part = self._part
        shards = [shard for shard in self._missing if shard[0] == row]
        seconds = {"read": (self._timed.seconds - self._read_s) / len(shards)}
        self._read_s = self._timed.seconds
        for shard in shards:
            began = time.perf_counter()
            box = part.record.plan.shard_box(shard)
            inside = (
                slice(None),
                *(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box[1:], self._box[1:], strict=True)),
            )
            foreground = 0
            for image, array in zip(part.images, part.arrays, strict=True):
                values = self._buffers[image.name][inside]
                there = part.record.plan.in_volume(box)
                tissue = None if part.tissue is None else part.tissue.read(there)
                z, y, x = (one.start % CELL for one in there)
                zero_outside(values, part._cells_of(box), tissue, first=(z, y, x))
                array.write(box, values)
                foreground += int(np.count_nonzero(values)) if image is MASK else 0
            seconds["write"] = time.perf_counter() - began
            seconds["all"] = (began - self._began) / len(shards) if shard == shards[0] else seconds["all"]
            mark_done(
                part.out,
                part.images,
                shard,
                {"blank": not part._touched(shard), "foreground": foreground, "seconds": dict(seconds)},
            )
            part.progress.add(part._voxels(shard))
        self._began = time.perf_counter()


def in_counts(values: np.ndarray, statistics: VolumeStatistics | Levels, dtype: np.dtype) -> np.ndarray:
    """A predicted volume in the units and the type of its input; what a type of integers cannot hold is cut."""
    span = statistics.high - statistics.low if statistics.high > statistics.low else 1.0
    counts = np.float32(statistics.low) + values * np.float32(span)
    if dtype.kind == "f":
        return counts.astype(dtype)
    limits = np.iinfo(dtype)
    # In double precision: the largest 32-bit integers are no single-precision numbers.
    return np.clip(np.rint(counts.astype(np.float64)), limits.min, limits.max).astype(dtype)
