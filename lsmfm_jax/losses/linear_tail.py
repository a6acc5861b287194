"""Arithmetic on dense features that exist only as trunk values and a closing linear layer (the tail).

Dense features are `values @ kernel + bias`, or `values` itself where the tail is None. Nothing here makes
them at full size: norms come from the kernel's Gram matrix, means from the mean of the values, and what needs
every channel of every voxel (a softmax) runs over slabs of voxels.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lsmfm_jax.precision import wide_type, widen

Tail = tuple[Float[Array, "f d"], Float[Array, " d"]]

# The floor that torch.nn.functional.normalize puts under a norm.
SMALLEST_NORM = 1e-12
EXACT = lax.Precision.HIGHEST


def dense_features(values: Float[Array, "*n f"], tail: Tail | None) -> Float[Array, "*n d"]:
    """Dense features, float32, all channels: only for slabs small enough to hold them.

    Products run in the values' own dtype (bfloat16 on the matrix units) and accumulate in float32.
    """
    if tail is None:
        return widen(values)
    kernel, bias = tail
    product = jnp.matmul(values, kernel.astype(values.dtype), precision=EXACT, preferred_element_type=wide_type(values))
    return product + widen(bias)


def inverse_norms(values: Float[Array, "*n f"], tail: Tail | None) -> Float[Array, "*n"]:
    """One over the L2 norm of each voxel's dense features, without making them.

    With the kernel K and bias b, |vK + b|² = v (K Kᵀ) vᵀ + 2 v·(K b) + b·b: F² products a voxel, not F D.
    Where the norm is below `SMALLEST_NORM` the result is 0, so that a voxel without features has normalised
    features and gradients of zero; torch divides by the floor there, which multiplies gradients by 1e12.
    """
    wide = widen(values)
    if tail is None:
        square = jnp.sum(wide * wide, axis=-1)
    else:
        # Rounded as the features themselves are, so that normalised features have norm one in bfloat16 too.
        kernel = widen(tail[0].astype(values.dtype))
        bias = widen(tail[1])
        gram = jnp.matmul(kernel, kernel.T, precision=EXACT)
        cross = jnp.matmul(kernel, bias, precision=EXACT)
        linear = jnp.matmul(wide, gram, precision=EXACT) + 2.0 * cross
        square = jnp.sum(wide * linear, axis=-1) + jnp.sum(bias * bias)
    floor = SMALLEST_NORM**2
    return jnp.where(square > floor, lax.rsqrt(jnp.maximum(square, floor)), 0.0)


def mean_normalised_features(values: Float[Array, "b z y x f"], tail: Tail | None) -> Float[Array, "b d"]:
    """Mean over all voxels of the L2-normalised dense features, float32: a volume's image vector.

    With n a voxel's norm: mean((vK + b) / n) = mean(v / n) K + mean(1 / n) b.
    """
    inverse = inverse_norms(values, tail)
    voxels = inverse[0].size
    mean = jnp.einsum("bzyxf,bzyx->bf", widen(values), inverse, precision=EXACT) / voxels
    if tail is None:
        return mean
    kernel, bias = widen(tail[0].astype(values.dtype)), widen(tail[1])
    mean_inverse = inverse.mean(axis=(1, 2, 3))
    return jnp.matmul(mean, kernel, precision=EXACT) + mean_inverse[:, None] * bias


def rows_per_slab(shape: tuple[int, int, int], slab_voxels: int) -> int:
    """Y rows of a slab: the largest divisor of Y with at most `slab_voxels` voxels (at least one row).

    Slabs run along Y and keep B and Z whole, so a mesh may shard either without a gather.
    """
    depth, height, width = shape
    fitting = (rows for rows in range(1, height + 1) if height % rows == 0 and depth * rows * width <= slab_voxels)
    return max(fitting, default=1)


def split_rows(array: Array, rows: int) -> Array:
    """Reshape `B Z Y X ...` to `Y/rows B Z rows X ...`, the slabs leading."""
    batch, depth, height = array.shape[:3]
    slabs = array.reshape(batch, depth, height // rows, rows, *array.shape[3:])
    return jnp.moveaxis(slabs, 2, 0)


def normalised_log_softmax(values: Float[Array, "*n f"], tail: Tail | None, temperature: float) -> Float[Array, "*n d"]:
    """Log of softmax over channels of L2-normalised dense features divided by `temperature`, float32."""
    scale = inverse_norms(values, tail) / temperature
    return jax.nn.log_softmax(dense_features(values, tail) * scale[..., None], axis=-1)
