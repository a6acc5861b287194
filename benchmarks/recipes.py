"""Which step is meant: the real recipes at a size, and a batch of random volumes. Imports no array library but numpy.

So the PyTorch side of a comparison carries no JAX in its memory.
"""

import argparse

import numpy as np
from ml_collections import ConfigDict
from outcome import ROOT

from lsmfm_jax.config.load import load_config

MODELS = ("unet", "swin_unetr")
# Sizes of bert-base-uncased, and of one for trying a benchmark out.
BERT_BASE = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "intermediate_size": 3072,
    "max_positions": 512,
}
BERT_TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 64,
    "max_positions": 64,
}
TOKENS = 64


def add_arguments(parser: argparse.ArgumentParser, *, batch: int = 1) -> None:
    """The arguments that select the training step."""
    parser.add_argument("--model", choices=MODELS, default="unet", help="backbone (default unet)")
    parser.add_argument("--size", type=int, default=64, help="edge of the network's input, voxels (default 64)")
    parser.add_argument("--batch", type=int, default=batch, help=f"patches in a step (default {batch})")
    parser.add_argument("--text", action="store_true", help="with a text tower of bert-base's size")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, else bfloat16")
    parser.add_argument(
        "--xla", choices=("default", "fast", "deterministic"), default="default", help="mode of the compiler, train.xla"
    )
    parser.add_argument("--kernels", choices=("plain", "fused"), default="plain", help="train.kernels (default plain)")
    parser.add_argument("--tiny", action="store_true", help="the recipe's tiny networks, to try a benchmark out")


def recipe(
    model: str,
    *,
    size: int,
    batch: int,
    dtype: str,
    text: bool = False,
    tiny: bool = False,
    xla: str = "default",
    kernels: str = "plain",
) -> ConfigDict:
    """The configuration of a model's recipe at a size; the SwinUNETR with 36 features, with text or without.

    Args:
        model: one of `MODELS`.
        size: edge of the network's input, voxels; patches are read half as large again, as 96 for 64.
        batch: patches in a step, over all devices.
        dtype: compute type.
        text: with captions.
        tiny: the recipe's tiny variant.
        xla: which flags the compiler gets, see `lsmfm_jax.train.platform_flags`.
        kernels: plain or fused.
    """
    variant = "_".join(word for word, wanted in (("tiny", tiny), ("image_only", not text)) if wanted)
    overrides = {
        "data.input_size": (size, size, size),
        "data.patch_size": (size * 3 // 2,) * 3,
        "train.batch_size": batch,
        "model.dtype": dtype,
        "train.xla": xla,
        "train.kernels": kernels,
    }
    if model == "swin_unetr" and not tiny:
        overrides["model.swin_unetr.feature_size"] = 36
    arguments = [f"--config.{key}={value}" for key, value in overrides.items()]
    return load_config(f"{ROOT / 'configs' / f'pretrain_{model}.py'}:{variant}", arguments)


def bert_sizes(config: ConfigDict) -> dict[str, int] | None:
    """Sizes of the text tower, or None for images alone."""
    if not config.text.enabled:
        return None
    return BERT_TINY if config.text.source == "tiny" else BERT_BASE


def dummy_batch(config: ConfigDict, *, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch as the loader gives it, of random counts."""
    rng, batch = np.random.default_rng(seed), config.train.batch_size
    made = {
        "image": rng.integers(0, 4000, (batch, *config.data.patch_size)).astype(np.uint16),
        "low": np.full(batch, 40.0, np.float32),
        "high": np.full(batch, 3960.0, np.float32),
        "caption_key": np.arange(batch, dtype=np.int32),
        "sample": np.arange(batch, dtype=np.int32),
    }
    bert = bert_sizes(config)
    if bert is not None:
        tokens = min(TOKENS, bert["max_positions"])
        made["tokens"] = rng.integers(1, bert["vocab_size"], (batch, tokens)).astype(np.int32)
        made["token_mask"] = np.ones((batch, tokens), bool)
    return made
