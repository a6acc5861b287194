"""Convolutional blocks of Swin UNETR: residual block, upsampling block, closing linear map."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lsmfm_jax.models.conv import Conv, uniform_fan_in
from lsmfm_jax.models.norm import CONVOLVED, STATISTICS
from lsmfm_jax.precision import widen

EPSILON = 1e-5
SLOPE = 0.01


def instance_norm(x: Float[Array, "b z y x c"]) -> Float[Array, "b z y x c"]:
    """Normalise each sample's channels over space to mean 0 and variance 1, in float32."""
    values = widen(x)
    values = values - checkpoint_name(values.mean((1, 2, 3), keepdims=True), STATISTICS)
    variance = checkpoint_name(jnp.square(values).mean((1, 2, 3), keepdims=True), STATISTICS)
    return (values * jax.lax.rsqrt(variance + EPSILON)).astype(x.dtype)


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with instance norms and leaky ReLUs, beside a skip path.

    Parameters: `conv1`, `conv2` and, where the width changes, the skip path's 1x1x1 `conv3`; kernels only.

    Attributes:
        features: output channels.
        dtype: compute dtype; norms are float32.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"]) -> Float[Array, "b z y x f"]:
        """Convolve twice and add the input."""
        x = x.astype(self.dtype)

        def conv(size: int, name: str, value: Array) -> Array:
            layer = Conv(self.features, size, use_bias=False, dtype=self.dtype, name=name)
            return checkpoint_name(layer(value), CONVOLVED)

        y = nn.leaky_relu(instance_norm(conv(3, "conv1", x)), SLOPE)
        y = instance_norm(conv(3, "conv2", y))
        if x.shape[-1] != self.features:
            x = instance_norm(conv(1, "conv3", x))
        return nn.leaky_relu(y + x, SLOPE)


class UpsamplingBlock(nn.Module):
    """Double each axis by a transposed convolution, join the skip map, run a residual block.

    Parameters: `up/kernel` (2, 2, 2, Cin, F), `block/{conv1, conv2, conv3}/kernel`.

    Attributes:
        features: output channels, and those of the skip map.
        dtype: compute dtype.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b z y x c"], skip: Float[Array, "b z2 y2 x2 f"]
    ) -> Float[Array, "b z2 y2 x2 f"]:
        """Upsample `x` to the skip map's size and fuse the two."""
        up = Upsampling(self.features, dtype=self.dtype, name="up")(x)
        joined = jnp.concatenate([up, skip.astype(self.dtype)], -1)
        return ResidualBlock(self.features, dtype=self.dtype, name="block")(joined)


class Upsampling(nn.Module):
    """Transposed convolution of kernel and stride 2: windows do not overlap, so it is one matrix product."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"]) -> Float[Array, "b z2 y2 x2 f"]:
        """Double each axis."""
        c, f = x.shape[-1], self.features
        b, z, y, w = x.shape[:-1]
        # PyTorch counts the fan-in of a transposed convolution on the output side; kept, to start alike.
        kernel = self.param("kernel", uniform_fan_in(8 * f), (2, 2, 2, c, f), jnp.float32)
        matrix = kernel.astype(self.dtype).transpose(3, 0, 1, 2, 4).reshape(c, 8 * f)
        blocks = (x.astype(self.dtype) @ matrix).reshape(b, z, y, w, 2, 2, 2, f)
        return blocks.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, 2 * z, 2 * y, 2 * w, f)


class OutputLayer(nn.Module):
    """Parameters of a closing 1x1x1 convolution, which callers contract into what follows."""

    features: int

    @nn.compact
    def __call__(self, width: int) -> tuple[Float[Array, "f d"], Float[Array, " d"]]:
        """The kernel for `width` input channels, and the bias, float32."""
        init = uniform_fan_in(width)
        kernel = self.param("kernel", init, (width, self.features), jnp.float32)
        return kernel, self.param("bias", init, (self.features,), jnp.float32)
