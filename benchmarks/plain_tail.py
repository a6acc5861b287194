"""The SwinUNETR as it is usually written, with its dense features at full resolution: a form to compare with."""

import contextlib
import dataclasses
from collections.abc import Iterator
from unittest import mock

from jaxtyping import Array, Float

from lsmfm_jax.losses import pretrain as losses
from lsmfm_jax.models import BACKBONES
from lsmfm_jax.models.backbone import Trunk
from lsmfm_jax.models.swin_unetr import SwinUNETR
from lsmfm_jax.precision import add_bias


class PlainSwinUNETR(SwinUNETR):
    """Same parameters and same features; the closing convolution is applied, so that its output is made."""

    def trunk(self, x: Float[Array, "b z y x c"], *, train: bool) -> Trunk:
        """The dense features as values, with nothing left to apply."""
        values, tail, stages = super().trunk(x, train=train)
        kernel, bias = tail
        return Trunk(add_bias(values @ kernel.astype(self.dtype), bias), None, stages)

    def __call__(self, x: Float[Array, "b z y x c"], *, train: bool) -> Float[Array, "b z y x d"]:
        """Dense features."""
        return self.trunk(x, train=train).values


@contextlib.contextmanager
def plain_tail() -> Iterator[None]:
    """Within this, recipes build the plain SwinUNETR."""
    plain = dataclasses.replace(BACKBONES["swin_unetr"], module=PlainSwinUNETR)
    with mock.patch.dict(BACKBONES, swin_unetr=plain):
        yield


@contextlib.contextmanager
def distillation_at_once() -> Iterator[None]:
    """Within this, the distillation takes all voxels at once, with all their channels, not slab by slab."""
    with mock.patch.object(losses, "rows_per_slab", lambda shape, _: shape[0]):
        yield
