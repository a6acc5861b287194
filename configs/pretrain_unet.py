"""Pretraining of the UNet: masked reconstruction, distillation, image-text alignment and contrast.

    lsmfm data ingest --layout wu --root PATCHES --captions captions.json --out STORE
    lsmfm pretrain --config pretrain_unet --workdir RUN --config.data.stores="('STORE',)"

Variants (`pretrain_unet:VARIANT`):
    (none)      image and text, bert-base-uncased; 19.0 M parameters in the UNet, 109.5 M in the text tower
    image_only  no text tower is built
    faithful    the numbers of the paper's released code, its slips included (see `_faithful`)
    tiny        image and text on a CPU: 3-level UNet of widths 8-16-24, 32-voxel inputs, small random BERT
    tiny_image_only

Hardware: the full variants want a GPU or TPU with 40 GB or more (batch 16 of 64^3 voxels, bfloat16); the paper
reports 10 to 12 hours on two A100 or H100 GPUs for its own code. The tiny variant took 6 minutes on 2 CPU
cores with the generated volumes of `make pretrain`, and less on another machine.
Expected: see the results section of README.md for what was measured, on which machine.
"""

from ml_collections import ConfigDict

from lsmfm_jax.config import defaults
from lsmfm_jax.config.load import unknown_variant

VARIANTS = ("", "image_only", "faithful", "tiny", "tiny_image_only")


def get_config(variant: str = "") -> ConfigDict:
    """The recipe of one variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    config = defaults("pretrain")
    # The scale of the segmentation recipes, so that the encoder is finetuned on what it saw: see docs/results.md.
    config.data.scale = "local"
    config.text.source = "bert-base-uncased"
    if "image_only" in variant:
        config.text.enabled = False
    if variant == "faithful":
        _faithful(config)
    if variant.startswith("tiny"):
        _tiny(config)
    return config


def _faithful(config: ConfigDict) -> None:
    """What the released code computes where it differs from the paper, or from what it meant to do."""
    config.data.scale = "percentile"
    config.mask.block_sizes = (8, 16)
    config.mask.rounding = "down"
    config.data.split_by = "file"
    config.train.accumulate_steps = 8
    # Two GPUs with eight micro-batches each leave one sample to contrast with itself: a loss of exactly 0.
    config.loss.contrast_group = 1
    config.loss.positives = "sample"
    config.teacher.updates_per_step = 8
    config.teacher.average_statistics = False
    config.text.pooling = "batch"
    config.text.train = False
    config.text.project_in_warmup = False


def _tiny(config: ConfigDict) -> None:
    """Small enough for two CPU cores."""
    config.model.dtype = "float32"
    config.model.out_channels = 8
    config.model.unet.channels = (8, 16, 24)
    config.model.unet.strides = (2, 2)
    config.text.source = "tiny"
    config.text.top_k_layers = 1
    config.data.patch_size = (48, 48, 48)
    config.data.input_size = (32, 32, 32)
    config.optim.learning_rate = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 20
    config.optim.clip_norm = 1.0
    config.warmup_epochs = 2
    config.train.batch_size = 8
    config.train.epochs = 8
    config.train.validate_every_epochs = 2
    config.train.pictures_every_epochs = 4
    config.train.checkpoint_every_epochs = 10
