"""The same pretraining step on any mesh and with any accumulation: losses to 1e-5, gradients to 1e-4.

Batch norm is global over a mesh, so the meshes are compared with it; micro-batches have statistics of their own,
so accumulation is compared with a network that has none. The compiled programs are read as well: what is split
over `depth` must be split where it is large, and no device may collect a whole volume of features.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsmfm_jax.config import defaults
from lsmfm_jax.models import conv_kernels
from lsmfm_jax.models.text import BertConfig
from lsmfm_jax.tasks.pretrain import pretraining_task
from lsmfm_jax.train import device_order
from lsmfm_jax.train.loop import compile_on_validation
from lsmfm_jax.train.run import compile_step
from lsmfm_jax.train.sharding import batch_shardings, make_mesh, put_batch, state_shardings
from lsmfm_jax.train.state import create_state
from lsmfm_jax.train.step import build_train_step

BERT = BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_layers=0,  # the text tower is the same on every device: its embeddings and the projection are enough
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
    config.model.unet.num_res_units = 1
    config.model.unet.norm = norm
    config.data.input_size = (8, 4, 4)
    config.mask.block_sizes = (2, 4)
    config.augment.probability = 0.5
    config.warmup_epochs = 0
    return config


@pytest.fixture(autouse=True)
def _convolutions_of_other_devices(monkeypatch):
    """The forms for a CPU put Z into the batch axis, which gathers a split Z; all other devices have XLA's own."""
    monkeypatch.setattr(conv_kernels, "is_worthwhile", lambda voxels, kernel_shape: False)


def _batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 4000, (8, 12, 6, 6)).astype(np.uint16),
        "low": np.full(8, 100, np.float32),
        "high": np.full(8, 3000, np.float32),
        # Repeated captions, and one patch without: positives and weights must survive any split.
        "caption_key": np.array([0, 1, 2, 0, 1, 3, -1, 2], np.int32),
        "volume": np.array([0, 1, 2, 3, 0, 1, 2, 3], np.int32),
        "tokens": rng.integers(1, 50, (8, 8)).astype(np.int32),
        "token_mask": np.arange(8)[None] < rng.integers(2, 9, (8, 1)),
        "sample": np.arange(8, dtype=np.int32),
    }


@functools.cache
def _start(norm: str):
    """Task, optimiser and initial state; with plain descent at rate 1 the update is the gradient."""
    task, optimiser = pretraining_task(_config(norm), BERT, warmup_steps=0), optax.sgd(1.0)
    init = jax.jit(lambda key: create_state(task, optimiser, key))
    return task, optimiser, jax.device_get(init(jax.random.key(1)))


def _mesh(axes):
    sizes = {"data": 1} | dict(axes)
    return make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])


@functools.cache
def _step(norm: str, axes: tuple[tuple[str, int], ...], accumulate_steps: int):
    """Metrics, gradients and the compiled program of one step."""
    task, optimiser, start = _start(norm)
    mesh = _mesh(axes)
    shardings = state_shardings(start, mesh)
    step = build_train_step(task, optimiser, seed=5, accumulate_steps=accumulate_steps, teacher_decay=0.9)
    arguments = jax.device_put(start, shardings), put_batch(_batch(), mesh)
    compiled = compile_step(step, shardings, mesh).lower(*arguments).compile()
    state, metrics = compiled(*arguments)
    gradients = jax.tree.map(np.subtract, start.params, jax.device_get(state.params))
    return jax.device_get(metrics), gradients, compiled.as_text()


def _same(one, other):
    for name in ("loss", "distill", "reconstruct", "align", "contrast", "teacher_entropy", "grad_norm"):
        np.testing.assert_allclose(one[0][name], other[0][name], rtol=1e-5, err_msg=name)
    largest = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(one[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), one[1], other[1])


def _named(axes):
    return " x ".join(f"{size} {name}" for name, size in axes) or "1 device"


MESHES = [
    (("data", 2),),
    (("data", 8),),
    (("data", 4), ("fsdp", 2)),
    (("depth", 2),),
    (("data", 2), ("depth", 2)),
]


@pytest.mark.parametrize("axes", MESHES, ids=_named)
def test_any_mesh_gives_the_loss_and_gradient_of_one_device(axes):
    _same(_step("batch", (), 1), _step("batch", axes, 1))


PARTS = [
    ((), 2),
    ((), 4),
    ((("data", 4),), 2),
    ((("data", 2), ("fsdp", 2)), 4),
    ((("data", 2), ("depth", 2)), 4),
    ((("data", 4), ("depth", 2)), 2),
]


@pytest.mark.parametrize(
    ("axes", "accumulate_steps"), PARTS, ids=lambda value: str(value) if value in (2, 4) else _named(value)
)
def test_any_accumulation_gives_the_loss_and_gradient_of_the_whole_batch(axes, accumulate_steps):
    _same(_step("instance", (), 1), _step("instance", axes, accumulate_steps))


