"""The backbones there are, each with its declaration. Imports no JAX: configurations are checked against this."""

import math
from collections.abc import Mapping
from typing import Any

from lsmfm_jax.keys import Key
from lsmfm_jax.models.declaration import Architecture, Backbone


def _unet_divisor(architecture: Architecture) -> tuple[int, str]:
    return math.prod(architecture["strides"]), "the product of model.unet.strides"


def _unet_problem(architecture: Architecture) -> str | None:
    strides, channels = architecture["strides"], architecture["channels"]
    if len(strides) != len(channels) - 1:
        return f"strides: {strides}; one less than model.unet.channels {channels} is needed"
    return None


def _swin_unetr_divisor(architecture: Architecture) -> tuple[int, str]:
    del architecture
    return 32, "the SwinUNETR's downsampling"


def _swin_unetr_problem(architecture: Architecture) -> str | None:
    if architecture["feature_size"] % 12:
        return f"feature_size: {architecture['feature_size']}; a multiple of 12 is needed"
    for stage, heads in enumerate(architecture["num_heads"]):
        width = architecture["feature_size"] * 2**stage
        if width % heads:
            return (
                f"num_heads: {architecture['num_heads']}; {heads} does not divide {width}, the width of stage "
                f"{stage + 1} with feature_size {architecture['feature_size']}"
            )
    return None


UNET = Backbone(
    module="lsmfm_jax.models.unet:UNet",
    schema={
        "channels": Key((32, 64, 128, 256, 512), "widths, shallow to deep", low=1),
        "strides": Key((2, 2, 2, 1), "stride between two widths", choices=None, low=1, high=2),
        "num_res_units": Key(2, "convolutions in a residual unit", low=1, high=32),
        "norm": Key("batch", "normalisation", choices=("batch", "instance")),
    },
    encoder=r"^(down_\d+|bottom)/",
    top=r"^up_0/",
    divisor=_unet_divisor,
    problem=_unet_problem,
)

SWIN_UNETR = Backbone(
    module="lsmfm_jax.models.swin_unetr:SwinUNETR",
    schema={
        "feature_size": Key(36, "width of the first stage, a multiple of 12", low=12),
        "depths": Key((2, 2, 2, 2), "transformer blocks in each stage", low=1, high=64, length=4),
        "num_heads": Key((3, 6, 12, 24), "attention heads in each stage", low=1, length=4),
        "window": Key(7, "attention window, tokens along each axis", low=2),
        "merging": Key(
            "corrected",
            "patch merging: all eight slices, or two of them twice as the published checkpoints have it",
            choices=("corrected", "duplicated"),
        ),
    },
    encoder=r"^(transformer|encoder_\d+)/",
    # The blocks on the skip connections do not lead there.
    deepest=r"^transformer/",
    # Half of all parameters.
    bottleneck=r"^bottleneck/",
    # The block that the released code drops when it changes the number of output channels.
    top=r"^out/",
    kernels=True,
    low_rank=r"^transformer/stage_\d+/block_\d+/(attention/(qkv|out)_kernel|linear[12]/kernel)$",
    divisor=_swin_unetr_divisor,
    problem=_swin_unetr_problem,
)

RESNET18 = Backbone(
    module="lsmfm_jax.models.resnet:ResNet18",
    schema={"widths": Key((64, 128, 256, 512), "channels of the four stages", low=1, length=4)},
    encoder=r"^(stem|stage)_",
    dense=False,
)

BACKBONES: dict[str, Backbone] = {"unet": UNET, "swin_unetr": SWIN_UNETR, "resnet18": RESNET18}


def configured_architecture(model: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture that the `model` part of a configuration, as a dictionary, describes; as runs record it."""
    name = model["name"]
    dense = {"out_channels": model["out_channels"]} if BACKBONES[name].dense else {}
    return {"name": name, **dense, **dict(model[name])}


def build_backbone(name: str, *, dtype: str = "float32", kernels: str = "plain", **architecture: Any) -> Any:
    """A backbone by its name.

    Args:
        name: a key of `BACKBONES`.
        dtype: compute type; parameters are float32.
        kernels: "plain", or "fused" for kernels of our own on NVIDIA cards, where the backbone has any.
        architecture: attributes of the module, such as `channels` or `feature_size`; lists are taken for tuples.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in BACKBONES:
        raise ValueError(f"model.name: {name!r}; allowed: {', '.join(BACKBONES)}")
    # Only now, so that a configuration can be checked without the seconds that JAX takes to import.
    import jax.numpy as jnp

    attributes = {key: tuple(value) if isinstance(value, list) else value for key, value in architecture.items()}
    if BACKBONES[name].kernels:
        attributes["kernels"] = kernels
    return BACKBONES[name].build(dtype=jnp.dtype(dtype), **attributes)
