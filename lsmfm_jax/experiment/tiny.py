"""Settings of the tiny variants: generated patches, and networks that learn little from them in minutes on a CPU."""

from lsmfm_jax.experiment.declaration import Phantoms

PHANTOMS = Phantoms(count=75, pretraining_count=30, size=(32, 32, 32))

QUIET = {"train.tensorboard": False, "train.pictures_every_epochs": 0}
CROPS = {"data.patch_size": (16, 16, 16), "data.crops_per_patch": 4, "train.batch_size": 4}
_UNET = {"model.unet.channels": (4, 8), "model.unet.strides": (2,), "model.out_channels": 4}

# Overrides of `<task>_unet:tiny` and of `pretrain_unet:tiny`.
FINETUNING = {**QUIET, **_UNET, **CROPS, "train.epochs": 10, "train.validate_every_epochs": 5}
PRETRAINING = {
    **QUIET,
    **_UNET,
    "data.patch_size": (24, 24, 24),
    "data.input_size": (16, 16, 16),
    "train.batch_size": 4,
    "train.epochs": 4,
    "train.validate_every_epochs": 2,
}
