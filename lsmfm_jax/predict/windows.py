"""A function of one window applied to volumes of any size, and the average over flips."""

import itertools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

Size = tuple[int, int, int]
# (B, Z, Y, X) raw intensities, of windows, to a (B, Z, Y, X) map or (B, K) class probabilities.
WindowFunction = Callable[[np.ndarray], Array | np.ndarray]

# Width of the Gaussian that weights a window's voxels, as a share of the window: its corners count e^-24 times
# its middle, so that a voxel near a window's border is decided by the window that sees around it.
SIGMA_FRAC = 1 / 8


def window_starts(size: int, window: int, overlap_frac: float) -> list[int]:
    """Where windows begin along an axis: evenly spaced, the first at 0, the last at the end.

    Args:
        size: voxels of the axis, at least `window`.
        window: voxels of a window.
        overlap_frac: least share of a window that the next one covers again, from 0 to below 1.
    """
    stride = max(1, int(window * (1 - overlap_frac)))
    count = 1 + math.ceil((size - window) / stride)
    return [round(start) for start in np.linspace(0, size - window, count)]


def axis_weights(window: int) -> Float[np.ndarray, " w"]:
    """Weight of each place of a window along one axis: a Gaussian about its middle; a voxel's is the product."""
    offset = np.arange(window) - (window - 1) / 2
    return np.exp(-0.5 * (offset / (SIGMA_FRAC * window)) ** 2)


def pad_to_window(volume: Shaped[np.ndarray, "z y x"], window: Size) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Continues a volume by reflection to at least the window, and tells where the volume lies in the result."""
    missing = [max(0, wanted - size) for size, wanted in zip(volume.shape, window, strict=True)]
    before = [amount // 2 for amount in missing]
    inside = tuple(slice(start, start + size) for start, size in zip(before, volume.shape, strict=True))
    if not any(missing):
        return volume, inside
    widths = [(start, amount - start) for start, amount in zip(before, missing, strict=True)]
    return np.pad(volume, widths, mode="reflect"), inside


def blend_windows(
    apply: WindowFunction,
    volume: Shaped[np.ndarray, "z y x"],
    *,
    window: Size,
    overlap_frac: float,
    batch_size: int,
) -> Float[np.ndarray, "z y x"]:
    """Apply a function from window to map everywhere, and blend what overlaps.

    A volume of the window's size gets exactly what the function gives. Only one batch of windows is on the
    device at a time; the last one of a volume is filled up, so that it is no new shape to compile.

    Args:
        apply: (B, Z, Y, X) windows to maps of the same shape.
        volume: of any size.
        window: ZYX, what `apply` takes.
        overlap_frac: least share of a window that its neighbour covers again.
        batch_size: windows a call.
    """
    padded, inside = pad_to_window(volume, window)
    axes = window_grid(padded.shape, window, overlap_frac)
    blended = np.zeros(padded.shape, np.float32)
    starts = [list(axis) for axis in axes]
    for corners, maps in _batches(apply, padded, starts, window=window, batch_size=batch_size):
        for corner, one in zip(corners, maps, strict=True):
            z, y, x = (axis[start] for axis, start in zip(axes, corner, strict=True))
            factor = z[:, None, None] * y[:, None] * x
            blended[_box(corner, window)] += one * factor.astype(np.float32)
    return blended[inside]


def window_grid(
    shape: tuple[int, ...], window: Size, overlap_frac: float
) -> tuple[dict[int, Float[np.ndarray, " w"]], ...]:
    """Where windows begin along each axis, and the share that a window has in each of its voxels there.

    The share of a window in a voxel is the product of those along the axes; over all windows they add up to 1.

    Args:
        shape: of the volume, no axis shorter than the window.
        window: ZYX voxels.
        overlap_frac: least share of a window that the next one covers again.
    """
    starts = [window_starts(*sizes, overlap_frac) for sizes in zip(shape, window, strict=True)]
    weights = [axis_weights(size) for size in window]
    if math.prod(map(len, starts)) == 1:
        weights = [np.ones(size) for size in window]
    # Starts form a grid and weights are products, so their sum over windows is a product of sums along axes.
    totals = [_summed(*one, size=size) for *one, size in zip(starts, weights, shape, strict=True)]
    return tuple(
        {start: weight / total[start : start + len(weight)] for start in along}
        for along, weight, total in zip(starts, weights, totals, strict=True)
    )


def average_windows(
    apply: WindowFunction,
    volume: Shaped[np.ndarray, "z y x"],
    *,
    window: Size,
    overlap_frac: float,
    batch_size: int,
) -> Float[np.ndarray, " k"]:
    """Mean over all windows of a function from window to class probabilities; arguments as `blend_windows`."""
    padded, _ = pad_to_window(volume, window)
    starts = [window_starts(*sizes, overlap_frac) for sizes in zip(padded.shape, window, strict=True)]
    batches = _batches(apply, padded, starts, window=window, batch_size=batch_size)
    return np.mean(np.concatenate([values for _, values in batches]), axis=0)


def flip_averaged(
    apply: Callable[[Float[Array, "b z y x 1"]], Float[Array, "b *out"]],
) -> Callable[[Float[Array, "b z y x 1"]], Float[Array, "b *out"]]:
    """The mean of a function over the eight flips of its input; maps are flipped back first."""

    def averaged(x: Float[Array, "b z y x 1"]) -> Float[Array, "b *out"]:
        # One after the other, so that the network is compiled once and not eight times.
        outputs = jax.lax.map(lambda flags: _unflipped(apply(_flipped(x, flags)), flags), flags)
        return jnp.mean(outputs, axis=0)

    flags = jnp.array(list(itertools.product((False, True), repeat=3)))
    return averaged


def _unflipped(out: Array, flags: Array) -> Array:
    return _flipped(out, flags) if out.ndim == 5 else out


def _flipped(x: Array, flags: Array) -> Array:
    for axis in range(3):
        x = jnp.where(flags[axis], jnp.flip(x, axis + 1), x)
    return x


def _summed(starts: list[int], weights: np.ndarray, *, size: int) -> np.ndarray:
    total = np.zeros(size)
    for start in starts:
        total[start : start + len(weights)] += weights
    return total


def _box(corner: tuple[int, ...], window: Size) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(corner, window, strict=True))


def _batches(
    apply: WindowFunction, padded: np.ndarray, starts: list[list[int]], *, window: Size, batch_size: int
) -> Iterator[tuple[list[tuple[int, ...]], np.ndarray]]:
    corners = list(itertools.product(*starts))
    batch_size = min(batch_size, len(corners))
    for first in range(0, len(corners), batch_size):
        these = corners[first : first + batch_size]
        filled = these + [these[-1]] * (batch_size - len(these))
        windows = np.stack([padded[_box(corner, window)] for corner in filled])
        yield these, np.asarray(apply(windows), np.float32)[: len(these)]
