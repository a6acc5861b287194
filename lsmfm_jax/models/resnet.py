"""3D ResNet-18, equal to MONAI's, the baseline of the classification task."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lsmfm_jax.models.backbone import Trunk
from lsmfm_jax.models.conv import Conv
from lsmfm_jax.models.norm import VOXEL_AXES, BatchNorm
from lsmfm_jax.precision import widen

# He initialisation by the fan-out, and a plain uniform one for the last layer, both as in MONAI.
CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
DENSE_INIT = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with batch norm beside a shortcut.

    Attributes:
        features: output channels.
        strides: steps of the first convolution.
        dtype: compute dtype.
    """

    features: int
    strides: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"], *, train: bool) -> Float[Array, "b z2 y2 x2 f"]:
        """Run the block."""
        conv = {"use_bias": False, "kernel_init": CONV_INIT, "dtype": self.dtype}
        y = Conv(self.features, 3, self.strides, **conv, name="conv_0")(x)
        y = jax.nn.relu(BatchNorm(dtype=self.dtype, name="norm_0")(y, train=train))
        y = Conv(self.features, 3, **conv, name="conv_1")(y)
        y = BatchNorm(dtype=self.dtype, name="norm_1")(y, train=train)
        if self.strides != 1 or x.shape[-1] != self.features:
            shortcut = Conv(
                self.features, 1, self.strides, kernel_init=CONV_INIT, dtype=self.dtype, name="shortcut_conv"
            )
            x = BatchNorm(dtype=self.dtype, name="shortcut_norm")(shortcut(x), train=train)
        return jax.nn.relu(x + y)


class ResNet18(nn.Module):
    """3D ResNet-18: 7x7x7 stem without stride, max pooling, four stages of two blocks, mean, linear layer.

    Names, for path rules: `stem_conv`, `stem_norm`, `stage_<i>_block_<j>/{conv_0,norm_0,...}`, `classifier`.

    Attributes:
        num_classes: length of the output; `trunk` has no use for it.
        widths: channels of the four stages.
        dtype: compute dtype; parameters, statistics and norm arithmetic stay float32.
    """

    num_classes: int = 2
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Build the parts; names are those of the parameter tree."""
        self.stem_conv = Conv(self.widths[0], 7, use_bias=False, kernel_init=CONV_INIT, dtype=self.dtype)
        self.stem_norm = BatchNorm(dtype=self.dtype)
        for stage, width in enumerate(self.widths):
            for block in range(2):
                strides = 2 if stage > 0 and block == 0 else 1
                setattr(self, f"stage_{stage}_block_{block}", ResidualBlock(width, strides, self.dtype))
        self.classifier = nn.Dense(self.num_classes, kernel_init=DENSE_INIT)

    def trunk(self, x: Float[Array, "b z y x c"], *, train: bool) -> Trunk:
        """Compute the maps of the four stages; `values` is the deepest one, as there is no decoder."""
        x = jax.nn.relu(self.stem_norm(self.stem_conv(x), train=train))
        x = nn.max_pool(x, (3, 3, 3), (2, 2, 2), [(1, 1)] * 3)
        stages = []
        for stage in range(len(self.widths)):
            for block in range(2):
                x = getattr(self, f"stage_{stage}_block_{block}")(x, train=train)
            stages.append(x)
        return Trunk(values=x, tail=None, stages=tuple(stages))

    def __call__(self, x: Float[Array, "b z y x c"], *, train: bool) -> Float[Array, "b k"]:
        """Compute float32 logits."""
        deepest = self.trunk(x, train=train).values
        return self.classifier(jnp.mean(widen(deepest), VOXEL_AXES))
