"""Networks: two backbones, a ResNet-18 to compare them with, a text tower, heads."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from lsmfm_jax.models.resnet import ResNet18
from lsmfm_jax.models.swin_unetr import SwinUNETR
from lsmfm_jax.models.unet import UNet

# The ResNet-18 has no decoder: it classifies only.
BACKBONES: dict[str, type[nn.Module]] = {"unet": UNet, "swin_unetr": SwinUNETR, "resnet18": ResNet18}


def build_backbone(name: str, *, dtype: str = "float32", **architecture: Any) -> nn.Module:
    """A backbone by its name.

    Args:
        name: a key of `BACKBONES`.
        dtype: compute type; parameters are float32.
        architecture: attributes of the module, such as `channels` or `feature_size`.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in BACKBONES:
        raise ValueError(f"model.name: {name!r}; allowed: {', '.join(BACKBONES)}")
    return BACKBONES[name](dtype=jnp.dtype(dtype), **architecture)
