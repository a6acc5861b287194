"""Normalisation and activation layers with PyTorch's arithmetic, in float32 also where the compute dtype is shorter."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lsmfm_jax.precision import widen

EPSILON = 1e-5
VOXEL_AXES = (1, 2, 3)
CONVOLVED = "convolved"
STATISTICS = "statistics"
# Of a block only these are kept for the backward pass. Normalised and rectified maps are computed anew from them,
# element by element: at full resolution each is as large as all maps of the encoder together.
KEPT = jax.checkpoint_policies.save_only_these_names(CONVOLVED, STATISTICS)


class BatchNorm(nn.Module):
    """Batch normalisation over batch and voxels; the statistics of a sharded batch are those of the whole.

    Parameters: `scale` and `bias` (C). Batch statistics: `mean` and `var` (C), where `var` is the unbiased
    variance, as PyTorch keeps it. All float32.

    Attributes:
        momentum: share of the old running statistics that is kept; PyTorch's momentum is one minus this.
        dtype: output dtype.
    """

    momentum: float = 0.9
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"], *, train: bool) -> Float[Array, "b z y x c"]:
        """Normalise by the batch's statistics and update the running ones (`train`), or by the latter."""
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x = widen(x)
        if train:
            # The variance about the mean, not E[x^2] - E[x]^2: that cancels badly where the mean is large.
            mean = jnp.mean(x, (0, *VOXEL_AXES))
            var = jnp.mean(jnp.square(x - mean), (0, *VOXEL_AXES))
            mean, var = checkpoint_name((mean, var), STATISTICS)
            if not self.is_initializing():
                count = x.size // channels
                unbiased = var * (count / max(count - 1, 1))
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        return ((x - mean) * (scale * lax.rsqrt(var + EPSILON)) + bias).astype(self.dtype)


class InstanceNorm(nn.Module):
    """Instance normalisation over the voxels of each sample and channel, without parameters.

    Attributes:
        dtype: output dtype.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"], *, train: bool) -> Float[Array, "b z y x c"]:
        """Normalise; the same in training and evaluation."""
        del train
        x = widen(x)
        mean = checkpoint_name(jnp.mean(x, VOXEL_AXES, keepdims=True), STATISTICS)
        centred = x - mean
        var = checkpoint_name(jnp.mean(jnp.square(centred), VOXEL_AXES, keepdims=True), STATISTICS)
        return (centred * lax.rsqrt(var + EPSILON)).astype(self.dtype)


class PReLU(nn.Module):
    """Rectifier with one learnt slope below zero for all channels.

    Parameters: `slope`, a float32 scalar that starts at 0.25.

    Attributes:
        dtype: output dtype.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Rectify."""
        slope = self.param("slope", nn.initializers.constant(0.25), (), jnp.float32)
        x = widen(x)
        return jnp.where(x > 0, x, slope * x).astype(self.dtype)
