r"""Segmentation with the UNet: encoder and decoder from pretraining, and a 1x1x1 head.

    lsmfm finetune --config segment_unet --workdir RUN --config.data.folder=PATCHES \
        --config.init_from=PRETRAINED

`PATCHES` holds `<name>.nii.gz` and `<name>_label.nii.gz`.
With `train/` and `val/` in it those are the sides, else volumes are drawn for validation.
`PRETRAINED` is a run of `lsmfm pretrain` or a folder made by `lsmfm convert import`; the architecture is read from
it. Without init_from the network starts from scratch.

Variants (`segment_unet:VARIANT`):
    (none)   Dice-Focal loss; 19.0 M parameters
    scratch  everything trains from the first step at one rate; give no init_from
    dice_ce  Dice and cross-entropy
    vessels  Dice-Focal with half of soft clDice
    cpu      for real patches without a GPU: widths 16-32-64-128, 40-voxel crops, Dice and cross-entropy; give no
             init_from of other widths; minutes on 2 cores for five patches of 100^3 voxels
    tiny     to try it out: a 3-level UNet of widths 8-16-24, 32-voxel crops

Hardware: the full variants want a GPU with 16 GB or more (batch 2 of 96^3 voxels, bfloat16).
The tiny variant takes minutes on 2 CPU cores.
Expected: see the results section of README.md for what was measured, on which machine.
"""

from ml_collections import ConfigDict

from lsmfm_jax.config import defaults
from lsmfm_jax.config.load import unknown_variant

VARIANTS = ("", "scratch", "dice_ce", "vessels", "cpu", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    """The recipe of one variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    config = defaults("segment")
    config.optim.learning_rate = 3e-4
    config.optim.weight_decay = 1e-5
    # What carries over to the next brain: see docs/results.md.
    config.data.scale = "local"
    config.data.foreground_frac = 0.33
    config.voxel_classifier.enabled = True
    looks = config.augment.appearance
    looks.contrast, looks.level_shift, looks.bias_field, looks.noise_std = 0.5, 0.02, 0.04, 0.03
    looks.z_blur_prob = 0.3
    # Contrast and level vary there; every sample is mirrored and turned.
    config.augment.intensity_scale_frac, config.augment.intensity_shift = 0.0, 0.0
    config.augment.probability, config.augment.independent_flips = 0.5, True
    config.encoder.rate_multiplier = 0.2
    config.encoder.thaw_epochs = 10
    config.train.batch_size = 2
    config.train.epochs = 600
    config.train.patience_epochs = 200
    if variant == "dice_ce":
        config.loss.name, config.loss.dice, config.loss.other = "dice_ce", 1.0, 1.0
    if variant == "vessels":
        config.loss.cl_dice_frac = 0.5
    if variant == "scratch":
        config.encoder.rate_multiplier, config.encoder.thaw_epochs = 1.0, 0
    if variant == "cpu":
        _cpu(config)
    if variant == "tiny":
        _tiny(config)
    return config


def _cpu(config: ConfigDict) -> None:
    """A narrow network that learns from a few patches in minutes."""
    config.model.dtype = "float32"
    config.model.out_channels = 16
    config.model.unet.channels = (16, 32, 64, 128)
    config.model.unet.strides = (2, 2, 2)
    config.data.patch_size = (40, 40, 40)
    config.data.crops_per_patch = 30
    config.loss.name, config.loss.dice, config.loss.other = "dice_ce", 1.0, 1.0
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 20
    config.optim.clip_norm = 1.0
    config.encoder.rate_multiplier, config.encoder.thaw_epochs = 1.0, 0
    config.train.epochs = 5
    config.train.checkpoint_every_epochs = 5
    config.train.pictures_every_epochs = 0


def _tiny(config: ConfigDict) -> None:
    """Small enough for two CPU cores."""
    config.model.dtype = "float32"
    config.model.out_channels = 8
    config.model.unet.channels = (8, 16, 24)
    config.model.unet.strides = (2, 2)
    config.data.patch_size = (32, 32, 32)
    config.data.crops_per_patch = 8
    config.optim.learning_rate = 2e-3
    config.optim.schedule = "cosine"
    config.encoder.thaw_epochs = 2
    config.train.batch_size = 4
    config.train.epochs = 30
    config.train.validate_every_epochs = 2
    config.train.pictures_every_epochs = 15
    config.train.checkpoint_every_epochs = 10
