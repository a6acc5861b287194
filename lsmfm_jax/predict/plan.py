"""How a volume is cut into shards and tasks so that predicting stays within the memory that is allowed.

A shard is one file of the result and has one writer. A task is a box of whole shards that one process sweeps
along Z, so that windows are computed twice only where two tasks meet. The plan is a function of its arguments
alone: all parts of a prediction make the same one.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence

from lsmfm_jax.predict.inputs import PredictionError

Size = tuple[int, int, int]

GIB = 2**30
# Python, JAX and the libraries with their threads and pools, before any volume is read.
BASE_BYTES = 700 * 2**20
SHARD_SIDES = (256, 128, 64)
CHUNK_SIDES = (64, 32, 16, 8)
# Parts take turns in a fixed order, so with a few tasks each the slowest is not far behind.
TASKS_PER_PART = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """Shards and tasks of a prediction; all sizes are ZYX voxels.

    Attributes:
        shape: of what is predicted: the volume, or a box of it.
        window: that the network is applied to.
        shard: of one file.
        chunk: of one compressed piece in it.
        task: of what one process sweeps at a time; a multiple of the shard.
        needed_bytes: estimate of the peak memory of a process.
        origin: voxel of the volume at which the box begins. Shards and tasks are counted from there.
    """

    shape: Size
    window: Size
    shard: Size
    chunk: Size
    task: Size
    needed_bytes: int
    origin: Size = (0, 0, 0)

    def shards(self) -> list[Size]:
        """Numbers of all shards along the axes."""
        counts = [math.ceil(size / side) for size, side in zip(self.shape, self.shard, strict=True)]
        return list(itertools.product(*map(range, counts)))

    def tasks(self) -> list[tuple[slice, slice, slice]]:
        """Boxes of all tasks, in voxels."""
        starts = [range(0, size, side) for size, side in zip(self.shape, self.task, strict=True)]
        return [self._box(corner, self.task) for corner in itertools.product(*starts)]

    def shard_box(self, shard: Size) -> tuple[slice, slice, slice]:
        """The voxels of a shard, cut at the volume's end."""
        number, side = shard, self.shard
        return self._box((number[0] * side[0], number[1] * side[1], number[2] * side[2]), side)

    def in_volume(self, box: tuple[slice, slice, slice]) -> tuple[slice, slice, slice]:
        """Where in the volume a box lies that is counted from the origin."""
        z, y, x = (slice(one.start + start, one.stop + start) for one, start in zip(box, self.origin, strict=True))
        return z, y, x

    def _box(self, corner: Sequence[int], side: Size) -> tuple[slice, slice, slice]:
        ends = [min(start + length, size) for start, length, size in zip(corner, side, self.shape, strict=True)]
        z, y, x = (slice(start, end) for start, end in zip(corner, ends, strict=True))
        return z, y, x


def make_plan(
    shape: Size,
    *,
    window: Size,
    itemsize: int,
    chunk_rows: int,
    output_bytes: int,
    network_bytes: int,
    max_ram_bytes: int,
    parts: int = 1,
    shard: Size | None = None,
    origin: Size = (0, 0, 0),
    volume_shape: Size | None = None,
) -> Plan:
    """Chooses shards and tasks.

    Args:
        shape: ZYX voxels of what is predicted.
        window: ZYX voxels.
        itemsize: bytes of a voxel of the input.
        chunk_rows: voxels along Z that the input keeps together.
        output_bytes: bytes of a voxel of all outputs.
        network_bytes: that the network, and the levels of the volume, need in the host's memory.
        max_ram_bytes: that one process may use.
        parts: processes that share the work.
        shard: ZYX voxels; None: the largest of 256, 128 and 64 a side that fits.
        origin: ZYX voxel of the volume at which it begins.
        volume_shape: ZYX voxels of the volume; None: all of it is predicted.

    Raises:
        PredictionError: even the smallest task needs more memory.
    """
    needed, around = math.inf, volume_shape or shape
    for side in [shard] if shard else [(side,) * 3 for side in SHARD_SIDES]:
        chunk = tuple(next((c for c in CHUNK_SIDES if length % c == 0), length) for length in side)
        # No larger than the volume needs, in whole chunks.
        fitting = tuple(
            min(length, math.ceil(size / piece) * piece) for length, size, piece in zip(side, shape, chunk, strict=True)
        )

        def bytes_of(task: Sequence[int], fitting: Sequence[int] = fitting) -> int:
            tile = [min(size, length + 2 * w) for size, length, w in zip(around, task, window, strict=True)]
            plane, halo_plane = task[1] * task[2], max(tile[1], window[1]) * max(tile[2], window[2])
            raw = (window[0] + 2 * min(chunk_rows, window[0])) * halo_plane * itemsize * 2
            prepared = 3 * window[0] * halo_plane * 4
            blended = (2 * halo_plane + 2 * plane) * window[0] * 4
            # Rows of shards, one being filled and one being written, and a shard while it is compressed.
            written = (2 * fitting[0] * plane + 4 * math.prod(fitting)) * output_bytes
            return BASE_BYTES + network_bytes + raw + prepared + blended + written

        task = [math.ceil(size / length) * length for size, length in zip(shape, fitting, strict=True)]
        while (needed := bytes_of(task)) > max_ram_bytes and (task[1] > fitting[1] or task[2] > fitting[2]):
            _halve(task, fitting, 1 if task[1] // fitting[1] >= task[2] // fitting[2] else 2)
        if needed <= max_ram_bytes:
            break
    else:
        raise PredictionError(
            f"--max-ram {bytes_text(max_ram_bytes)}: even shards of {' x '.join(map(str, fitting))} voxels need "
            f"{bytes_text(int(needed))}; allow that much, or take a smaller --window, --shard or --batch"
        )
    most = math.prod(math.ceil(size / length) for size, length in zip(shape, fitting, strict=True))
    wanted = 1 if parts == 1 else min(most, TASKS_PER_PART * parts)
    while math.prod(math.ceil(size / length) for size, length in zip(shape, task, strict=True)) < wanted:
        _halve(task, fitting, max(range(3), key=lambda axis: task[axis] // fitting[axis]))
    return Plan(shape, window, fitting, chunk, (task[0], task[1], task[2]), bytes_of(task), origin)


def _halve(task: list[int], shard: Sequence[int], axis: int) -> None:
    task[axis] = math.ceil(task[axis] // shard[axis] / 2) * shard[axis]


def parse_bytes(text: str) -> int:
    """Reads a size of memory such as 16G, 800M or 1.5GiB; units are powers of 1024."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT])(i?B)?\s*", text, re.IGNORECASE)
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if number <= 0:
        raise PredictionError(f"--max-ram {text!r}: a size such as 16G or 800M is needed")
    return int(number * 1024 ** ("KMGT".index(match[2].upper()) + 1))


def bytes_text(count: int) -> str:
    """A size of memory for people."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"
