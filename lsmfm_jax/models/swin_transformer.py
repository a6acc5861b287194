"""The hierarchical 3D Swin transformer that encodes a volume at five scales."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lsmfm_jax.models.conv import uniform_fan_in
from lsmfm_jax.models.window_attention import WindowAttention
from lsmfm_jax.precision import add_bias, widen

# Which voxel (z, y, x) of each 2x2x2 block stands at which place of the concatenation. The duplicated order
# is that of MONAI up to 1.4.0: two voxels appear twice and two never.
MERGING_ORDER = {
    "corrected": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    "duplicated": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
}
EPSILON = 1e-5

LayerNorm = partial(nn.LayerNorm, epsilon=EPSILON, use_fast_variance=False)


def normalise_channels(x: Float[Array, "*shape c"]) -> Float[Array, "*shape c"]:
    """Layer norm over channels without learnt scale and shift, in float32."""
    values = widen(x)
    values = values - values.mean(-1, keepdims=True)
    return (values * jax.lax.rsqrt(jnp.square(values).mean(-1, keepdims=True) + EPSILON)).astype(x.dtype)


class Linear(nn.Module):
    """Linear layer over channels with PyTorch's default initialisation and a float32 bias gradient."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*shape c"]) -> Float[Array, "*shape f"]:
        """Multiply and add the bias."""
        init = uniform_fan_in(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", init, (self.features,), jnp.float32)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return add_bias(y, bias)


class PatchEmbedding(nn.Module):
    """Project each block of 2x2x2 voxels to a token: a convolution of stride 2 as one matrix product."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"]) -> Float[Array, "b z2 y2 x2 f"]:
        """Halve each axis."""
        b, z, y, w, c = x.shape
        init = uniform_fan_in(8 * c)
        kernel = self.param("kernel", init, (2, 2, 2, c, self.features), jnp.float32)
        bias = self.param("bias", init, (self.features,), jnp.float32)
        blocks = x.astype(self.dtype).reshape(b, z // 2, 2, y // 2, 2, w // 2, 2, c)
        blocks = blocks.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, z // 2, y // 2, w // 2, 8 * c)
        tokens = blocks @ kernel.astype(self.dtype).reshape(8 * c, self.features)
        return add_bias(tokens, bias)


class PatchMerging(nn.Module):
    """Halve each axis and double the channels: eight neighbours concatenated, normalised, projected.

    Attributes:
        form: "corrected" takes each of the eight voxels once; "duplicated" is what the published checkpoints
            were trained with.
        dtype: compute dtype.
    """

    form: str
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"]) -> Float[Array, "b z2 y2 x2 c2"]:
        """Merge."""
        neighbours = [x[:, i::2, j::2, k::2] for i, j, k in MERGING_ORDER[self.form]]
        merged = LayerNorm(dtype=self.dtype, name="norm")(jnp.concatenate(neighbours, -1))
        width = merged.shape[-1]
        kernel = self.param("kernel", uniform_fan_in(width), (width, width // 4), jnp.float32)
        return merged @ kernel.astype(self.dtype)


class SwinBlock(nn.Module):
    """Pre-norm transformer block: window attention, then a two-layer perceptron four times as wide."""

    heads: int
    window: int
    shifted: bool
    dtype: DTypeLike = jnp.float32
    kernels: str = "plain"

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"]) -> Float[Array, "b z y x c"]:
        """Mix tokens, then channels, each beside a residual path."""
        attention = WindowAttention(
            self.heads, self.window, self.shifted, dtype=self.dtype, kernels=self.kernels, name="attention"
        )
        x = x + attention(LayerNorm(dtype=self.dtype, name="norm1")(x))
        hidden = LayerNorm(dtype=self.dtype, name="norm2")(x)
        hidden = nn.gelu(Linear(4 * x.shape[-1], dtype=self.dtype, name="linear1")(hidden), approximate=False)
        return x + Linear(x.shape[-1], dtype=self.dtype, name="linear2")(hidden)


class SwinStage(nn.Module):
    """Blocks with plain and shifted windows in turn, then patch merging."""

    depth: int
    heads: int
    window: int
    merging: str
    dtype: DTypeLike = jnp.float32
    kernels: str = "plain"

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"]) -> Float[Array, "b z2 y2 x2 c2"]:
        """Run the blocks and halve the map."""
        for i in range(self.depth):
            shifted, name = i % 2 == 1, f"block_{i}"
            x = SwinBlock(self.heads, self.window, shifted, dtype=self.dtype, kernels=self.kernels, name=name)(x)
        return PatchMerging(self.merging, dtype=self.dtype, name="merging")(x)


class SwinTransformer(nn.Module):
    """Swin encoder (Liu et al. 2021) in 3D, as Swin UNETR uses it (Hatamizadeh et al. 2022).

    Parameters: `patch_embedding`, `stage_i/block_j/{norm1, attention, norm2, linear1, linear2}`,
    `stage_i/merging/{norm, kernel}`.

    Attributes:
        feature_size: channels of the first map.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window: window size along each axis.
        merging: which voxels patch merging takes.
        dtype: compute dtype; norms and softmax are float32.
        kernels: of the attention, as `attention_kernel.attend` takes it.
    """

    feature_size: int
    depths: Sequence[int]
    num_heads: Sequence[int]
    window: int
    merging: str
    dtype: DTypeLike = jnp.float32
    kernels: str = "plain"

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"]) -> tuple[Float[Array, "b _ _ _ _"], ...]:
        """Encode; returns the embedding and each stage's output, each normalised over channels.

        Map i is `B Z/2^(i+1) Y/2^(i+1) X/2^(i+1) 2^i * feature_size`.
        """
        x = PatchEmbedding(self.feature_size, dtype=self.dtype, name="patch_embedding")(x)
        maps = [normalise_channels(x)]
        for i, (depth, heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            settings = {"dtype": self.dtype, "kernels": self.kernels}
            x = SwinStage(depth, heads, self.window, self.merging, name=f"stage_{i}", **settings)(x)
            maps.append(normalise_channels(x))
        return tuple(maps)
