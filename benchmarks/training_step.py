"""The real pretraining step, from the real recipes, with random weights and volumes: what the benchmarks time."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from recipes import bert_sizes, dummy_batch, recipe

from lsmfm_jax.models.tensor_limits import check_map_sizes
from lsmfm_jax.models.text import BertConfig
from lsmfm_jax.tasks.pretrain import pretraining_task
from lsmfm_jax.tasks.pretrain_networks import build_networks
from lsmfm_jax.tasks.pretrain_setup import pretraining_rules
from lsmfm_jax.train.optim import make_optimiser
from lsmfm_jax.train.run import compile_step, optimiser_settings
from lsmfm_jax.train.sharding import batch_shardings, make_mesh, put_batch, state_shardings
from lsmfm_jax.train.state import TrainState, state_of
from lsmfm_jax.train.step import build_train_step
from lsmfm_jax.train.task import Task

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


def recipe_of(options: argparse.Namespace) -> ConfigDict:
    """The configuration that `recipes.add_arguments` asked for."""
    return recipe(
        options.model,
        size=options.size,
        batch=options.batch,
        dtype=options.dtype or default_dtype(),
        text=options.text,
        tiny=options.tiny,
        xla=options.xla,
        kernels=options.kernels,
    )


def default_dtype() -> str:
    """Compute type of the benchmarks on this device."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def bert_of(config: ConfigDict) -> BertConfig | None:
    """The text tower, or None for images alone."""
    sizes = bert_sizes(config)
    return BertConfig(**sizes, token_types=2, layer_norm_epsilon=1e-12, pad_token=0) if sizes else None


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
        rules=rules,
        accumulate_steps=config.train.accumulate_steps,
        teacher_decay=config.teacher.decay,
        teacher_updates_per_step=config.teacher.updates_per_step,
    )
    return task, optimiser, step, jax.eval_shape(lambda p, s: state_of(task, optimiser, p, s), *shapes)


def build(config: ConfigDict, *, devices: Sequence[jax.Device] | None = None) -> Built:
    """A step with its state on a mesh of the given devices, or of all."""
    mesh = make_mesh(**config.mesh, devices=devices)
    check_map_sizes(
        build_networks(config, None).backbone,
        tuple(config.data.input_size),
        batch=config.train.batch_size // config.train.accumulate_steps,
        devices=mesh.size,
    )
    task, optimiser, step, abstract = parts(config)
    shardings = state_shardings(abstract, mesh)

    def start(key: jax.Array) -> TrainState:
        return state_of(task, optimiser, *task.init(key))

    state = jax.jit(start, out_shardings=shardings)(jax.random.key(config.seed))
    return Built(config, task, mesh, compile_step(step, shardings, mesh, xla=config.train.xla), state)


def on_mesh(built: Built, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch on the devices."""
    return put_batch(batch, built.mesh)


def batch_shapes(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch."""
    one = config.copy_and_resolve_references()
    one.train.batch_size = 1
    whole = config.train.batch_size
    return {name: jax.ShapeDtypeStruct((whole, *leaf.shape[1:]), leaf.dtype) for name, leaf in dummy_batch(one).items()}


def lowered_arguments(config: ConfigDict, mesh: jax.sharding.Mesh) -> tuple[Callable[..., Any], Any, Any]:
    """The jitted step with the shapes of its arguments, for compiling it without running it."""
    _, _, step, abstract = parts(config)
    shardings = state_shardings(abstract, mesh)
    batch = batch_shapes(config)

    def placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.tree.map(placed, abstract, shardings)
    batch = jax.tree.map(placed, batch, batch_shardings(batch, mesh))
    return compile_step(step, shardings, mesh, xla=config.train.xla), state, batch
