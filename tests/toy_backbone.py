"""A backbone in one file, as somebody would add it: two convolutions, its declaration, nothing else."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lsmfm_jax.keys import Key
from lsmfm_jax.models import Architecture, Backbone
from lsmfm_jax.models.backbone import Trunk


class Toy(nn.Module):
    """Halves a volume, and brings it back."""

    out_channels: int = 4
    width: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def trunk(self, x: Float[Array, "b z y x c"], *, train: bool) -> Trunk:
        deepest = nn.relu(nn.Conv(self.width, (3, 3, 3), strides=2, dtype=self.dtype, name="shrink")(x))
        grown = nn.ConvTranspose(self.out_channels, (2, 2, 2), strides=(2, 2, 2), dtype=self.dtype, name="grow")(
            deepest
        )
        return Trunk(values=grown, tail=None, stages=(deepest,))


def _divisor(architecture: Architecture) -> tuple[int, str]:
    return 2, "the toy's one stride"


def _problem(architecture: Architecture) -> str | None:
    return None if architecture["width"] != 13 else "width: 13; any other number is needed"


TOY = Backbone(
    module=Toy,
    schema={"width": Key(3, "channels of the half-size map", low=1)},
    encoder=r"^shrink/",
    top=r"^grow/",
    divisor=_divisor,
    problem=_problem,
)
