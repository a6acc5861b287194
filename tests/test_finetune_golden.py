"""The released code's checkpoints as a start of every task, for both backbones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from labelled_toy import write_patches

from lsmfm_jax.config import defaults
from lsmfm_jax.convert.importing import import_checkpoint
from lsmfm_jax.tasks import SETUPS
from lsmfm_jax.train.initialise import load_matching
from lsmfm_jax.train.optim import make_optimiser
from lsmfm_jax.train.run import optimiser_settings
from lsmfm_jax.train.state import state_of
from lsmfm_jax.train.step import build_train_step

FILES = {"unet": "unet", "swin_unetr": "swinunetr"}
# Their steps are traced or run on a smaller SwinUNETR in test_finetune_training.py.
TRACED_ELSEWHERE = {("swin_unetr", "classify"), ("swin_unetr", "deblur")}
SIZES = {"unet": 16, "swin_unetr": 32}


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("labelled"), count=6)


@pytest.fixture(scope="module", params=FILES)
def imported(request, shared, tmp_path_factory):
    """Name of the backbone, and the folder of its imported checkpoint."""
    folder = tmp_path_factory.mktemp("golden") / "run"
    import_checkpoint(shared / "golden" / f"{FILES[request.param]}_image_text_tiny.ckpt", folder)
    return request.param, folder


def begin(task, name, folder, patches, run):
    """The setup, the step (not compiled), and a function of drawn parameters to the first state."""
    config = defaults(task)
    config.data.folder, config.init_from, config.model.name = str(patches), str(folder), name
    config.data.patch_size, config.data.validation_frac = (SIZES[name],) * 3, 0.34
    config.model.dtype, config.train.batch_size, config.augment.probability = "float32", 1, 0.0
    setup = SETUPS[task](config, run, print_line=lambda line: None)
    shapes = jax.eval_shape(setup.task.init, jax.random.key(0))
    optimiser = make_optimiser(shapes[0], setup.rules, optimiser_settings(config, setup.steps_per_epoch))
    step = build_train_step(setup.task, optimiser, seed=0)
    return setup, shapes, step, lambda params, statistics: state_of(setup.task, optimiser, params, statistics)


@pytest.mark.parametrize("task", ["segment", "classify", "deblur"])
def test_all_of_the_backbone_is_taken_by_every_task(imported, patches, tmp_path, task):
    name, folder = imported
    setup, shapes, step, state = begin(task, name, folder, patches, tmp_path)
    assert setup.record["architecture"]["name"] == name and setup.record["architecture"]["out_channels"] == 24
    ((_, params, statistics),) = setup.initial
    wanted = [{part: tree[part] for part in given} for tree, given in zip(shapes, (params, statistics), strict=True)]
    assert list(params) == ["backbone"]
    _, line = load_matching(wanted, [params, statistics], origin="golden")
    assert "(100.00 %)" in line and "left as they were" not in line
    if (name, task) in TRACED_ELSEWHERE:
        return
    before = jax.eval_shape(state, *shapes)
    after, metrics = jax.eval_shape(step, before, next(setup.batches(0)))
    assert metrics["loss"].shape == () and jax.tree.structure(after) == jax.tree.structure(before)


def test_a_step_from_the_released_unet_moves_what_it_should(shared, patches, tmp_path):
    """Compiled and run: the encoder's batch norm goes on from the released statistics."""
    import_checkpoint(shared / "golden" / "unet_image_text_tiny.ckpt", tmp_path / "golden")
    setup, shapes, step, state = begin("classify", "unet", tmp_path / "golden", patches, tmp_path / "run")
    ((_, params, statistics),) = setup.initial
    head = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes[0]["head"])
    first = state(jax.tree.map(jnp.asarray, {**params, "head": head}), jax.tree.map(jnp.asarray, statistics))
    second, metrics = jax.jit(step)(first, next(setup.batches(0)))
    assert np.isfinite(metrics["loss"])
    path = ("backbone", "down_0", "unit_0", "norm", "mean")
    old, new = first.batch_stats, second.batch_stats
    for key in path:
        old, new = old[key], new[key]
    np.testing.assert_array_equal(old, statistics["backbone"]["down_0"]["unit_0"]["norm"]["mean"])
    assert np.abs(np.asarray(new) - np.asarray(old)).max() > 1e-4
    kernels = [np.asarray(tree.params["backbone"]["bottom"]["unit_0"]["conv"]["kernel"]) for tree in (first, second)]
    assert (kernels[0] != kernels[1]).mean() > 0.5
