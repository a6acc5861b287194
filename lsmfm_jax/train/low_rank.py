"""Low-rank adaptation: kernels stay as they are, and products of two thin factors are added to them.

A kernel W (inputs, outputs) is used as W + alpha / rank * A B, where A (inputs, rank) is drawn and B (rank, outputs)
starts at zero; only the factors train. They stand beside the network, in the part `lora` of a run's parameters, under
the path of their kernel. The network knows nothing of them: kernels and factors are merged before it is applied, and
again when weights are read, so that whoever reads a run sees an ordinary network.

Source: Hu et al. 2021, LoRA, arXiv:2106.09685, section 4.1.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from lsmfm_jax.config import ConfigError
from lsmfm_jax.train.state import parameter_count
from lsmfm_jax.train.task import PyTree, Task

PART = "lora"
# Of the key that a task's `init` gets: the tasks split it in two, which are the streams 0 and 1.
_STREAM = 2


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Which kernels are adapted, and how.

    Attributes:
        kernels: regular expression, searched in paths below the backbone; kernels are (inputs, outputs).
        rank: columns of A and rows of B, at most the smaller side of each kernel.
        alpha: the product is multiplied by alpha / rank.
    """

    kernels: str
    rank: int
    alpha: float

    @property
    def scaling(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank

    def record(self) -> dict[str, Any]:
        """For `run.json`: what merging needs to know."""
        return {"rank": self.rank, "alpha": self.alpha}


def init_factors(key: Array, backbone: PyTree, low_rank: LowRank) -> PyTree:
    """Factors `a` and `b` (float32) for each adapted kernel of a backbone's parameters, under the kernel's path.

    A is normal with a variance of one over its inputs: tokens of variance one give `x A` that variance.

    Raises:
        ConfigError: the rank is above the smaller side of a kernel.
    """
    kernels = {path: leaf for path, leaf in flatten_dict(backbone).items() if _matches(path, low_rank.kernels)}
    factors = {}
    for number, (path, kernel) in enumerate(sorted(kernels.items())):
        inputs, outputs = kernel.shape
        if low_rank.rank > min(inputs, outputs):
            raise ConfigError(
                f"encoder.lora_rank: {low_rank.rank} is above {min(inputs, outputs)}, the smaller side of "
                f"{'/'.join(path)} {inputs, outputs}; at most that makes sense in this network"
            )
        drawn = jax.random.normal(jax.random.fold_in(key, number), (inputs, low_rank.rank))
        factors[*path, "a"] = drawn / math.sqrt(inputs)
        factors[*path, "b"] = jnp.zeros((low_rank.rank, outputs))
    return unflatten_dict(factors)


def _matches(path: tuple[str, ...], pattern: str) -> bool:
    return re.search(pattern, "/".join(path)) is not None


def adapted(task: Task, low_rank: LowRank) -> Task:
    """The task with factors among its parameters; its own functions see merged kernels.

    The gradient in a factor is that in the merged kernel times the other factor. Whether the kernels themselves train
    is told by the rules of the optimiser, as always.
    """

    def init(key: Array) -> tuple[PyTree, PyTree]:
        params, batch_stats = task.init(key)
        factors = init_factors(jax.random.fold_in(key, _STREAM), params["backbone"], low_rank)
        return {**params, PART: factors}, batch_stats

    def merging(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
        if function is None:
            return None
        return lambda params, *arguments: function(merge(params, low_rank.scaling), *arguments)

    on_parameters = {name: merging(getattr(task, name)) for name in ("local", "joint", "evaluate", "picture")}
    return dataclasses.replace(task, init=init, **on_parameters)


def merge(params: dict[str, PyTree], scaling: float) -> dict[str, PyTree]:
    """A run's parameters with the factors merged into the backbone's kernels, and without them; under jit."""

    def added(kernel: Float[Array, "i o"], a: Float[Array, "i r"], b: Float[Array, "r o"]) -> Float[Array, "i o"]:
        return kernel + scaling * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    return _merged(params, added)


def merge_read(params: dict[str, PyTree], scaling: float) -> dict[str, PyTree]:
    """As `merge`, of numpy arrays that were read.

    Sums have one order, in float64 before they are rounded, so that every machine gets the same bits: the parts of a
    prediction compare the fingerprints of their weights.
    """

    def added(
        kernel: Float[np.ndarray, "i o"], a: Float[np.ndarray, "i r"], b: Float[np.ndarray, "r o"]
    ) -> Float[np.ndarray, "i o"]:
        product = np.zeros(kernel.shape)
        for column, row in zip(a.T.astype(np.float64), b.astype(np.float64), strict=True):
            product += column[:, None] * row
        return (kernel + scaling * product).astype(kernel.dtype)

    return _merged(params, added)


def _merged(params: dict[str, PyTree], added: Callable[..., Any]) -> dict[str, PyTree]:
    kernels, factors = flatten_dict(params["backbone"]), flatten_dict(params[PART])
    for path in {path[:-1] for path in factors}:
        kernels[path] = added(kernels[path], factors[*path, "a"], factors[*path, "b"])
    others = {name: part for name, part in params.items() if name != PART}
    return {**others, "backbone": unflatten_dict(kernels)}


def describe(params: dict[str, PyTree], low_rank: LowRank, *, encoder: str) -> str:
    """One line: how many values train, beside how many of the encoder that do not.

    Args:
        params: of a run with factors, or their shapes.
        low_rank: what is adapted.
        encoder: regular expression of the encoder's parameters below the backbone.
    """
    factors = parameter_count(params[PART])
    frozen = parameter_count(
        [leaf for path, leaf in flatten_dict(params["backbone"]).items() if _matches(path, encoder)]
    )
    return (
        f"LoRA rank {low_rank.rank}, alpha {low_rank.alpha:g}: {factors:,} values train in place of the encoder's "
        f"{frozen:,} ({100 * factors / frozen:.1f} %)"
    )
