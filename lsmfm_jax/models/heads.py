"""Heads of pretraining: the light decoder, the projections to the shared space, and the logit scale."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from lsmfm_jax.errors import InputError
from lsmfm_jax.models.conv import Conv, conv3d, uniform_fan_in
from lsmfm_jax.precision import add_bias, widen

Tail = tuple[Float[Array, "f d"], Float[Array, " d"]]

LOGIT_SCALE_RANGE = (1e-3, 100.0)
SMALLEST_NORM = 1e-12


class ConvAfterTail(nn.Module):
    """A 3x3x3 convolution of the dense features `values @ kernel + bias`, which are never made.

    Its parameters are those of the plain convolution, `kernel` (3, 3, 3, D, features) and `bias`. The tail is
    contracted into the kernel; the tail's bias rides on an appended channel of ones, so that zero padding
    cuts it off at the border just as it would cut the dense features.

    Attributes:
        features: output channels.
        dtype: compute and output dtype.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, values: Float[Array, "b z y x f"], tail: Tail | None = None) -> Float[Array, "b z y x c"]:
        """Convolve the dense features of a trunk."""
        width = values.shape[-1] if tail is None else tail[0].shape[-1]
        init = uniform_fan_in(27 * width)
        kernel = self.param("kernel", init, (3, 3, 3, width, self.features), jnp.float32)
        bias = self.param("bias", init, (self.features,), jnp.float32)
        values = values.astype(self.dtype)
        if tail is not None:
            rows = widen(jnp.concatenate([tail[0], tail[1][None]]))
            kernel = jnp.einsum("fd,zyxdc->zyxfc", rows, kernel, precision=lax.Precision.HIGHEST)
            ones = jnp.ones((*values.shape[:-1], 1), self.dtype)
            values = jnp.concatenate([values, ones], axis=-1)
        return add_bias(conv3d(values, kernel.astype(self.dtype), padding=1), bias)


class LightDecoder(nn.Module):
    """Three convolutions from dense features back to voxels: 3x3x3 to 64, 3x3x3 to 32, 1x1x1 to 1.

    Source: paper, "Pretraining Objective", term (2).

    Attributes:
        dtype: compute dtype; the prediction is float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, values: Float[Array, "b z y x f"], tail: Tail | None = None) -> Float[Array, "b z y x 1"]:
        """Predict intensities from a trunk's values and tail (None: the values are the dense features)."""
        hidden = nn.relu(ConvAfterTail(64, self.dtype, name="conv_0")(values, tail))
        hidden = nn.relu(Conv(32, 3, dtype=self.dtype, name="conv_1")(hidden))
        return widen(Conv(1, 1, dtype=self.dtype, name="conv_2")(hidden))


class ProjectionHead(nn.Module):
    """Linear, ReLU, Linear, LayerNorm at one width, then L2 normalisation; float32 throughout.

    Attributes:
        width: of both layers and of the embedding.
    """

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "b f"]) -> Float[Array, "b d"]:
        """Embed pooled features on the unit sphere."""
        x = widen(x)
        for index in range(2):
            init = uniform_fan_in(x.shape[-1])
            x = nn.Dense(
                self.width,
                kernel_init=init,
                bias_init=init,
                precision=lax.Precision.HIGHEST,
                name=f"dense_{index}",
            )(x)
            if index == 0:
                x = nn.relu(x)
        x = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(x)
        square, floor = jnp.sum(x * x, axis=-1, keepdims=True), SMALLEST_NORM**2
        # A zero vector stays zero, with a gradient of zero rather than one of NaN or of 1e12.
        return x * jnp.where(square > floor, lax.rsqrt(jnp.maximum(square, floor)), 0.0)


def initial_logit_scale(temperature: float) -> Float[Array, ""]:
    """Starting value of the learnt parameter: log(1 / temperature).

    Raises:
        ValueError: `temperature` is not positive.
    """
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}, must be above 0")
    return jnp.asarray(-math.log(temperature), jnp.float32)


def logit_scale(parameter: Float[Array, ""]) -> Float[Array, ""]:
    """Factor on cosine similarities: exp(parameter), kept within `LOGIT_SCALE_RANGE`."""
    return jnp.clip(jnp.exp(widen(parameter)), *LOGIT_SCALE_RANGE)
