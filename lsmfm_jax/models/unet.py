"""3D UNet with residual units, equal to MONAI's `UNet`."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lsmfm_jax.errors import InputError
from lsmfm_jax.models.backbone import Trunk
from lsmfm_jax.models.conv import Conv, ConvTranspose
from lsmfm_jax.models.norm import CONVOLVED, KEPT, BatchNorm, InstanceNorm, PReLU

NORMS = {"batch": BatchNorm, "instance": InstanceNorm}


class ConvUnit(nn.Module):
    """3x3x3 convolution, norm, rectifier.

    Attributes:
        features: output channels.
        strides: steps of the convolution; with `transposed`, the factor by which the map grows.
        norm: "batch" or "instance".
        transposed: whether the convolution is a transposed one.
        conv_only: whether norm and rectifier are left out.
        dtype: compute dtype.
    """

    features: int
    strides: int
    norm: str
    transposed: bool = False
    conv_only: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"], *, train: bool) -> Float[Array, "b z2 y2 x2 f"]:
        """Convolve, normalise, rectify."""
        if self.transposed:
            grown = {"padding": 1, "output_padding": self.strides - 1}
            x = ConvTranspose(self.features, 3, self.strides, **grown, dtype=self.dtype, name="conv")(x)
        else:
            x = Conv(self.features, 3, self.strides, dtype=self.dtype, name="conv")(x)
        x = checkpoint_name(x, CONVOLVED)
        if self.conv_only:
            return x
        x = NORMS[self.norm](dtype=self.dtype, name="norm")(x, train=train)
        return PReLU(self.dtype, name="activation")(x)


class ResidualUnit(nn.Module):
    """Convolution units in a row, the first one strided, beside a shortcut that is added at the end.

    The shortcut is a convolution (`residual`; 3x3x3 where strided, else 1x1x1) where the shape changes.

    Attributes:
        features: output channels.
        strides: steps of the first unit.
        units: how many units.
        norm: "batch" or "instance".
        last_conv_only: whether the last unit is a convolution alone.
        dtype: compute dtype.
    """

    features: int
    strides: int
    units: int
    norm: str
    last_conv_only: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"], *, train: bool) -> Float[Array, "b z2 y2 x2 f"]:
        """Run the units and add the shortcut."""
        y = x
        for index in range(self.units):
            y = ConvUnit(
                self.features,
                self.strides if index == 0 else 1,
                self.norm,
                conv_only=self.last_conv_only and index == self.units - 1,
                dtype=self.dtype,
                name=f"unit_{index}",
            )(y, train=train)
        if self.strides != 1:
            x = Conv(self.features, 3, self.strides, dtype=self.dtype, name="residual")(x)
        elif x.shape[-1] != self.features:
            x = Conv(self.features, 1, dtype=self.dtype, name="residual")(x)
        return y + x


class UpBlock(nn.Module):
    """Transposed convolution unit (`upsample`), then a residual unit of one convolution unit (`unit_0`).

    Attributes:
        features: output channels.
        strides: the factor by which the map grows.
        norm: "batch" or "instance".
        is_top: whether this is the last block, which ends in a convolution alone.
        dtype: compute dtype.
    """

    features: int
    strides: int
    norm: str
    is_top: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"], *, train: bool) -> Float[Array, "b z2 y2 x2 f"]:
        """Grow the map."""
        grow = ConvUnit(self.features, self.strides, self.norm, transposed=True, dtype=self.dtype, name="upsample")
        x = grow(x, train=train)
        unit = ConvUnit(self.features, 1, self.norm, conv_only=self.is_top, dtype=self.dtype, name="unit_0")
        return x + unit(x, train=train)


class UNet(nn.Module):
    """3D UNet with residual units: MONAI's `UNet` at kernel 3, PReLU, no dropout (paper, section 3.1).

    Names, for path rules; level 0 works at the finest resolution:

        down_<level>/unit_<i>/{conv,norm,activation}, down_<level>/residual     encoder
        bottom/unit_<i>/{conv,norm,activation}, bottom/residual                 encoder, deepest
        up_<level>/upsample/{conv,norm,activation}, up_<level>/unit_0/...       decoder
        up_0/...                                                                decoder, top block

    A level is strided by `strides[level]`; `bottom` is not strided. Only the shapes of `up_0` depend on
    `out_channels`. Batch statistics stand under the same names, in `norm/{mean,var}`. With `train=False` the
    running statistics are used and left alone, which is also how a frozen encoder runs.

    Attributes:
        channels: width of each level, the last one that of `bottom`.
        strides: step of each level, one fewer than channels.
        num_res_units: convolution units in each encoder block, at least 1.
        out_channels: feature channels at full resolution.
        norm: "batch" or "instance" (without parameters, as MONAI's default).
        dtype: compute dtype; parameters, statistics and norm arithmetic stay float32.
    """

    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    strides: tuple[int, ...] = (2, 2, 2, 1)
    num_res_units: int = 2
    out_channels: int = 128
    norm: str = "batch"
    dtype: DTypeLike = jnp.float32

    def __call__(self, x: Float[Array, "b z y x c"], *, train: bool) -> Float[Array, "b z y x d"]:
        """Compute dense features at the input's resolution."""
        return self.trunk(x, train=train).values

    @nn.compact
    def trunk(self, x: Float[Array, "b z y x c"], *, train: bool) -> Trunk:
        """Compute dense features and the encoder's maps: those of each level, then of `bottom`.

        Raises:
            ValueError: the settings do not fit together, or a spatial size is not divisible by all strides.
        """
        self._check(x.shape[1:4])
        common = {"norm": self.norm, "dtype": self.dtype}
        x = x.astype(self.dtype)
        stages = []
        for level, stride in enumerate(self.strides):
            block = ResidualUnit(self.channels[level], stride, self.num_res_units, **common, name=f"down_{level}")
            x = block(x, train=train)
            stages.append(x)
        bottom = ResidualUnit(self.channels[-1], 1, self.num_res_units, **common, name="bottom")
        x = bottom(x, train=train)
        stages.append(x)

        def grow(block: UpBlock, x: Array) -> Array:
            return block(x, train=train)

        for level in reversed(range(len(self.strides))):
            x = jnp.concatenate([stages[level], x], axis=-1)
            width = self.channels[level - 1] if level else self.out_channels
            up = UpBlock(width, self.strides[level], **common, is_top=level == 0, name=f"up_{level}")
            x = nn.remat(grow, policy=KEPT)(up, x)
        return Trunk(values=x, tail=None, stages=tuple(stages))

    def _check(self, sizes: tuple[int, ...]) -> None:
        if len(self.strides) != len(self.channels) - 1:
            raise InputError(f"strides {self.strides} must have one entry fewer than channels {self.channels}")
        if self.num_res_units < 1:
            raise InputError(f"num_res_units is {self.num_res_units}; this UNet needs at least 1")
        if self.norm not in NORMS:
            raise InputError(f"norm is {self.norm!r}; use one of {sorted(NORMS)}")
        factor = math.prod(self.strides)
        if any(size % factor for size in sizes):
            raise InputError(
                f"spatial size {tuple(sizes)} must be divisible by {factor}, the product of strides "
                f"{self.strides}; pad or crop the volume"
            )
