"""Windows cut out, computed and blended on the device, layer by layer; see `blocks` for what windows there are.

A layer's voxels go to the device once, though windows overlap, and only finished planes come back: with a quarter of
overlap along each axis, windows have 2.4 times the voxels of what they cover.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lsmfm_jax.predict.blocks import Grid, Layer, around
from lsmfm_jax.predict.statistics import Box
from lsmfm_jax.predict.windows import WindowFunction

# (first plane, plane after the last, their values or None where all are zero)
Emit = Callable[[int, int, np.ndarray | None], None]


def sweep(
    network: WindowFunction,
    tiles: Iterator[Float[np.ndarray, "z y x"]],
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
        tiles: of `read_layers`, for the same layers and box.
        grid: of the volume.
        layers: all that touch the box and are wanted.
        box: of the volume.
        batch_size: windows that the network takes at a time.
        emit: is given planes of the box, in voxels of the volume; the array is its own.
    """
    shift = grid.before[0]
    planes = slice(box[0].start + shift, box[0].stop + shift)
    frame = around(grid, box)
    inside = tuple(
        slice(one.start + before - span.start, one.stop + before - span.start)
        for one, before, span in zip(box[1:], grid.before[1:], frame, strict=True)
    )
    blended = jnp.zeros((grid.window[0], *(span.stop - span.start for span in frame)), jnp.float32)
    given = planes.start

    def give(stop: int, values: np.ndarray | None) -> int:
        stop = min(max(stop, given), planes.stop)
        if stop > given:
            emit(given - shift, stop - shift, values)
        return stop

    for number, (layer, tile) in enumerate(zip(layers, tiles, strict=True)):
        given = give(layer.start, None)
        corner = (frame[0].start, frame[1].start)
        blended = _add_layer(network, blended, tile, corner, grid=grid, layer=layer, batch_size=batch_size)
        del tile
        last = number + 1 == len(layers)
        done = layer.start + grid.window[0] if last else min(layers[number + 1].start, layer.start + grid.window[0])
        first, stop = given - layer.start, min(done, planes.stop) - layer.start
        if stop > first >= 0:
            # A copy: on CPUs the array of the host is the device's own, which is used again.
            given = give(done, np.asarray(blended)[(slice(first, stop), *inside)].copy())
        if not last:
            blended = _moved(blended, done - layer.start)
    give(planes.stop, None)


def _add_layer(
    network: WindowFunction,
    blended: Float[Array, "z y x"],
    tile: Float[np.ndarray, "z y x"],
    corner: tuple[int, int],
    *,
    grid: Grid,
    layer: Layer,
    batch_size: int,
) -> Float[Array, "z y x"]:
    """Adds the weighted maps of a layer's windows; `corner` is the Y and X at which tile and sum begin."""
    on_device, before = jnp.asarray(tile), None
    z_axis, y_axis, x_axis = grid.axes
    z = np.asarray(z_axis[layer.start], np.float32)
    for first in range(0, len(layer.windows), batch_size):
        these = layer.windows[first : first + batch_size]
        # The last batch is filled up, so that it is no new shape to compile; what is filled in weighs nothing.
        filled = [*these, *[these[-1]] * (batch_size - len(these))]
        corners = np.array([(y - corner[0], x - corner[1]) for y, x in filled], np.int32)
        y = np.array([y_axis[y] for y, _ in filled], np.float32)
        x = np.array([x_axis[x] for _, x in filled], np.float32)
        y[len(these) :] = 0.0
        maps = network(_cut(on_device, corners, grid.window))
        blended = _blend(blended, maps, corners, z, y, x)
        # The host runs ahead by one batch, and not by a layer, whose windows would not fit into memory.
        if before is not None:
            jax.block_until_ready(before)
        before = maps
    return blended


@functools.partial(jax.jit, static_argnames="window")
def _cut(
    tile: Float[Array, "z y x"], corners: Int[Array, "b 2"], window: tuple[int, int, int]
) -> Float[Array, "b wz wy wx"]:
    return jax.vmap(lambda corner: jax.lax.dynamic_slice(tile, (0, corner[0], corner[1]), window))(corners)


@functools.partial(jax.jit, donate_argnames="blended")
def _blend(
    blended: Float[Array, "z y x"],
    maps: Float[Array, "b wz wy wx"],
    corners: Int[Array, "b 2"],
    z: Float[Array, " wz"],
    y: Float[Array, "b wy"],
    x: Float[Array, "b wx"],
) -> Float[Array, "z y x"]:
    def add(index: Int[Array, ""], blended: Float[Array, "z y x"]) -> Float[Array, "z y x"]:
        corner = (0, corners[index, 0], corners[index, 1])
        weights = z[:, None, None] * y[index][:, None] * x[index]
        weighted = maps[index].astype(jnp.float32) * weights
        here = jax.lax.dynamic_slice(blended, corner, weighted.shape)
        return jax.lax.dynamic_update_slice(blended, here + weighted, corner)

    return jax.lax.fori_loop(0, len(corners), add, blended)


@jax.jit
def _moved(blended: Float[Array, "z y x"], planes: Int[Array, ""]) -> Float[Array, "z y x"]:
    """The later planes at the beginning, and zeros after them."""
    place = jnp.arange(len(blended)) + planes
    kept = jnp.take(blended, jnp.minimum(place, len(blended) - 1), axis=0)
    return jnp.where((place < len(blended))[:, None, None], kept, 0.0)
