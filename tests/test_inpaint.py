"""Inpainting as a task: what is hidden stays hidden, only that is judged, and validation asks the same every time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smooth_volumes import smooth_volumes
from toy_backbone import Toy

from lsmfm_jax.config import ConfigError, defaults, validate
from lsmfm_jax.data.labelled import LabelledDataError, find_labelled
from lsmfm_jax.tasks.finetuning import Network
from lsmfm_jax.tasks.inpaint import inpainting_task
from lsmfm_jax.volumes.read import write_nifti

SIDE = 16
START = jnp.zeros((), jnp.int32)  # the first step


@pytest.fixture(scope="module")
def task():
    """The task of the configuration below, each of its functions compiled once."""
    made = inpainting_task(config(), Network(Toy()))
    names = ("init", "prepare", "prepare_validation", "local", "evaluate", "picture")
    return dataclasses.replace(made, **{name: jax.jit(getattr(made, name)) for name in names})


def config(**changes):
    made = defaults("inpaint")
    made.model.dtype, made.data.patch_size, made.mask.block_sizes = "float32", (SIDE,) * 3, (4, 8)
    made.augment.probability, made.mask.fill = 0.0, -0.5
    with made.unlocked():
        made.update_from_flattened_dict(changes)
    return made


def batch_of(volumes):
    rows = len(volumes)
    return {
        "image": jnp.asarray(volumes),
        "low": jnp.full(rows, 1000.0),
        "high": jnp.full(rows, 5000.0),
        "sample": jnp.arange(rows, dtype=jnp.int32) + 7,
        "weight": jnp.ones(rows),
        "valid": jnp.ones((rows, SIDE, SIDE, SIDE), bool),
    }


def drawn_params(task):
    """A network whose head is not the zero that it starts from."""
    params, stats = task.init(jax.random.key(0))
    head = {"kernel": jax.random.normal(jax.random.key(1), (4, 1)), "bias": jnp.full((1,), 0.1)}
    return {**params, "head": head}, stats


# --- what the network sees ---


def test_values_of_hidden_voxels_change_nothing_that_the_network_sees(task):
    volumes = smooth_volumes(4)
    rows = task.prepare(batch_of(volumes), jax.random.key(2), START)
    hidden = np.asarray(rows["hidden"])
    assert 0.2 < hidden.mean() < 0.4
    changed = np.where(hidden, np.float32(1e6), volumes)
    others = task.prepare(batch_of(changed), jax.random.key(2), START)
    for name in ("seen", "base", "hidden"):
        np.testing.assert_array_equal(np.asarray(others[name]), np.asarray(rows[name]), err_msg=name)
    assert np.asarray(others["target"]).max() > 100
    np.testing.assert_array_equal(np.asarray(rows["seen"])[hidden], -0.5)
    visible = np.clip((volumes - 1000) / 4000, 0, 1)[~hidden]
    np.testing.assert_allclose(np.asarray(rows["seen"])[~hidden][:, 0], visible, atol=1e-6)


def test_boxes_are_drawn_anew_in_training_and_fixed_in_validation(task):
    batch = batch_of(smooth_volumes(4))
    first, second = (np.asarray(task.prepare(batch, jax.random.key(step), START)["hidden"]) for step in (0, 1))
    assert (first != second).any(axis=(1, 2, 3)).all() and (first[0] != first[1]).any()
    fixed = task.prepare_validation(batch)
    other = inpainting_task(config(seed=5), Network(Toy()))
    again = jax.jit(lambda batch: other.prepare_validation(batch)["hidden"])(batch)
    np.testing.assert_array_equal(np.asarray(fixed["hidden"]), np.asarray(again))
    # By the patch, not by its place in a batch.
    turned = {name: leaf[::-1] for name, leaf in batch.items()}
    np.testing.assert_array_equal(
        np.asarray(task.prepare_validation(turned)["hidden"]), np.asarray(fixed["hidden"])[::-1]
    )
    assert (np.asarray(fixed["hidden"][0]) != np.asarray(fixed["hidden"][1])).any()


def test_a_new_network_predicts_the_smooth_fill_and_a_trained_one_leaves_visible_voxels(task):
    batch = batch_of(smooth_volumes(4))
    rows = task.prepare_validation(batch)
    params, stats = task.init(jax.random.key(0))
    figures = task.summarise([jax.device_get(task.evaluate(params, stats, {}, rows))])
    assert figures["l1"] == pytest.approx(figures["l1_smooth"], rel=1e-6)
    assert figures["l1_smooth"] < 0.7 * figures["l1_mean"] and figures["ssim_smooth"] > figures["ssim_mean"]
    params, stats = drawn_params(task)
    drawn = task.picture(params, stats, {}, rows)
    prediction, truth = np.asarray(drawn["prediction"]), np.asarray(rows["target"])[..., 0]
    hidden = np.asarray(rows["hidden"])
    np.testing.assert_array_equal(prediction[~hidden], truth[~hidden])
    assert not np.allclose(prediction[hidden], np.asarray(rows["base"])[hidden][:, 0], atol=1e-3)


def test_validation_counts_each_hidden_voxel_of_the_patch_once(task):
    batch = batch_of(smooth_volumes(4))
    batch["valid"] = batch["valid"].at[:, :5].set(False)
    rows = task.prepare_validation(batch)
    params, stats = drawn_params(task)
    outputs = jax.device_get(task.evaluate(params, stats, {}, rows))
    counted = np.asarray(rows["hidden"])[:, 5:]
    assert outputs["voxels"].tolist() == counted.sum(axis=(1, 2, 3)).tolist()
    error = np.abs(np.asarray(task.picture(params, stats, {}, rows)["prediction"]) - np.asarray(rows["target"])[..., 0])
    assert task.summarise([outputs])["l1"] == pytest.approx(error[:, 5:][counted].mean(), rel=1e-5)
    # Rows that only fill up a batch do not count.
    alone = task.summarise([{**outputs, "weight": np.array([1.0, 0.0, 0.0, 0.0])}])
    assert alone["l1"] == pytest.approx(error[0, 5:][counted[0]].mean(), rel=1e-5)


def test_micro_batches_add_up_to_the_batch(task):
    rows = task.prepare(batch_of(smooth_volumes(4)), jax.random.key(2), START)
    params, stats = drawn_params(task)
    whole = task.local(params, stats, {}, rows, START)
    parts = [
        task.local(params, stats, {}, {n: leaf[at] for n, leaf in rows.items()}, START)
        for at in (slice(2), slice(2, 4))
    ]
    assert float(whole.loss) == pytest.approx(float(sum(part.loss for part in parts)), rel=1e-5)
    assert set(whole.sums) == {"l1", "ssim"}


# --- configurations and data that cannot be used ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask.block_sizes": (5,)}, r"mask\.block_sizes: 5 does not divide data\.patch_size \(16, 16, 16\)"),
        ({"mask.block_sizes": (4, 16)}, r"mask\.block_sizes: 16 with mask\.ratio 0\.3 hides all of data\.patch_size"),
        ({"mask.ratio": 0.95}, r"mask\.ratio: 0\.95; at most 0\.9"),
        ({"data.scale": "local"}, r"data\.scale: 'local'; allowed: percentile"),
        ({"loss.l1": 0.0, "loss.ssim": 0.0}, r"loss\.l1, loss\.ssim: both are 0"),
        ({"data.patch_size": (8, 8, 8), "mask.block_sizes": (4,)}, r"patch_size: \(8, 8, 8\); SSIM needs at least 11"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        validate(config(**changes))
    assert "\n" not in str(caught.value)


def test_images_need_no_companion_and_masks_beside_them_are_no_images(tmp_path):
    volume = smooth_volumes(1)[0].astype(np.uint16)
    for name in ("a_1", "b_1", "b_1_mask", "b_1_inpainted", "c_1_mask"):
        write_nifti(tmp_path / f"{name}.nii.gz", volume, like=None)
    # A mask without its image may be an image that is called so.
    assert [file.name for file in find_labelled(tmp_path)] == ["a_1", "b_1", "c_1_mask"]
    with pytest.raises(LabelledDataError, match="no patches in"):
        find_labelled(tmp_path, prefix="d_")
