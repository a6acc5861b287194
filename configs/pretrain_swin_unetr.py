"""Pretraining of the SwinUNETR: masked reconstruction, distillation, image-text alignment and contrast.

    lsmfm data ingest --layout wu --root PATCHES --captions captions.json --out STORE
    lsmfm pretrain --config pretrain_swin_unetr --workdir RUN --config.data.stores="('STORE',)"

Variants (`pretrain_swin_unetr:VARIANT`):
    (none)      image and text, bert-base-uncased; feature size 36, 35.1 M parameters, 109.5 M in the text tower
    image_only  feature size 24, 15.7 M parameters; no text tower is built
    faithful    the numbers of the paper's released code, its slips included (see `_faithful`)
    tiny        image and text on a CPU: feature size 12, 32-voxel inputs, small random BERT
    tiny_image_only

Hardware: the full variants want a GPU or TPU with 40 GB or more (batch 16 of 64^3 voxels, bfloat16); the paper
reports 10 to 12 hours on two A100 or H100 GPUs for its own code. The tiny variants run on 2 CPU cores.
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
    config.model.name = "swin_unetr"
    config.model.out_channels = 512
    config.text.source = "bert-base-uncased"
    config.warmup_epochs = 30
    config.teacher.decay = 0.994
    config.loss.student_temperature = 0.025
    config.loss.distill = 0.50
    config.loss.reconstruct = 0.30
    config.loss.align = 0.05
    config.loss.contrast = 0.30
    if "image_only" in variant:
        config.text.enabled = False
        config.model.swin_unetr.feature_size = 24
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
    config.model.swin_unetr.merging = "duplicated"
    config.data.split_by = "file"
    config.train.accumulate_steps = 8
    # Two GPUs with eight micro-batches each leave one sample to contrast with itself: a loss of exactly 0.
    config.loss.contrast_group = 1
    config.loss.positives = "sample"
    config.teacher.updates_per_step = 8
    config.text.pooling = "batch"
    config.text.train = False
    config.text.project_in_warmup = False


def _tiny(config: ConfigDict) -> None:
    """Small enough for two CPU cores."""
    config.model.dtype = "float32"
    config.model.out_channels = 48
    config.model.swin_unetr.feature_size = 12
    config.model.swin_unetr.window = 4
    config.loss.student_temperature = 0.1
    config.text.source = "tiny"
    config.text.top_k_layers = 1
    config.data.patch_size = (48, 48, 48)
    config.data.input_size = (32, 32, 32)
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 20
    config.optim.clip_norm = 1.0
    config.warmup_epochs = 2
    config.train.batch_size = 8
    config.train.epochs = 25
    config.train.validate_every_epochs = 2
    config.train.pictures_every_epochs = 12
    config.train.checkpoint_every_epochs = 10
