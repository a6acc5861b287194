r"""Segmentation with the SwinUNETR: encoder and decoder from pretraining, and a 1x1x1 head.

    lsmfm finetune --config segment_swin_unetr --workdir RUN --config.data.folder=PATCHES \
        --config.init_from=PRETRAINED

`PATCHES` holds `<name>.nii.gz` and `<name>_label.nii.gz`.
With `train/` and `val/` in it those are the sides, else volumes are drawn for validation.
`PRETRAINED` is a run of `lsmfm pretrain` or a folder made by `lsmfm convert import`; the architecture is read from
it. Without init_from the network starts from scratch.

At low cost: --config.encoder.lora_rank=8 (4 to 16 are usual) keeps the pretrained encoder as it is to the end, and
trains thin factors (LoRA) beside its linear layers. They are merged when the run is read, so it is used like any other.

Variants (`segment_swin_unetr:VARIANT`):
    (none)   Dice-Focal loss; feature size 36, 35.1 M parameters
    scratch  everything trains from the first step at one rate; give no init_from
    dice_ce  Dice and cross-entropy
    vessels  Dice-Focal with half of soft clDice
    tiny     for a CPU: feature size 12, 32-voxel crops

Hardware: the full variants want a GPU with 16 GB or more (batch 2 of 96^3 voxels, bfloat16).
The tiny variant takes minutes on 2 CPU cores.
Expected: see the results section of README.md for what was measured, on which machine.
"""

from ml_collections import ConfigDict

from lsmfm_jax.config import defaults
from lsmfm_jax.config.load import unknown_variant

VARIANTS = ("", "scratch", "dice_ce", "vessels", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    """The recipe of one variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    config = defaults("segment")
    config.model.name = "swin_unetr"
    config.model.out_channels = 512
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
    if variant == "tiny":
        _tiny(config)
    return config


def _tiny(config: ConfigDict) -> None:
    """Small enough for two CPU cores."""
    config.model.dtype = "float32"
    config.model.out_channels = 48
    config.model.swin_unetr.feature_size = 12
    config.model.swin_unetr.window = 4
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
