"""The same pretraining step on any mesh and with any accumulation: losses to 1e-5, gradients to 1e-4.

Batch norm is global over a mesh, so the meshes are compared with it; micro-batches have statistics of their own,
so accumulation is compared with a network that has none.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsmfm_jax.config import defaults
from lsmfm_jax.models.text import BertConfig
from lsmfm_jax.tasks.pretrain import pretraining_task
from lsmfm_jax.train.run import compile_step
from lsmfm_jax.train.sharding import make_mesh, put_batch, state_shardings
from lsmfm_jax.train.state import create_state
from lsmfm_jax.train.step import build_train_step

BERT = BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=32,
    max_positions=16,
    token_types=2,
    layer_norm_epsilon=1e-12,
    pad_token=0,
)


def _config(norm: str, dtype: str = "float32"):
    config = defaults("pretrain")
    config.model.dtype = dtype
    config.model.out_channels = 8
    config.model.unet.channels = (4, 8)
    config.model.unet.strides = (2,)
    config.model.unet.norm = norm
    config.data.input_size = (16, 16, 16)
    config.warmup_epochs = 0
    return config


def _batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 4000, (8, 16, 16, 16)).astype(np.uint16),
        "low": np.full(8, 100, np.float32),
        "high": np.full(8, 3000, np.float32),
        # Repeated captions, and one patch without: positives and weights must survive any split.
        "caption_key": np.array([0, 1, 2, 0, 1, 3, -1, 2], np.int32),
        "tokens": rng.integers(1, 50, (8, 8)).astype(np.int32),
        "token_mask": np.arange(8)[None] < rng.integers(2, 9, (8, 1)),
        "sample": np.arange(8, dtype=np.int32),
    }


@functools.cache
def _step(norm: str, axes: tuple[tuple[str, int], ...], accumulate_steps: int = 1):
    """Metrics and gradients of one step: with plain descent at rate 1 the update is the gradient."""
    task = pretraining_task(_config(norm), BERT, warmup_steps=0)
    size = int(np.prod([size for _, size in axes])) if axes else 1
    mesh = make_mesh(**(dict(axes) or {"data": 1}), devices=jax.devices()[:size])
    optimiser = optax.sgd(1.0)
    state = jax.jit(lambda key: create_state(task, optimiser, key))(jax.random.key(1))
    before = jax.device_get(state.params)
    shardings = state_shardings(state, mesh)
    step = build_train_step(task, optimiser, seed=5, accumulate_steps=accumulate_steps, teacher_decay=0.9)
    state = jax.device_put(state, shardings)
    compiled = compile_step(step, shardings, mesh)
    state, metrics = compiled(state, put_batch(_batch(), mesh))
    gradients = jax.tree.map(np.subtract, before, jax.device_get(state.params))
    return jax.device_get(metrics), gradients


def _same(one, other):
    for name in ("loss", "distill", "reconstruct", "align", "contrast", "teacher_entropy", "grad_norm"):
        np.testing.assert_allclose(one[0][name], other[0][name], rtol=1e-5, err_msg=name)
    largest = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(one[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), one[1], other[1])


@pytest.mark.parametrize(
    "axes",
    [(("data", 8),), (("data", 2), ("fsdp", 2)), (("data", 2), ("depth", 2))],
    ids=["8 data", "2 data x 2 fsdp", "2 data x 2 depth"],
)
def test_any_mesh_gives_the_loss_and_gradient_of_one_device(axes):
    _same(_step("batch", ()), _step("batch", axes))


@pytest.mark.parametrize("accumulate_steps", [2, 4])
def test_any_accumulation_gives_the_loss_and_gradient_of_the_whole_batch(accumulate_steps):
    _same(_step("instance", ()), _step("instance", (), accumulate_steps))


def test_accumulation_on_a_mesh():
    _same(_step("instance", ()), _step("instance", (("data", 4),), 2))


def test_all_losses_and_all_parts_have_gradients():
    metrics, gradients = _step("batch", ())
    for name in ("distill", "reconstruct", "align", "contrast"):
        assert metrics[name] > 0.01, name
    for part in ("backbone", "light_decoder", "image_projection", "text_tower", "text_projection"):
        assert optax.global_norm(gradients[part]) > 1e-5, part
    assert abs(float(gradients["logit_scale"])) > 1e-6


def test_bfloat16_stays_near_float32():
    """Compute in bfloat16, parameters, statistics and losses in float32: the losses agree to a per cent or so."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        task = pretraining_task(_config("batch", dtype), BERT, warmup_steps=0)
        params, batch_stats = jax.jit(task.init)(jax.random.key(1))
        assert {leaf.dtype for leaf in jax.tree.leaves((params, batch_stats))} == {jnp.dtype("float32")}
        rows = task.prepare(jax.tree.map(jnp.asarray, _batch()), jax.random.key(2), jnp.zeros((), jnp.int32))
        teacher = task.teacher_of(params, batch_stats)
        local = jax.jit(task.local)(params, batch_stats, teacher, rows, jnp.zeros((), jnp.int32))
        assert local.loss.dtype == jnp.float32
        losses[dtype] = float(local.sums["distill"]), float(local.sums["reconstruct"])
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.02)
