"""The windows of a part of a volume, layer by layer, and the voxels that they see; `sweep` applies a network to them.

Windows stand on the grid of the whole volume, whatever part is computed, so the result does not depend on how the
volume is divided. A part is swept along Z: planes that no later window touches are given away at once, so the
memory is that of a few layers however long the sweep is.

Windows and their layers are counted in voxels of the padded volume (see `pad_to_window`), boxes in those of the
volume itself; `Grid.before` lies between the two.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped

from lsmfm_jax.predict.statistics import CELL, Box, Readable
from lsmfm_jax.predict.windows import Size, window_grid


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The windows of a whole volume.

    Attributes:
        shape: ZYX of the volume.
        window: ZYX.
        before: voxels that reflection adds before each axis that is shorter than the window.
        axes: for each axis, start of a window in the padded volume -> its share in each of its voxels.
    """

    shape: Size
    window: Size
    before: Size
    axes: tuple[dict[int, np.ndarray], ...]


def make_grid(shape: Size, *, window: Size, overlap_frac: float) -> Grid:
    """The windows that `blend_windows` uses for a volume of this shape."""
    before = tuple(max(0, wanted - size) // 2 for size, wanted in zip(shape, window, strict=True))
    padded = tuple(max(size, wanted) for size, wanted in zip(shape, window, strict=True))
    return Grid(shape, window, (before[0], before[1], before[2]), window_grid(padded, window, overlap_frac))


@dataclasses.dataclass(frozen=True)
class Layer:
    """Windows of one Z: where it starts, and where each of them starts along Y and X, sorted."""

    start: int
    windows: tuple[tuple[int, int], ...]


def make_layers(grid: Grid, box: Box, wanted: Bool[np.ndarray, "cz cy cx"] | None) -> list[Layer]:
    """The windows that touch a box and, in it, a cell that is wanted.

    Args:
        grid: of the volume.
        box: voxels of the volume that are swept.
        wanted: whether each cell of `CELL` voxels of the volume has to be computed; None: all.
    """
    touching = []
    for axis, starts in enumerate(grid.axes):
        ends = [(start - grid.before[axis], start - grid.before[axis] + grid.window[axis]) for start in starts]
        cut = [(max(a, box[axis].start), min(b, box[axis].stop)) for a, b in ends]
        touching.append([(start, a, b) for start, (a, b) in zip(starts, cut, strict=True) if a < b])

    def is_wanted(*ends: tuple[int, int, int]) -> bool:
        return wanted is None or bool(wanted[tuple(slice(a // CELL, math.ceil(b / CELL)) for _, a, b in ends)].any())

    layers = []
    for z in touching[0]:
        windows = tuple((y[0], x[0]) for y in touching[1] for x in touching[2] if is_wanted(z, y, x))
        if windows:
            layers.append(Layer(z[0], windows))
    return layers


def layers_of(layers: Sequence[Layer], grid: Grid, start: int, stop: int) -> list[Layer]:
    """Those layers that touch the planes of the volume from `start` to before `stop`."""
    first, last = start + grid.before[0], stop + grid.before[0]
    return [layer for layer in layers if layer.start < last and layer.start + grid.window[0] > first]


def around(grid: Grid, box: Box) -> tuple[slice, slice]:
    """The Y and X, in the padded volume, of all windows that touch a box, wanted or not."""
    spans = []
    for axis in (1, 2):
        first, last = box[axis].start + grid.before[axis], box[axis].stop + grid.before[axis]
        touching = [start for start in grid.axes[axis] if start < last and start + grid.window[axis] > first]
        spans.append(slice(min(touching), max(touching) + grid.window[axis]))
    return spans[0], spans[1]


def read_layers(
    volume: Readable,
    prepare: Callable[[np.ndarray, Box], Float[np.ndarray, "z y x"]],
    *,
    grid: Grid,
    layers: Sequence[Layer],
    box: Box,
) -> Iterator[Float[np.ndarray, "z y x"]]:
    """For each layer, the prepared voxels `around` the box, zero where none of the layer's windows looks.

    All tiles of a box have one shape, so that the device compiles for one. Planes are read once for all layers that
    need them, in whole chunks of the volume.
    """
    spans = [_span(grid, axis, [start for layer in layers for start in _starts(layer, axis)]) for axis in (1, 2)]
    planes, frame = _Planes(volume, *spans), around(grid, box)
    missing = [max(0, side - size) for side, size in zip(grid.window, grid.shape, strict=True)]
    for layer in layers:
        ends = [_span(grid, axis, _starts(layer, axis)) for axis in range(3)]
        raw = planes.read(ends[0].start, ends[0].stop)
        inside = [
            slice(end.start - span.start, end.stop - span.start) for end, span in zip(ends[1:], spans, strict=True)
        ]
        seen = prepare(raw[:, inside[0], inside[1]], (ends[0], ends[1], ends[2]))
        if any(missing):
            widths = [(start, amount - start) for start, amount in zip(grid.before, missing, strict=True)]
            seen = np.pad(seen, widths, mode="reflect")
        corner = [min(_starts(layer, axis)) - span.start for axis, span in zip((1, 2), frame, strict=True)]
        shape = (len(seen), *(span.stop - span.start for span in frame))
        if seen.shape == shape:
            yield seen
        else:
            tile = np.zeros(shape, np.float32)
            tile[:, corner[0] : corner[0] + seen.shape[1], corner[1] : corner[1] + seen.shape[2]] = seen
            yield tile
        # Not kept while the next one is made.
        del seen


def _starts(layer: Layer, axis: int) -> list[int]:
    return [layer.start] if axis == 0 else [window[axis - 1] for window in layer.windows]


def _span(grid: Grid, axis: int, starts: Sequence[int]) -> slice:
    """The voxels of the volume that windows with these starts see."""
    first, last = min(starts) - grid.before[axis], max(starts) - grid.before[axis] + grid.window[axis]
    return slice(max(0, first), min(grid.shape[axis], last))


class _Planes:
    """Planes of a box of a volume, kept from one layer to the next."""

    def __init__(self, volume: Readable, y: slice, x: slice) -> None:
        self._volume, self._y, self._x = volume, y, x
        self._start, self._kept = 0, np.empty((0, y.stop - y.start, x.stop - x.start), volume.dtype)

    def read(self, start: int, stop: int) -> Shaped[np.ndarray, "z y x"]:
        end = self._start + len(self._kept)
        if not self._start <= start <= end:
            self._start, self._kept, end = start, self._kept[:0], start
        kept = self._kept[start - self._start :]
        if stop > end:
            # To the end of a chunk, unless that is far away.
            rows, depth = int(self._volume.chunk[0]), self._volume.shape[0]
            far = min(depth, math.ceil(stop / rows) * rows)
            until = far if far - stop <= stop - start else stop
            new = self._volume.read((slice(end, until), self._y, self._x))
            kept = np.concatenate([kept, new]) if len(kept) else new
        self._start, self._kept = start, kept
        return kept[: stop - start]
