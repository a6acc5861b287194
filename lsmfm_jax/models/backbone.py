"""What every backbone returns, so that tasks need not know which one they use."""

from typing import NamedTuple

from jaxtyping import Array, Float


class Trunk(NamedTuple):
    """Dense features of a backbone, whose last linear layer is separate.

    The dense features are `values @ kernel + bias` where `tail = (kernel, bias)`, and `values` itself where
    `tail` is None. Losses and heads contract the tail into their own arithmetic, so a D-channel tensor at full
    resolution is never made.

    Attributes:
        values: decoder output at the input's resolution, `B Z Y X F`.
        tail: None, or the kernel `F D` and bias `D` of a closing 1x1x1 convolution, float32.
        stages: encoder maps, shallow to deepest, each `B z y x c`.
    """

    values: Float[Array, "b z y x f"]
    tail: tuple[Float[Array, "f d"], Float[Array, " d"]] | None
    stages: tuple[Float[Array, "..."], ...]
