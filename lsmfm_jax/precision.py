"""Arithmetic that must not run in a 16-bit compute type: statistics of norms, sums over voxels.

It runs in float32. Where a caller computes in float64 (a check of gradients does), it runs in float64 too.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped


def wide_type(*arrays: Shaped[Array, "..."]) -> np.dtype:
    """Type for sums over these arrays to accumulate in: float32, or float64 where one of them is float64."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def widen(x: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """The same values in float32, or in float64 where they already are."""
    return x.astype(wide_type(x))


def add_bias(y: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
    """Add in float32, so that the bias gradient, a sum over every voxel, accumulates in float32 too."""
    return (widen(y) + bias).astype(y.dtype)
