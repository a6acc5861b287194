"""Classification with a 3D ResNet-18 from scratch, to compare pretrained backbones with.

    lsmfm finetune --config classify_resnet18 --workdir RUN --config.data.folder=PATCHES

`PATCHES` holds `<class>_patch_<n>....nii.gz` (or class folders, or a CSV), or is a store, with caption keys as classes.
With `train/` and `val/` in it those are the sides, else volumes are drawn for validation. The seed and the keys of
`data` draw the sides, so a run of classify_unet with the same ones has the same patches.

Variants (`classify_resnet18:VARIANT`):
    (none)   33.2 M parameters, equal to resnet18 of MONAI
    tiny     for a CPU: widths 4-8-12-16, 32-voxel crops

Hardware: the full variant wants a GPU with 16 GB or more (batch 8 of 96^3 voxels, bfloat16).
The tiny variant takes minutes on 2 CPU cores.
Expected: see the results section of README.md for what was measured, on which machine.
"""

from ml_collections import ConfigDict

from lsmfm_jax.config import defaults
from lsmfm_jax.config.load import unknown_variant

VARIANTS = ("", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    """The recipe of one variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    config = defaults("classify")
    config.model.name = "resnet18"
    config.optim.learning_rate = 1e-4
    config.optim.weight_decay = 1e-5
    config.train.batch_size = 8
    config.train.epochs = 200
    config.train.patience_epochs = 50
    if variant == "tiny":
        _tiny(config)
    return config


def _tiny(config: ConfigDict) -> None:
    """Small enough for two CPU cores."""
    config.model.dtype = "float32"
    config.model.resnet18.widths = (4, 8, 12, 16)
    config.data.patch_size = (32, 32, 32)
    config.optim.learning_rate = 2e-3
    config.train.epochs = 20
    config.train.validate_every_epochs = 2
    config.train.pictures_every_epochs = 10
    config.train.checkpoint_every_epochs = 10
