"""What the finetuning tasks share: a backbone whose encoder may rest for a while, and a head on its features.

Frozen means frozen: while the encoder rests, its parameters get no gradient and no update, and its batch norm
normalises with the running statistics and leaves them alone. Thawing is a comparison with the step, so the
compiled program stays the same.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lsmfm_jax.models import build_backbone
from lsmfm_jax.models.backbone import Trunk
from lsmfm_jax.models.conv import uniform_fan_in
from lsmfm_jax.models.norm import BatchNorm
from lsmfm_jax.train.optim import leaf_path
from lsmfm_jax.train.task import PyTree

# Paths below the backbone. The SwinUNETR's bottleneck, half of its parameters, goes by a key of its own.
ENCODERS = {
    "unet": r"^(down_\d+|bottom)/",
    "swin_unetr": r"^(transformer|encoder_\d+)/",
    "resnet18": r"^(stem|stage)_",
}
# What of it leads to the deepest map: the blocks on the SwinUNETR's skip connections do not.
SWIN_DEEPEST = r"^transformer/"
SWIN_BOTTLENECK = r"^bottleneck/"
# The last block, which the released code drops when it changes the number of output channels.
TOPS = {"unet": r"^up_0/", "swin_unetr": r"^out/"}


def encoder_pattern(name: str, *, with_bottleneck: bool, with_skips: bool = True) -> str:
    """Regular expression of the encoder's parameters, in paths below the backbone.

    Args:
        name: of the backbone.
        with_bottleneck: whether the SwinUNETR's block on the deepest map belongs to it; the UNet's always does.
        with_skips: whether its blocks on the skip connections do, which only a decoder has a use for.
    """
    if name != "swin_unetr":
        return ENCODERS[name]
    encoder = ENCODERS[name] if with_skips else SWIN_DEEPEST
    return f"{encoder}|{SWIN_BOTTLENECK}" if with_bottleneck else encoder


def backbone_of(architecture: Mapping[str, Any], *, dtype: str = "float32") -> nn.Module:
    """The backbone of an architecture as a run records it (JSON lists are taken for tuples)."""
    attributes = {name: tuple(value) if isinstance(value, list) else value for name, value in architecture.items()}
    return build_backbone(dtype=dtype, **attributes)


@dataclasses.dataclass(frozen=True)
class Network:
    """A backbone, and which of its parameters rest until when.

    Attributes:
        backbone: the module.
        encoder: regular expression of the parameters that rest, in paths below the backbone.
        frozen: they rest to the end.
        thaw_step: they rest until this optimiser step.
    """

    backbone: nn.Module
    encoder: str = "^$"
    frozen: bool = False
    thaw_step: int = 0

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
        """Features in training mode and the backbone's new batch statistics; what rests stays as it is."""
        thawed = False if self.frozen else step >= self.thaw_step if self.thaw_step else True
        variables = {"params": self._held(params["backbone"], thawed), "batch_stats": batch_stats["backbone"]}
        with nn.intercept_methods(_resting_statistics(self.encoder, thawed)):
            trunk, changed = self.backbone.apply(
                variables, volumes, train=True, method="trunk", mutable=["batch_stats"]
            )
        return trunk, changed.get("batch_stats", batch_stats["backbone"])

    def _held(self, params: PyTree, thawed: Array | bool) -> PyTree:
        """The same values; those at rest pass on no gradient, so that they count in no norm of gradients."""
        if thawed is True:
            return params

        def hold(path: tuple[Any, ...], leaf: Array) -> Array:
            if not re.search(self.encoder, leaf_path(path)):
                return leaf
            still = jax.lax.stop_gradient(leaf)
            return still if thawed is False else jnp.where(thawed, leaf, still)

        return jax.tree_util.tree_map_with_path(hold, params)


def _resting_statistics(pattern: str, thawed: Array | bool) -> Callable[..., Any]:
    """Makes the batch norms under `pattern` use and keep their running statistics until `thawed`."""

    def intercept(
        call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        rests = isinstance(module, BatchNorm) and re.search(pattern, "/".join(module.path))
        if thawed is True or not rests:
            return call(*args, **kwargs)
        if thawed is False:
            return call(*args, **{**kwargs, "train": False})
        # Both ways, then a choice: a branch would keep what both need for the gradient.
        alone, variables = module.clone(parent=None), module.variables
        trained, changed = alone.apply(variables, *args, train=True, mutable=["batch_stats"])
        resting = alone.apply(variables, *args, train=False)
        for name, value in changed["batch_stats"].items():
            module.put_variable("batch_stats", name, jnp.where(thawed, value, variables["batch_stats"][name]))
        return jnp.where(thawed, trained, resting)

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


def pooled_head(head: Mapping[str, Array], trunk: Trunk) -> Float[Array, "b k"]:
    """A linear layer on the mean over voxels of the deepest map, float32."""
    mean = jnp.mean(trunk.stages[-1].astype(jnp.float32), axis=(1, 2, 3))
    return jnp.matmul(mean, head["kernel"], precision=jax.lax.Precision.HIGHEST) + head["bias"]
