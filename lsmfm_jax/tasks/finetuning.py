"""What the finetuning tasks share: a backbone of which parts may be frozen, and a head on its features.

What is frozen, and until when, is told by the rules of the optimiser alone. The training step gives such parameters
no gradient and no update (`train.optim`); here their batch norms normalise with the running statistics and leave them
as they are. Thawing is a comparison with the step, so the compiled program stays the same.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lsmfm_jax.models import build_backbone
from lsmfm_jax.models.backbone import Trunk
from lsmfm_jax.models.conv import uniform_fan_in
from lsmfm_jax.models.norm import BatchNorm
from lsmfm_jax.train.optim import Rule, group_of
from lsmfm_jax.train.task import PyTree


def backbone_of(architecture: Mapping[str, Any], *, dtype: str = "float32", kernels: str = "plain") -> nn.Module:
    """The backbone of an architecture as a run records it; the rest as `build_backbone` takes it."""
    return build_backbone(dtype=dtype, kernels=kernels, **architecture)


@dataclasses.dataclass(frozen=True)
class Network:
    """A backbone, and how its parameters train.

    Attributes:
        backbone: the module.
        rules: optimiser groups of the run's parameters, those of the backbone below `backbone/`; none: all train.
    """

    backbone: nn.Module
    rules: Sequence[Rule] = ()

    def init(self, key: Array, size: tuple[int, ...]) -> tuple[PyTree, PyTree]:
        """Fresh parameters and batch statistics, from a volume of `size` (Z, Y, X)."""
        variables = self.backbone.init(key, jnp.zeros((1, *size, 1)), train=False, method="trunk")
        return variables["params"], variables.get("batch_stats", {})

    def trunk(self, params: PyTree, batch_stats: PyTree, volumes: Float[Array, "b z y x 1"]) -> Trunk:
        """Features in evaluation mode, from the trees of a whole run (`backbone` is taken out of them)."""
        variables = {"params": params["backbone"], "batch_stats": batch_stats.get("backbone", {})}
        return self.backbone.apply(variables, volumes, train=False, method="trunk")

    def training_trunk(
        self, params: PyTree, batch_stats: PyTree, volumes: Float[Array, "b z y x 1"], step: Array
    ) -> tuple[Trunk, PyTree]:
        """Features in training mode and the backbone's new batch statistics; frozen ones stay as they are."""
        variables = {"params": params["backbone"], "batch_stats": batch_stats["backbone"]}
        with nn.intercept_methods(_frozen_statistics(self.rules, step)):
            trunk, changed = self.backbone.apply(
                variables, volumes, train=True, method="trunk", mutable=["batch_stats"]
            )
        return trunk, changed.get("batch_stats", batch_stats["backbone"])


def _frozen_statistics(rules: Sequence[Rule], step: Array) -> Callable[..., Any]:
    """Makes batch norms whose parameters are frozen at this step use and keep their running statistics."""

    def intercept(
        call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        if not isinstance(module, BatchNorm):
            return call(*args, **kwargs)
        group = group_of("/".join(("backbone", *module.path, "scale")), rules)
        if group is None or not (group.frozen or group.thaw_step):
            return call(*args, **kwargs)
        if group.frozen:
            return call(*args, **{**kwargs, "train": False})
        # Both ways, then a choice: a branch would keep what both need for the gradient.
        thawed = step >= group.thaw_step
        alone, variables = module.clone(parent=None), module.variables
        trained, changed = alone.apply(variables, *args, train=True, mutable=["batch_stats"])
        frozen = alone.apply(variables, *args, train=False)
        for name, value in changed["batch_stats"].items():
            module.put_variable("batch_stats", name, jnp.where(thawed, value, variables["batch_stats"][name]))
        return jnp.where(thawed, trained, frozen)

    return intercept


def init_linear(key: Array, width: int, outputs: int) -> dict[str, Array]:
    """Kernel (width, outputs) and bias of a linear layer, as PyTorch draws them."""
    draw = uniform_fan_in(width)
    return {"kernel": draw(key, (width, outputs)), "bias": draw(jax.random.fold_in(key, 1), (outputs,))}


def dense_head(head: Mapping[str, Array], trunk: Trunk) -> Float[Array, "b z y x o"]:
    """A 1x1x1 convolution of a trunk's dense features, float32.

    The tail is contracted into the head's kernel, `(v K + b) H + h = v (K H) + (b H + h)`, so the dense features
    are never made, and the tail still trains.
    """
    kernel, bias = head["kernel"], head["bias"]
    if trunk.tail is not None:
        tail_kernel, tail_bias = trunk.tail
        exact = jax.lax.Precision.HIGHEST
        bias = jnp.matmul(tail_bias, kernel, precision=exact) + bias
        kernel = jnp.matmul(tail_kernel, kernel, precision=exact)
    values = trunk.values
    return jnp.matmul(values, kernel.astype(values.dtype), preferred_element_type=jnp.float32) + bias


def pooled_features(trunk: Trunk) -> Float[Array, "b c"]:
    """The mean over voxels of the deepest map, float32."""
    return jnp.mean(trunk.stages[-1].astype(jnp.float32), axis=(1, 2, 3))


def pooled_head(head: Mapping[str, Array], trunk: Trunk) -> Float[Array, "b k"]:
    """A linear layer on the mean over voxels of the deepest map, float32."""
    return jnp.matmul(pooled_features(trunk), head["kernel"], precision=jax.lax.Precision.HIGHEST) + head["bias"]
