r"""Inpainting with the UNet: hidden boxes restored by a residual from dense features, added to a smooth fill.

    lsmfm finetune --config inpaint_unet --workdir RUN --config.data.folder=PATCHES \
        --config.init_from=PRETRAINED

`PATCHES` holds intact images `<name>.nii.gz`, without labels, or is a store of them: cubes of 8 or 16 voxels, 30 % of
each crop, are hidden here and asked for. `lsmfm predict` restores what `<name>_mask.nii.gz` beside an image marks.
With `train/` and `val/` in it those are the sides, else volumes are drawn for validation.
`PRETRAINED` is a run of `lsmfm pretrain` or a folder made by `lsmfm convert import`; the architecture is read from
it. Without init_from the network starts from scratch.

Variants (`inpaint_unet:VARIANT`):
    (none)   19.0 M parameters
    scratch  everything trains from the first step at one rate; give no init_from
    tiny     for a CPU: 3-level UNet of widths 8-16-24, 32-voxel crops

Hardware: the full variants want a GPU with 16 GB or more (batch 2 of 96^3 voxels, bfloat16).
The tiny variant takes minutes on 2 CPU cores.
Expected: see the results section of README.md for what was measured, on which machine.
"""

from ml_collections import ConfigDict

from lsmfm_jax.config import defaults
from lsmfm_jax.config.load import unknown_variant

VARIANTS = ("", "scratch", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    """The recipe of one variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    config = defaults("inpaint")
    config.optim.learning_rate = 1e-4
    config.optim.weight_decay = 1e-5
    config.optim.schedule = "cosine"
    config.encoder.rate_multiplier = 0.1
    config.train.batch_size = 2
    config.train.epochs = 500
    config.train.patience_epochs = 50
    if variant == "scratch":
        config.encoder.rate_multiplier, config.encoder.thaw_epochs = 1.0, 0
    if variant == "tiny":
        _tiny(config)
    return config


def _tiny(config: ConfigDict) -> None:
    """Small enough for two CPU cores."""
    config.model.dtype = "float32"
    config.model.out_channels = 8
    config.model.unet.channels = (8, 16, 24)
    config.model.unet.strides = (2, 2)
    config.data.patch_size = (32, 32, 32)
    config.data.crops_per_patch = 4
    config.optim.learning_rate = 1e-3
    config.train.batch_size = 4
    config.train.epochs = 20
    config.train.validate_every_epochs = 2
    config.train.pictures_every_epochs = 10
    config.train.checkpoint_every_epochs = 10
