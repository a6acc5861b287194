"""What a backbone declares of itself, so that no other file needs to know it by name. Imports no JAX."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from lsmfm_jax.keys import Schema

# Attributes of a backbone by name, as a run records them: the keys of its schema, and `out_channels` where it is dense.
Architecture = Mapping[str, Any]

# Which tokens of a caption its feature is a mean over: its own, those of the longest in the batch, all of the table.
POOLINGS = ("real", "batch", "all")


def _any_size(architecture: Architecture) -> tuple[int, str]:
    del architecture
    return 1, "any size"


def _no_problem(architecture: Architecture) -> str | None:
    del architecture
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
    """A backbone: its module, its keys, and which of its parameters are what.

    Patterns are regular expressions that are searched for in paths below the backbone, such as
    `down_0/unit_0/conv/kernel`.

    Attributes:
        module: a Flax module with the method `trunk` (see `models.backbone.Trunk`) and the attribute `dtype`, or its
            place as "package.file:Class", which is imported when a network is built.
        schema: keys below `model.<name>`: the module's attributes.
        encoder: the parameters that `encoder.*` of a configuration freezes or slows down.
        deepest: those of them that lead to the deepest map, which classification uses; None: all of them.
        bottleneck: a block on the deepest map that `encoder.bottleneck` counts to the encoder or to the decoder;
            None: there is none apart from the encoder.
        top: the last block of the decoder, which `reinit_top` draws anew.
        low_rank: kernels (inputs, outputs) of the encoder that lead to the deepest map, to which `encoder.lora_rank`
            adds products of thin factors; None: it has none.
        kernels: whether it has the attribute `kernels`, which takes what `train.kernels` says.
        dense: whether it has a decoder and takes `out_channels`; others can only classify.
        divisor: what Z, Y and X of a volume must be multiples of, and what that number comes from.
        problem: what is wrong between keys that are valid one by one, as "key: value; what is needed", or None.
        split_rules: pattern and axes, first choice first, of large parameters that the rules of `train.sharding` do
            not cover.
    """

    module: Callable[..., Any] | str
    schema: Schema
    encoder: str
    deepest: str | None = None
    bottleneck: str | None = None
    top: str | None = None
    low_rank: str | None = None
    kernels: bool = False
    dense: bool = True
    divisor: Callable[[Architecture], tuple[int, str]] = _any_size
    problem: Callable[[Architecture], str | None] = _no_problem
    split_rules: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def build(self, **attributes: Any) -> Any:
        """The module with these attributes."""
        if not isinstance(self.module, str):
            return self.module(**attributes)
        file, _, name = self.module.partition(":")
        return getattr(importlib.import_module(file), name)(**attributes)

    def encoder_pattern(self, *, with_bottleneck: bool, deepest_only: bool = False) -> str:
        """Regular expression of the encoder's parameters.

        Args:
            with_bottleneck: whether the bottleneck, where there is one apart, belongs to it.
            deepest_only: leave out what does not lead to the deepest map, such as blocks on skip connections.
        """
        pattern = self.deepest or self.encoder if deepest_only else self.encoder
        return f"{pattern}|{self.bottleneck}" if with_bottleneck and self.bottleneck else pattern
