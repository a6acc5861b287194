"""The real pretraining step, from the real recipes, with random weights and volumes: what the benchmarks time."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from outcome import ROOT

from lsmfm_jax.config_files import load_config
from lsmfm_jax.models.text import BertConfig
from lsmfm_jax.tasks.pretrain import pretraining_task
from lsmfm_jax.tasks.pretrain_setup import pretraining_rules
from lsmfm_jax.train.optim import make_optimiser
from lsmfm_jax.train.run import compile_step, optimiser_settings
from lsmfm_jax.train.sharding import batch_shardings, make_mesh, put_batch, state_shardings
from lsmfm_jax.train.state import TrainState, state_of
from lsmfm_jax.train.step import build_train_step
from lsmfm_jax.train.task import Task

MODELS = ("unet", "swin_unetr")
# Sizes of bert-base-uncased, and of one for trying a benchmark out.
BERT_BASE = BertConfig(30522, 768, 12, 12, 3072, 512, 2, 1e-12, 0)
BERT_TINY = BertConfig(64, 32, 2, 2, 64, 64, 2, 1e-12, 0)
TOKENS = 64
# Far beyond any benchmark, so that the warm-up's freezing of the text does not take part.
STEPS_PER_EPOCH = 58


@dataclasses.dataclass
class Built:
    """A step ready to run.

    Attributes:
        config: what was built.
        task: its functions.
        mesh: devices.
        step: `(state, batch) -> (state, metrics)`, compiled at its first call; takes its state's memory.
        state: the state to start from.
    """

    config: ConfigDict
    task: Task
    mesh: jax.sharding.Mesh
    step: Callable[..., Any]
    state: TrainState


def add_arguments(parser: argparse.ArgumentParser, *, batch: int = 1) -> None:
    """The arguments that say which step is meant."""
    parser.add_argument("--model", choices=MODELS, default="unet", help="backbone (default unet)")
    parser.add_argument("--size", type=int, default=64, help="edge of the network's input, voxels (default 64)")
    parser.add_argument("--batch", type=int, default=batch, help=f"patches in a step (default {batch})")
    parser.add_argument("--text", action="store_true", help="with a text tower of bert-base's size")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: by the device")
    parser.add_argument("--tiny", action="store_true", help="the recipe's tiny networks, to try a benchmark out")


def recipe(
    model: str, *, size: int, batch: int, text: bool = False, dtype: str | None = None, tiny: bool = False
) -> ConfigDict:
    """The configuration of a model's recipe at a size; the SwinUNETR with 36 features, with text or without.

    Args:
        model: one of `MODELS`.
        size: edge of the network's input, voxels; patches are read half as large again, as 96 for 64.
        batch: patches in a step, over all devices.
        text: with captions.
        dtype: compute type; None takes float32 on a CPU and bfloat16 elsewhere.
        tiny: the recipe's tiny variant.
    """
    variant = "_".join(word for word, wanted in (("tiny", tiny), ("image_only", not text)) if wanted)
    overrides = {
        "data.input_size": (size, size, size),
        "data.patch_size": (size * 3 // 2,) * 3,
        "train.batch_size": batch,
        "model.dtype": dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16"),
    }
    if model == "swin_unetr" and not tiny:
        overrides["model.swin_unetr.feature_size"] = 36
    arguments = [f"--config.{key}={value}" for key, value in overrides.items()]
    return load_config(f"{ROOT / 'configs' / f'pretrain_{model}.py'}:{variant}", arguments)


def recipe_of(options: argparse.Namespace) -> ConfigDict:
    """The configuration that `add_arguments` asked for."""
    return recipe(
        options.model,
        size=options.size,
        batch=options.batch,
        text=options.text,
        dtype=options.dtype,
        tiny=options.tiny,
    )


def bert_of(config: ConfigDict) -> BertConfig | None:
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
    bert = bert_of(config)
    if bert is not None:
        tokens = min(TOKENS, bert.max_positions)
        made["tokens"] = rng.integers(1, bert.vocab_size, (batch, tokens)).astype(np.int32)
        made["token_mask"] = np.ones((batch, tokens), bool)
    return made


def parts(config: ConfigDict) -> tuple[Task, Any, Callable[..., Any], TrainState]:
    """Task, optimiser, pure step and the shapes of the state, wired as `train.run.execute` wires them."""
    bert = bert_of(config)
    task = pretraining_task(config, bert, warmup_steps=0)
    rules = pretraining_rules(config, bert.num_layers if bert else 0, 0)
    shapes = jax.eval_shape(task.init, jax.random.key(config.seed))
    optimiser = make_optimiser(shapes[0], rules, optimiser_settings(config, STEPS_PER_EPOCH))
    step = build_train_step(
        task,
        optimiser,
        seed=config.seed,
        accumulate_steps=config.train.accumulate_steps,
        teacher_decay=config.teacher.decay,
        teacher_updates_per_step=config.teacher.updates_per_step,
    )
    return task, optimiser, step, jax.eval_shape(lambda p, s: state_of(task, optimiser, p, s), *shapes)


def build(config: ConfigDict, *, devices: Sequence[jax.Device] | None = None) -> Built:
    """A step with its state on a mesh of the given devices, or of all."""
    mesh = make_mesh(**config.mesh, devices=devices)
    task, optimiser, step, abstract = parts(config)
    shardings = state_shardings(abstract, mesh)

    def start(key: jax.Array) -> TrainState:
        return state_of(task, optimiser, *task.init(key))

    state = jax.jit(start, out_shardings=shardings)(jax.random.key(config.seed))
    return Built(config, task, mesh, compile_step(step, shardings, mesh), state)


def on_mesh(built: Built, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch on the devices."""
    return put_batch(batch, built.mesh)


def lowered_arguments(config: ConfigDict, mesh: jax.sharding.Mesh) -> tuple[Callable[..., Any], Any, Any]:
    """The jitted step with the shapes of its arguments, for compiling it without running it."""
    _, _, step, abstract = parts(config)
    shardings = state_shardings(abstract, mesh)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dummy_batch(config))

    def placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.tree.map(placed, abstract, shardings)
    batch = jax.tree.map(placed, batch, batch_shardings(batch, mesh))
    return compile_step(step, shardings, mesh), state, batch
