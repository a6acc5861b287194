"""The networks of pretraining, by a configuration, and their first parameters."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from ml_collections import ConfigDict

from lsmfm_jax.models import build_backbone
from lsmfm_jax.models.heads import LightDecoder, ProjectionHead, initial_logit_scale
from lsmfm_jax.models.text import BertConfig, TextTower
from lsmfm_jax.train.task import PyTree


@dataclasses.dataclass(frozen=True)
class Networks:
    """The modules of pretraining; the text modules are None in image-only mode."""

    backbone: nn.Module
    light_decoder: nn.Module
    image_projection: nn.Module | None
    text_tower: nn.Module | None
    text_projection: nn.Module | None


def build_networks(config: ConfigDict, bert: BertConfig | None) -> Networks:
    """The modules that a configuration describes.

    Args:
        config: of task `pretrain`.
        bert: sizes of the text tower; None builds no text modules.
    """
    model = config.model
    backbone = build_backbone(
        model.name,
        dtype=model.dtype,
        kernels=config.train.kernels,
        out_channels=model.out_channels,
        **model[model.name].to_dict(),
    )
    dtype = jnp.dtype(model.dtype)
    light_decoder = LightDecoder(dtype=dtype)
    if bert is None:
        return Networks(backbone, light_decoder, None, None, None)
    return Networks(
        backbone=backbone,
        light_decoder=light_decoder,
        image_projection=ProjectionHead(model.out_channels),
        text_tower=TextTower(bert, dtype=dtype, pooling=config.text.pooling),
        text_projection=ProjectionHead(model.out_channels),
    )


def first_parameters(networks: Networks, config: ConfigDict, key: Array) -> tuple[PyTree, PyTree]:
    """Fresh parameters by part, and batch statistics of the backbone.

    Args:
        networks: as `build_networks` made them of the same configuration.
        config: of task `pretrain`.
        key: of the draw.
    """
    width = config.model.out_channels
    keys = jax.random.split(key, 5)
    volume = jnp.zeros((1, *config.data.input_size, 1))
    variables = networks.backbone.init(keys[0], volume, train=False, method="trunk")
    # The decoder's parameters are those on the dense features, whatever tail the backbone has.
    dense = jnp.zeros((1, 4, 4, 4, width))
    params = {
        "backbone": variables["params"],
        "light_decoder": networks.light_decoder.init(keys[1], dense, None)["params"],
    }
    if networks.text_tower is not None:
        tokens = jnp.zeros((1, 8), jnp.int32)
        text = networks.text_tower.init(keys[2], tokens, tokens == 0)["params"]
        hidden = jnp.zeros((1, networks.text_tower.config.hidden_size))
        params |= {
            "image_projection": networks.image_projection.init(keys[3], jnp.zeros((1, width)))["params"],
            "text_tower": text,
            "text_projection": networks.text_projection.init(keys[4], hidden)["params"],
            "logit_scale": initial_logit_scale(config.loss.contrast_temperature),
        }
    return params, {"backbone": variables.get("batch_stats", {})}
