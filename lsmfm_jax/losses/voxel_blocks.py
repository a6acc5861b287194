"""What the kernels for NVIDIA cards hold of a volume: a block of voxels, and a tile of channels of their features.

Used inside of Pallas kernels only, and imported only where they are wanted: Pallas takes time to import.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array

from lsmfm_jax.losses.linear_tail import SMALLEST_NORM

# Voxels that a program handles together.
VOXELS = 64
# What the backward pass needs of each voxel: one over norm and temperature of student and teacher, the logarithms of
# their sums of exponentials, and how the student's mean logit differs under both distributions.
STATISTICS = 5
# Triton multiplies matrices of 16 and more on each side, and its arrays have powers of two.
SMALLEST_SIDE = 16


@dataclasses.dataclass(frozen=True)
class Layout:
    """How voxels lie in memory, and which of them make a block.

    Attributes:
        channels_first: values are `B F Z Y X` in memory, otherwise `B Z Y X F`.
        edges: of a block along Y and X; their product is `VOXELS`.
    """

    channels_first: bool
    edges: tuple[int, int]


def padded(size: int) -> int:
    """The side of an array in a kernel that holds so many values."""
    return max(SMALLEST_SIDE, pl.next_power_of_2(size))


def tiles(channels: int, most: int) -> tuple[int, int]:
    """Channels of a tile, `most` where there are as many, and the number of tiles."""
    tile = min(most, padded(channels))
    return tile, pl.cdiv(channels, tile)


def blocks(plane: Sequence[int], edges: Sequence[int]) -> int:
    """Blocks of a plane."""
    return math.prod(pl.cdiv(side, edge) for side, edge in zip(plane, edges, strict=True))


def product(left: Array, right: Array) -> Array:
    """Matrix product in the operands' type, added up in float32."""
    exact = lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return plt.dot(left, right, precision=exact)


class Block:
    """The voxels of one block of a plane: where they are, and which of them are masked.

    Values of a plane are `Y X F`, or `F Y X` where channels come first.
    """

    def __init__(self, mask: Any, number: Any, layout: Layout):
        self.layout, edges = layout, layout.edges
        (height, width), across = mask.shape, pl.cdiv(mask.shape[1], edges[1])
        voxel = jnp.arange(VOXELS)
        # Nothing is negative, and Triton has no remainder that rounds down.
        self.y = lax.div(number, across) * edges[0] + lax.div(voxel, edges[1])
        self.x = lax.rem(number, across) * edges[1] + lax.rem(voxel, edges[1])
        self.inside = (self.y < height) & (self.x < width)
        # For all of the block: that a voxel is masked says nothing of its neighbour, and reading would go one by one.
        masked = plt.load(mask.at[self.y, self.x], mask=self.inside, other=0) != 0
        self.weight = masked.astype(jnp.float32)
        self.wanted = jnp.max(self.weight) > 0

    def read(self, values: Any, column: Array) -> Array:
        """Columns of the voxels' values; zeros beyond the plane and the last column."""
        known = self.inside[:, None] & (column < self.width(values))[None, :]
        return plt.load(self._place(values, column), mask=known, other=0.0)

    def write(self, values: Any, column: Array, new: Array) -> None:
        """Columns of the voxels."""
        known = self.inside[:, None] & (column < self.width(values))[None, :]
        plt.store(self._place(values, column), new.astype(values.dtype), mask=known)

    def width(self, values: Any) -> int:
        """Columns of a plane's values."""
        return values.shape[0 if self.layout.channels_first else -1]

    def _place(self, values: Any, column: Array) -> Any:
        y, x, column = self.y[:, None], self.x[:, None], column[None, :]
        return values.at[column, y, x] if self.layout.channels_first else values.at[y, x, column]

    def statistics(self, array: Any) -> list[Array]:
        """Each of them, `VOXELS 1`."""
        rows = [plt.load(array.at[i, self.y, self.x], mask=self.inside, other=0.0) for i in range(STATISTICS)]
        return [row[:, None] for row in rows]

    def write_statistics(self, array: Any, rows: list[Array]) -> None:
        """Each of them, `VOXELS 1`."""
        for i, row in enumerate(rows):
            plt.store(array.at[i, self.y, self.x], row[:, 0], mask=self.inside)


class Network:
    """Dense features of the student or the teacher at the voxels of a block, by tiles of channels, float32."""

    def __init__(self, refs: tuple[Any, ...], block: Block, channels: int, tile: int):
        values, *tail = refs
        self.tail, self.channels = tail, channels
        self.tile_size, self.count = tiles(channels, tile)
        self.block, self.values = block, values
        self.trunk = block.read(values, jnp.arange(padded(block.width(values)))) if tail else None
        self.only = self._tile(0) if self.count == 1 else None

    def columns(self, start: Any) -> Array:
        """Channels of a tile, some perhaps beyond the last."""
        return start + jnp.arange(self.tile_size)

    def kernel(self, start: Any) -> Array:
        """A tile of the tail's kernel, rows padded with zeros."""
        row, column = jnp.arange(padded(self.tail[0].shape[0])), self.columns(start)
        known = (row < self.tail[0].shape[0])[:, None] & (column < self.channels)[None, :]
        return plt.load(self.tail[0].at[row[:, None], column[None, :]], mask=known, other=0.0)

    def _tile(self, start: Any) -> Array:
        column = self.columns(start)
        if not self.tail:
            return self.block.read(self.values, column).astype(jnp.float32)
        bias = plt.load(self.tail[1].at[column], mask=column < self.channels, other=0.0)
        return product(self.trunk, self.kernel(start)) + bias.astype(jnp.float32)[None, :]

    def tile(self, start: Any) -> Array:
        """Dense features of the channels from `start`, `VOXELS TILE`, zeros beyond the last channel."""
        return self._tile(start) if self.only is None else self.only

    def real(self, start: Any, array: Array, other: float) -> Array:
        """An array of a tile with `other` in the columns beyond the last channel."""
        if self.channels % self.tile_size == 0:
            return array
        return jnp.where((self.columns(start) < self.channels)[None, :], array, other)

    def scan(self, body: Callable[[Any, Any], Any], start: Any) -> Any:
        """Carries `start` through all tiles."""
        if self.count == 1:
            return body(0, start)
        return lax.fori_loop(0, self.count, lambda i, carry: body(i * self.tile_size, carry), start)


def row_sums(array: Array) -> Array:
    """Sums over columns, which stay as one."""
    return jnp.sum(array, axis=1, keepdims=True)


def filled(value: float = 0.0) -> Array:
    """One number for each voxel of a block."""
    return jnp.full((VOXELS, 1), value, jnp.float32)


def inverse_norm(square: Array) -> Array:
    """One over the norm whose square is given, 0 where there are no features; as `linear_tail.inverse_norms`."""
    floor = SMALLEST_NORM**2
    return jnp.where(square > floor, lax.rsqrt(jnp.maximum(square, floor)), 0.0)
