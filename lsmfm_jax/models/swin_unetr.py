"""Swin UNETR: a 3D Swin transformer encoder with a convolutional decoder over its maps."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lsmfm_jax.errors import InputError
from lsmfm_jax.models.backbone import Trunk
from lsmfm_jax.models.norm import KEPT
from lsmfm_jax.models.swin_transformer import MERGING_ORDER, SwinTransformer
from lsmfm_jax.models.unetr_blocks import OutputLayer, ResidualBlock, UpsamplingBlock
from lsmfm_jax.precision import add_bias


class SwinUNETR(nn.Module):
    """Swin UNETR (Hatamizadeh et al. 2022) as MONAI builds it, channel last; dense features for every voxel.

    Parameters, in groups that path rules can tell apart:
        `transformer/patch_embedding`, `transformer/stage_0..3/...`: the transformer backbone;
        `encoder_0..3`: residual blocks on the image and hidden states 0 to 2 (MONAI's encoder1 to encoder4);
        `bottleneck`: residual block on the deepest hidden state (encoder10), half of all parameters;
        `decoder_4..0`: upsampling blocks (decoder5 to decoder1);
        `out`: the closing 1x1x1 convolution.
    There are no batch statistics and no dropout: `train` changes nothing, it is there as in every backbone.

    Attributes:
        out_channels: D, channels of the dense features.
        feature_size: F, channels at full resolution; a multiple of 12. The released models have 36 and 24.
        depths: transformer blocks of each of the four stages.
        num_heads: attention heads of each stage.
        window: attention window along each axis, in tokens.
        merging: "corrected", or "duplicated" for weights trained with MONAI up to 1.4.0 (the published ones).
        dtype: compute dtype; parameters, norm arithmetic and softmax are float32.
        kernels: "plain", or "fused" for the attention in kernels of our own on NVIDIA cards; the same numbers.
    """

    out_channels: int = 512
    feature_size: int = 36
    depths: Sequence[int] = (2, 2, 2, 2)
    num_heads: Sequence[int] = (3, 6, 12, 24)
    window: int = 7
    merging: str = "corrected"
    dtype: DTypeLike = jnp.float32
    kernels: str = "plain"

    def setup(self) -> None:
        """Build the parts; names are those of the parameter tree."""
        if self.merging not in MERGING_ORDER:
            raise InputError(f"merging is one of {sorted(MERGING_ORDER)}, got {self.merging!r}")
        width = self.feature_size
        self.transformer = SwinTransformer(
            width,
            self.depths,
            self.num_heads,
            self.window,
            self.merging,
            dtype=self.dtype,
            kernels=self.kernels,
        )
        residual, upsampling = (nn.remat(block, policy=KEPT) for block in (ResidualBlock, UpsamplingBlock))
        self.encoder = [residual(width * max(1, 2**i // 2), dtype=self.dtype) for i in range(4)]
        self.bottleneck = residual(16 * width, dtype=self.dtype)
        self.decoder = [upsampling(width * max(1, 2**i // 2), dtype=self.dtype) for i in range(5)]
        self.out = OutputLayer(self.out_channels)

    def hidden_states(self, x: Float[Array, "b z y x c"]) -> tuple[Float[Array, "b _ _ _ _"], ...]:
        """The transformer's five maps, normalised over channels; map i has 1/2^(i+1) of the resolution.

        Raises:
            ValueError: a spatial size is not a multiple of 32.
        """
        if any(n % 32 for n in x.shape[1:4]):
            raise InputError(f"SwinUNETR takes volumes whose Z, Y, X are multiples of 32, got {x.shape[1:4]}")
        return self.transformer(x)

    def trunk(self, x: Float[Array, "b z y x c"], *, train: bool) -> Trunk:
        """Features before the closing convolution, with that convolution apart.

        `values` is `B Z Y X F`; `tail` is (kernel `F D`, bias `D`); `stages` are the four encoder maps, at 1,
        1/2, 1/4 and 1/8 of the resolution with F, F, 2F and 4F channels, and the bottleneck's, at 1/32 with
        16F: the deepest one, for classification.
        """
        del train
        hidden = self.hidden_states(x)
        maps = [block(value) for block, value in zip(self.encoder, (x, *hidden[:3]), strict=True)]
        deepest = self.bottleneck(hidden[4])
        y = deepest
        for block, skip in zip(reversed(self.decoder), (hidden[3], *reversed(maps)), strict=True):
            y = block(y, skip)
        return Trunk(y, self.out(self.feature_size), (*maps, deepest))

    def __call__(self, x: Float[Array, "b z y x c"], *, train: bool) -> Float[Array, "b z y x d"]:
        """Dense features, materialised."""
        values, (kernel, bias), _ = self.trunk(x, train=train)
        dense = values @ kernel.astype(self.dtype)
        return add_bias(dense, bias)