def _results(text: str, operation: str) -> list[tuple[int, ...]]:
    """Shapes of all results of an operation in a compiled program."""
    found = re.findall(rf"^.* = (.*?) {operation}(?:-start)?\(", text, re.MULTILINE)
    shapes = [shape for result in found for shape in re.findall(r"\w+\[([\d,]*)\]", result)]
    return [tuple(int(size) for size in shape.split(",") if size) for shape in shapes]


def _feature_maps(text: str) -> list[tuple[int, ...]]:
    """Shapes (B, Z, Y, X, C) of the convolutions' results at full resolution in Y and X."""
    return [shape for shape in _results(text, "convolution") if shape[2:4] == (4, 4)]


@pytest.mark.parametrize(
    ("norm", "axes", "accumulate_steps"),
    [("batch", MESHES[-1], 1), ("instance", *PARTS[-2]), ("instance", *PARTS[-1])],
    ids=["2 data x 2 depth", "in four parts", "4 data x 2 depth in two parts"],
)
def test_the_compiled_step_splits_z_and_gathers_no_volume(norm, axes, accumulate_steps):
    text = _step(norm, axes, accumulate_steps)[2]
    maps = _feature_maps(text)
    assert len(maps) >= 6
    assert {shape[1] for shape in maps} == {4}, "Z of 8 in two parts"
    assert {shape[1] for shape in _feature_maps(_step(norm, (), 1)[2])} == {8}, "the same reading of one device"
    # What is left is embeddings, caption keys and weights; a patch as it was read has 432 voxels.
    gathered = _results(text, "all-gather") + _results(text, "all-to-all")
    assert gathered and max(np.prod(shape) for shape in gathered) <= 64, gathered
    # Neighbours exchange halos: one slice of a map at a time.
    halos = [shape for shape in _results(text, "collective-permute") if len(shape) == 5]
    assert len(halos) >= 20 and {shape[1] for shape in halos} == {1}


def test_validation_splits_z_as_well():
    task, _, start = _start("batch")
    mesh = _mesh((("data", 2), ("depth", 2)))
    batch = _batch() | {"weight": np.ones(8, np.float32)}

    def outputs(mesh):
        function = compile_on_validation(task.evaluate, task, mesh)
        arguments = start.params, start.batch_stats, start.teacher, put_batch(batch, mesh)
        compiled = function.lower(*arguments).compile()
        return jax.device_get(compiled(*arguments)), compiled.as_text()

    (whole, _), (split, text) = outputs(_mesh(())), outputs(mesh)
    assert {shape[1] for shape in _feature_maps(text)} == {4}
    assert max(np.prod(shape) for shape in _results(text, "all-gather")) <= 64
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), whole, split)


def test_a_volume_is_split_within_one_process_only(monkeypatch):
    monkeypatch.setattr(device_order, "process_of", lambda device: device.id // 4)
    assert dict(make_mesh(data=2, depth=4).shape) == {"data": 2, "fsdp": 1, "depth": 4}
    with pytest.raises(ValueError, match=r"mesh.depth: 8 does not divide the devices of each process"):
        make_mesh(data=1, depth=8)


def test_z_must_be_divided_evenly():
    with pytest.raises(ValueError, match=r"mesh.depth: 8 does not divide the 4 voxels of volumes along Z"):
        batch_shardings({"image": np.zeros((1, 4, 8, 8, 1))}, make_mesh(data=1, depth=8), split_depth=True)


def test_all_losses_and_all_parts_have_gradients():
    metrics, gradients, _ = _step("batch", (), 1)
    for name in ("distill", "reconstruct", "align", "contrast"):
        assert metrics[name] > 0.01, name
    for part in ("backbone", "light_decoder", "image_projection", "text_tower", "text_projection"):
        assert optax.global_norm(gradients[part]) > 1e-5, part
    assert abs(float(gradients["logit_scale"])) > 1e-6


def test_bfloat16_stays_near_float32():
    """Compute in bfloat16, parameters, statistics and losses in float32: the losses agree to a per cent or so."""
    _, _, start = _start("batch")
    assert {leaf.dtype for leaf in jax.tree.leaves((start.params, start.batch_stats))} == {jnp.dtype("float32")}
    rows, losses = None, {}
    for dtype in ("float32", "bfloat16"):
        task = pretraining_task(_config("batch", dtype), BERT, warmup_steps=0)
        if rows is None:
            rows = task.prepare(jax.tree.map(jnp.asarray, _batch()), jax.random.key(2), jnp.zeros((), jnp.int32))
        local = jax.jit(task.local)(start.params, start.batch_stats, start.teacher, rows, jnp.zeros((), jnp.int32))
        assert local.loss.dtype == jnp.float32
        losses[dtype] = float(local.sums["distill"]), float(local.sums["reconstruct"])
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.02)
