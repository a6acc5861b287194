"""Self-attention inside 3D windows, with a relative position bias: the token mixer of Swin transformers."""

import math
from functools import lru_cache
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lsmfm_jax.models.attention_kernel import attend
from lsmfm_jax.models.conv import uniform_fan_in
from lsmfm_jax.precision import add_bias

Triple = tuple[int, int, int]


class WindowPlan(NamedTuple):
    """How a map of one size is cut into windows.

    Attributes:
        window: window size along Z, Y, X, after shrinking to the map.
        shift: voxels by which the map is rolled towards its origin before cutting.
        padding: voxels added at the far end of each axis to reach a multiple of the window.
        counts: windows along each axis.
    """

    window: Triple
    shift: Triple
    padding: Triple
    counts: Triple


@lru_cache
def plan_windows(size: Triple, window: int, *, shifted: bool) -> WindowPlan:
    """Plan the windows of a map; an axis that fits into one window gets one of its own size, not shifted.

    Args:
        size: the map's size along Z, Y, X.
        window: full window size, the same along every axis.
        shifted: whether windows are moved by half a window, rounded down.
    """
    fits = tuple(n <= window for n in size)
    used = tuple(n if fit else window for n, fit in zip(size, fits, strict=True))
    shift = tuple(window // 2 if shifted and not fit else 0 for fit in fits)
    padding = tuple(-n % w for n, w in zip(size, used, strict=True))
    counts = tuple((n + p) // w for n, p, w in zip(size, padding, used, strict=True))
    return WindowPlan(used, shift, padding, counts)


@lru_cache
def shift_regions(plan: WindowPlan) -> Int[np.ndarray, "w n"] | None:
    """Number the regions of a rolled map within which tokens were neighbours; None if nothing was rolled.

    Along each axis the last window holds the map's far end and, rolled round, its beginning: these two must
    not attend to each other. Numbers tell regions of one window apart; windows share them.
    """
    if plan.shift == (0, 0, 0):
        return None
    regions = np.zeros((1, 1, 1), np.int32)
    for axis, (count, length, shift) in enumerate(zip(plan.counts, plan.window, plan.shift, strict=True)):
        line = np.zeros(count * length, np.int32)
        if shift:
            line[-shift:] = 1
        regions = regions * 2 + np.expand_dims(line, tuple(a for a in range(3) if a != axis))
    (nz, ny, nx), (wz, wy, wx) = plan.counts, plan.window
    windows = regions.reshape(nz, wz, ny, wy, nx, wx).transpose(0, 2, 4, 1, 3, 5)
    return windows.reshape(nz * ny * nx, wz * wy * wx)


@lru_cache
def relative_position_index(window: int) -> Int[np.ndarray, "n n"]:
    """Row of the bias table for each pair of tokens of a full cubic window, in raster order.

    Row `((dz + w - 1) * (2w - 1) + dy + w - 1) * (2w - 1) + dx + w - 1` belongs to the offset (dz, dy, dx) of
    the query from the key.
    """
    position = np.stack(np.meshgrid(*[np.arange(window)] * 3, indexing="ij"), -1).reshape(-1, 3)
    offset = position[:, None] - position[None] + window - 1
    side = 2 * window - 1
    return (offset @ np.array([side * side, side, 1])).astype(np.int32)


def partition_windows(x: Float[Array, "b z y x c"], plan: WindowPlan, heads: int) -> Float[Array, "w b h n d"]:
    """Pad, roll and cut a map into windows of tokens in raster order, and its channels into heads."""
    if any(plan.padding):
        x = jnp.pad(x, ((0, 0), *((0, p) for p in plan.padding), (0, 0)))
    if any(plan.shift):
        x = jnp.roll(x, [-s for s in plan.shift], (1, 2, 3))
    (nz, ny, nx), (wz, wy, wx) = plan.counts, plan.window
    b, c = x.shape[0], x.shape[-1]
    x = x.reshape(b, nz, wz, ny, wy, nx, wx, heads, c // heads).transpose(1, 3, 5, 0, 7, 2, 4, 6, 8)
    return x.reshape(nz * ny * nx, b, heads, wz * wy * wx, c // heads)


def merge_windows(x: Float[Array, "w b h n d"], plan: WindowPlan) -> Float[Array, "b z y x c"]:
    """Put windows and heads back into a map: the inverse of `partition_windows`, padding dropped."""
    (nz, ny, nx), (wz, wy, wx) = plan.counts, plan.window
    _, b, heads, _, d = x.shape
    x = x.reshape(nz, ny, nx, b, heads, wz, wy, wx, d).transpose(3, 0, 5, 1, 6, 2, 7, 4, 8)
    x = x.reshape(b, nz * wz, ny * wy, nx * wx, heads * d)
    if any(plan.shift):
        x = jnp.roll(x, plan.shift, (1, 2, 3))
    size = [n * w - p for n, w, p in zip(plan.counts, plan.window, plan.padding, strict=True)]
    return x[:, : size[0], : size[1], : size[2]]


def relative_position_bias(table: Float[Array, "rows heads"], *, window: int, tokens: int) -> Float[Array, "heads n n"]:
    """Spread the bias table over the pairs of the first `tokens` tokens of a full window.

    The table is a Toeplitz kernel along each axis, so the spread is three small matrix products: on a GPU
    their gradient is deterministic, that of a gather is not. A window shrunk to its map takes the corner of the
    *full* window's pairs, not those of its own geometry: so did the networks whose weights we load (MONAI).
    """
    heads, side = table.shape[1], 2 * window - 1
    position = np.arange(window)
    offset = position[:, None] - position[None] + window - 1
    select = jnp.asarray(offset.reshape(-1, 1) == np.arange(side), table.dtype)
    spread = table.T.reshape(heads, side, side, side)
    for _ in range(3):
        # The offsets of the leading axis leave, the pairs (query, key) of that axis come last.
        spread = jnp.tensordot(spread, select, ((1,), (1,)), precision="highest")
    spread = spread.reshape(heads, *(window,) * 6).transpose(0, 1, 3, 5, 2, 4, 6)
    return spread.reshape(heads, window**3, window**3)[:, :tokens, :tokens]


class WindowAttention(nn.Module):
    """Multi-head self-attention within (shifted) windows.

    Parameters: `qkv_kernel` (C, 3C), `qkv_bias` (3C), `relative_position_bias` ((2w-1)^3, heads),
    `out_kernel` (C, C), `out_bias` (C), float32. Linear layers run on real tokens only; a padded token is a
    key and a value equal to the bias, as it is when zeros pass through the linear layer.

    Attributes:
        heads: attention heads; must divide C.
        window: full window size along each axis.
        shifted: whether windows are moved by half a window.
        dtype: compute dtype; scores and softmax are float32.
        kernels: as `attention_kernel.attend` takes it.
    """

    heads: int
    window: int
    shifted: bool
    dtype: DTypeLike = jnp.float32
    kernels: str = "plain"

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"]) -> Float[Array, "b z y x c"]:
        """Mix the tokens of each window."""
        width = x.shape[-1]
        init = uniform_fan_in(width)
        qkv_kernel = self.param("qkv_kernel", init, (width, 3 * width), jnp.float32)
        qkv_bias = self.param("qkv_bias", init, (3 * width,), jnp.float32)
        rows = (2 * self.window - 1) ** 3
        table = self.param(
            "relative_position_bias", nn.initializers.truncated_normal(0.02), (rows, self.heads), jnp.float32
        )
        out_kernel = self.param("out_kernel", init, (width, width), jnp.float32)
        out_bias = self.param("out_bias", init, (width,), jnp.float32)

        plan = plan_windows(x.shape[1:4], self.window, shifted=self.shifted)
        projected = x.astype(self.dtype) @ qkv_kernel.astype(self.dtype)
        parts = [partition_windows(part, plan, self.heads) for part in jnp.split(projected, 3, -1)]
        biases = qkv_bias.reshape(3, self.heads, 1, width // self.heads)
        query, key, value = (add_bias(part, b) for part, b in zip(parts, biases, strict=True))
        query = query * jnp.asarray((width // self.heads) ** -0.5, query.dtype)
        bias = relative_position_bias(table, window=self.window, tokens=math.prod(plan.window))
        regions = shift_regions(plan)
        regions = None if regions is None else jnp.asarray(regions)
        mixed = merge_windows(attend(query, key, value, bias, regions, self.kernels), plan)
        return add_bias(mixed @ out_kernel.astype(self.dtype), out_bias)
