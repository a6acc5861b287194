"""A function of windows applied to a part of a volume, layer of windows by layer, as `blend_windows` does to all.

Windows stand on the grid of the whole volume, whatever part is computed, so the result does not depend on how the
volume is divided. A part is swept along Z: planes that no later window touches are given away at once, so the
memory is that of a few layers however long the sweep is.

Windows and their layers are counted in voxels of the padded volume (see `pad_to_window`), boxes in those of the
volume itself; `Grid.before` lies between the two.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from lsmfm_jax.predict.statistics import CELL, Box, Readable
from lsmfm_jax.predict.windows import Size, WindowFunction, window_grid

# (first plane, plane after the last, their values or None where all are zero)
Emit = Callable[[int, int, np.ndarray | None], None]


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


def read_layers(
    volume: Readable,
    prepare: Callable[[np.ndarray, Box], Float[np.ndarray, "z y x"]],
    *,
    grid: Grid,
    layers: Sequence[Layer],
) -> Iterator[tuple[Float[np.ndarray, "z y x"], tuple[int, int]]]:
    """For each layer, the prepared voxels of its windows, and the Y and X at which they begin.

    Planes are read once for all layers that need them, in whole chunks of the volume.
    """
    spans = [_span(grid, axis, [start for layer in layers for start in _starts(layer, axis)]) for axis in (1, 2)]
    planes = _Planes(volume, *spans)
    for layer in layers:
        ends = [_span(grid, axis, _starts(layer, axis)) for axis in range(3)]
        raw = planes.read(ends[0].start, ends[0].stop)
        inside = [
            slice(end.start - span.start, end.stop - span.start) for end, span in zip(ends[1:], spans, strict=True)
        ]
        tile = prepare(raw[:, inside[0], inside[1]], (ends[0], ends[1], ends[2]))
        missing = [max(0, side - size) for side, size in zip(grid.window, grid.shape, strict=True)]
        if any(missing):
            widths = [(start, amount - start) for start, amount in zip(grid.before, missing, strict=True)]
            tile = np.pad(tile, widths, mode="reflect")
        yield tile, (min(_starts(layer, 1)), min(_starts(layer, 2)))


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


@jax.jit
def _weighted(
    maps: Float[Array, "b z y x"], z: Float[Array, "b z"], y: Float[Array, "b y"], x: Float[Array, "b x"]
) -> Float[Array, "b z y x"]:
    return maps.astype(jnp.float32) * (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :])


def sweep(
    network: WindowFunction,
    tiles: Iterator[tuple[np.ndarray, tuple[int, int]]],
    *,
    grid: Grid,
    layers: Sequence[Layer],
    box: Box,
    batch_size: int,
    emit: Emit,
) -> None:
    """Blends the windows of a box and gives its planes away, in order and each once.

    Args:
        network: prepared windows (B, Z, Y, X) to maps of the same shape.
        tiles: of `read_layers`, for the same layers.
        grid: of the volume.
        layers: all that touch the box and are wanted.
        box: of the volume.
        batch_size: windows on the device at a time; the next batch is computed while one is added up.
        emit: is given planes of the box, in voxels of the volume; the array is its own.
    """
    shift = grid.before[0]
    planes = [slice(one.start + offset, one.stop + offset) for one, offset in zip(box, grid.before, strict=True)]
    blended = np.zeros((grid.window[0], planes[1].stop - planes[1].start, planes[2].stop - planes[2].start), np.float32)
    given = planes[0].start

    def give(stop: int, values: np.ndarray | None) -> int:
        stop = min(max(stop, given), planes[0].stop)
        if stop > given:
            emit(given - shift, stop - shift, values)
        return stop

    for number, (layer, (tile, corner)) in enumerate(zip(layers, tiles, strict=True)):
        given = give(layer.start, None)
        for windows, maps in _maps(network, tile, corner, grid=grid, layer=layer, batch_size=batch_size):
            for (y, x), one in zip(windows, maps, strict=True):
                to_y, from_y = _overlap(y, grid.window[1], planes[1])
                to_x, from_x = _overlap(x, grid.window[2], planes[2])
                blended[:, to_y, to_x] += one[:, from_y, from_x]
        del tile
        last = number + 1 == len(layers)
        done = layer.start + grid.window[0] if last else min(layers[number + 1].start, layer.start + grid.window[0])
        first, stop = given - layer.start, min(done, planes[0].stop) - layer.start
        if stop > first >= 0:
            given = give(done, blended[first:stop].copy())
        moved = done - layer.start
        blended[: len(blended) - moved] = blended[moved:]
        blended[len(blended) - moved :] = 0.0
    give(planes[0].stop, None)


def _overlap(start: int, window: int, inside: slice) -> tuple[slice, slice]:
    """What a window shares with a part of an axis, counted from the part's start and from its own."""
    first, last = max(start, inside.start), min(start + window, inside.stop)
    return slice(first - inside.start, last - inside.start), slice(first - start, last - start)


def _maps(
    network: WindowFunction, tile: np.ndarray, corner: tuple[int, int], *, grid: Grid, layer: Layer, batch_size: int
) -> Iterator[tuple[Sequence[tuple[int, int]], np.ndarray]]:
    """Weighted maps of a layer's windows; the device works on one batch while the one before is used."""
    _, height, width = grid.window
    z_axis, y_axis, x_axis = grid.axes
    waiting = None
    for first in range(0, len(layer.windows), batch_size):
        these = layer.windows[first : first + batch_size]
        # The last batch is filled up, so that it is no new shape to compile.
        filled = [*these, *[these[-1]] * (batch_size - len(these))]
        windows = np.stack(
            [tile[:, y - corner[0] : y - corner[0] + height, x - corner[1] : x - corner[1] + width] for y, x in filled]
        )
        shares = ([z_axis[layer.start]] * len(filled), [y_axis[y] for y, _ in filled], [x_axis[x] for _, x in filled])
        maps = _weighted(network(windows), *(np.array(along, np.float32) for along in shares))
        if waiting is not None:
            yield waiting[0], np.asarray(waiting[1])[: len(waiting[0])]
        waiting = (these, maps)
    yield waiting[0], np.asarray(waiting[1])[: len(waiting[0])]
