"""Arithmetic that must not run in a 16-bit compute type: statistics of norms, sums over voxels."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def widen(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same values in float32, or in float64 where they already are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def add_bias(y: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
    """Add in float32, so that the bias gradient, a sum over every voxel, accumulates in float32 too."""
    return (widen(y) + bias).astype(y.dtype)
