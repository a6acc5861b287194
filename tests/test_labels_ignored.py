"""Voxels that nobody annotated: they count in no loss, no draw of a crop and no metric."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from labelled_toy import write_patch

from lsmfm_jax.augment import AugmentSettings, augment_pair
from lsmfm_jax.config import defaults
from lsmfm_jax.config.load import as_json, differences
from lsmfm_jax.data.labelled import LabelledDataError
from lsmfm_jax.data.labelled_batches import LabelledSource, WindowBatches, training_batches
from lsmfm_jax.data.labelled_patches import LabelledPatch
from lsmfm_jax.data.labels import IGNORED, LabelError, LabelValues, label_values, target_of
from lsmfm_jax.evaluate import NAMES, evaluate_folders
from lsmfm_jax.losses import segment
from lsmfm_jax.metrics.segmentation import segmentation_scores
from lsmfm_jax.tasks import SETUPS
from lsmfm_jax.tasks.finetune_patches import read_patches
from lsmfm_jax.train.run import execute
from lsmfm_jax.volumes.read import read_single, write_nifti

LOSSES = {
    "dice": segment.dice,
    "focal": segment.focal,
    "cross_entropy": segment.cross_entropy,
    "cl_dice": segment.cl_dice,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kept", [(slice(2, 7), slice(None), slice(None)), (slice(4, 5), slice(1, 9), slice(0, 6))])
def test_a_loss_is_that_of_the_annotated_voxels_alone(name, kept):
    rng = np.random.default_rng(len(name))
    logits = rng.normal(size=(2, 9, 10, 11, 1)).astype(np.float32) * 3
    target = (rng.uniform(size=logits.shape) > 0.7).astype(np.float32)
    annotated = np.zeros(logits.shape, bool)
    annotated[:, *kept] = True
    loss = LOSSES[name]
    inside, truth = jnp.asarray(logits[:, *kept]), jnp.asarray(target[:, *kept])
    rest = loss(inside, truth)
    wild = jnp.asarray(np.where(annotated, target, rng.uniform(size=target.shape) > 0.5).astype(np.float32))
    found, gradient = jax.value_and_grad(lambda x: loss(x, wild, annotated=jnp.asarray(annotated)).sum())(
        jnp.asarray(logits)
    )
    gradient = np.asarray(gradient)
    assert found == pytest.approx(float(rest.sum()), rel=1e-5)
    assert (gradient[~annotated] == 0).all() and np.abs(gradient[annotated]).sum() > 0
    np.testing.assert_allclose(
        gradient[:, *kept],
        jax.grad(lambda x: loss(x, truth).sum())(inside),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_sample_without_an_annotated_voxel_pulls_at_nothing(name):
    logits = jnp.full((1, 5, 5, 5, 1), 3.0)
    nothing = jnp.zeros(logits.shape, bool)
    value, gradient = jax.value_and_grad(lambda x: LOSSES[name](x, jnp.ones(x.shape), annotated=nothing).sum())(logits)
    assert np.isfinite(value) and (np.asarray(gradient) == 0).all()


def test_meanings_of_label_values():
    labels = np.array([0, 1, 2, 3, 4, 255], np.uint8).reshape(1, 2, 3)

    def meaning(**values):
        return target_of(labels, LabelValues(**values), source="a.nii").ravel().tolist()

    assert meaning() == [0, 1, 1, 1, 1, 1]
    assert meaning(ignore=(0,), foreground=(2,)) == [IGNORED, 0, 1, 0, 0, 0]
    assert meaning(ignore=(255,)) == [0, 1, 1, 1, 1, IGNORED]
    assert meaning(background=(1,), ignore=(255,)) == [0, 0, 1, 1, 1, IGNORED]
    with pytest.raises(LabelError, match=r"a\.nii: its label value 4 is neither foreground \(2,\) nor .*ignore_labels"):
        meaning(foreground=(2,), background=(0, 1, 3), ignore=(255,))
    with pytest.raises(LabelError, match=r"data\.ignore_labels: 2 is in data\.foreground_labels too"):
        LabelValues(foreground=(2,), ignore=(2,))
    with pytest.raises(LabelError, match=r"data\.ignore_labels: 0\.5 in \(0\.5,\); label values are whole numbers"):
        LabelValues(ignore=(0.5,))
    with pytest.raises(LabelError, match=r"a\.nii: its value 0\.25 is no whole number"):
        target_of(np.full((2, 2, 2), 0.25, np.float32), LabelValues(ignore=(0,)), source="a.nii")
    values = LabelValues(foreground=(2, 4), ignore=(0,))
    assert label_values(values.record()) == values and label_values(None) == LabelValues()


def sparse(shape=(40, 24, 20), planes=(3, 31), seed=0):
    """A patch whose labels are on two planes alone."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 1000, shape).astype(np.uint16)
    target = np.full(shape, IGNORED, np.uint8)
    for plane in planes:
        target[plane] = image[plane] > 900
    return LabelledPatch("a", image, 10.0, 900.0, target)


@pytest.mark.parametrize("foreground_frac", [0.0, 0.5])
def test_every_crop_sees_annotated_voxels(foreground_frac):
    whole = LabelledPatch("b", sparse(seed=1).image, 10.0, 900.0, np.zeros((40, 24, 20), np.uint8))
    source = LabelledSource([sparse(), whole], patch_size=(8, 8, 8))
    stream = training_batches(source, batch_size=8, seed=3, foreground_frac=foreground_frac)
    crops = [row for batch in itertools.islice(stream, 25) for row in batch["target"][batch["sample"] == 0]]
    assert len(crops) > 80 and all((crop != IGNORED).any() for crop in crops)
    # Both planes are seen, at many depths of the crop and not at its faces alone.
    depths = {int(np.flatnonzero((crop != IGNORED).any(axis=(1, 2)))[0]) for crop in crops}
    assert len(depths) >= 3
    if foreground_frac:
        assert sum((crop == 1).any() for crop in crops) > 0.5 * len(crops)


def test_augmented_crops_hold_no_value_but_the_three():
    patch = sparse((16, 16, 16), planes=(2, 9))
    image = jnp.asarray(patch.image, jnp.float32)[None, ..., None] / 1000
    image, mask = jnp.repeat(image, 12, 0), jnp.repeat(jnp.asarray(patch.target)[None, ..., None], 12, 0)
    settings = AugmentSettings(flip_prob=0.5, rotate90_prob=0.5, affine_prob=1.0)
    _, moved = augment_pair(image, mask, jax.random.split(jax.random.key(0), 12), settings=settings)
    assert set(np.unique(moved)) == {0, 1, IGNORED} and moved.dtype == np.uint8
    share = np.mean(np.asarray(moved) == IGNORED, axis=(1, 2, 3, 4))
    assert (np.abs(share - np.mean(patch.target == IGNORED)) < 0.1).all()


@pytest.mark.parametrize("kept", [(slice(3, 9), slice(None), slice(None)), (slice(5, 6), slice(2, 12), slice(0, 9))])
def test_metrics_are_those_of_the_annotated_voxels(kept):
    rng = np.random.default_rng(5)
    prediction, truth = (rng.uniform(size=(2, 14, 13, 12)) > 0.6).astype(np.uint8)
    annotated = np.zeros(truth.shape, bool)
    annotated[kept] = True
    wild = np.where(annotated, prediction, rng.uniform(size=truth.shape) > 0.5)
    found = segmentation_scores(wild.astype(np.uint8), truth, annotated=annotated)
    assert found == pytest.approx(segmentation_scores(prediction[kept], truth[kept]))
    labelled = segmentation_scores(
        prediction * 7, truth * 5, prediction_is_labels=True, truth_is_labels=True, annotated=annotated
    )
    assert labelled["dice"] == pytest.approx(found["dice"]) and labelled["true_positives"] <= 1


def write_sparse(folder, count=3, size=20):
    """Patches whose labels are 2 on balls and 1 beside them on two planes, and 0 elsewhere."""
    for number in range(count):
        name = f"axon_patch_{number:03d}_vol{number:03d}_ch0"
        write_patch(folder, name, size=size, seed=number)
        label, _ = read_single(folder / f"{name}_label.nii.gz")
        planes = np.argsort(label.sum(axis=(1, 2)))[-2:]
        sparse_label = np.zeros_like(label)
        sparse_label[planes] = label[planes] + 1
        write_nifti(folder / f"{name}_label.nii.gz", sparse_label, like=None)
    return folder


def test_a_run_trains_and_is_judged_on_a_few_annotated_planes(tmp_path):
    folder = write_sparse(tmp_path / "patches")
    config = defaults("segment")
    config.data.folder, config.data.validation_frac, config.data.patch_size = str(folder), 0.34, (16, 16, 16)
    config.data.ignore_labels, config.data.foreground_labels = (0,), (2,)
    config.model.dtype, config.model.out_channels = "float32", 4
    config.model.unet.channels, config.model.unet.strides, config.model.unet.num_res_units = (4, 8), (2,), 1
    config.augment.probability, config.train.tensorboard, config.optim.learning_rate = 0.0, False, 0.02
    config.train.batch_size, config.train.epochs, config.data.crops_per_patch = 8, 16, 8
    lines = []
    setup = SETUPS["segment"](config, tmp_path / "run", print_line=lines.append)
    batch = next(iter(setup.validation))
    assert set(np.unique(batch["target"])) == {0, 1, IGNORED}
    assert setup.record["labels"] == {"foreground": [2], "background": [], "ignore": [0]}
    _, ending = execute(config, setup, tmp_path / "run", print_line=lines.append)
    assert ending.value == "all epochs done"
    found = [line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"validation"' in line]
    best = max(float(line.split('"dice": ')[1].split(",")[0]) for line in found)
    # Balls of a sixth of the planes; where 0 were background, or 1 foreground, this cannot be reached.
    assert best > 0.8


def test_a_patch_without_an_annotated_voxel_is_named(tmp_path):
    folder = write_sparse(tmp_path / "patches")
    name = "axon_patch_001_vol001_ch0_label.nii.gz"
    write_nifti(folder / name, np.zeros((20, 20, 20), np.uint8), like=None)
    config = defaults("segment")
    config.data.folder, config.data.ignore_labels, config.data.foreground_labels = str(folder), (0,), (2,)
    with pytest.raises(LabelledDataError, match=rf"{name}: every voxel has a value of data\.ignore_labels \(0,\)"):
        read_patches(config, tmp_path / "run", print_line=lambda line: None)


def test_a_sharp_volume_of_the_ignored_value_decides_on_no_crop():
    image = np.random.default_rng(0).integers(0, 255, (24, 24, 24)).astype(np.uint8)
    sharp = np.full_like(image, IGNORED)  # saturated, but for one voxel
    sharp[1, 1, 1] = 3
    source = LabelledSource([LabelledPatch("a", image, 0.0, 255.0, sharp, target_is_mask=False)], patch_size=(8, 8, 8))
    rows = [batch["target"] for batch in itertools.islice(training_batches(source, batch_size=8, seed=0), 5)]
    assert np.mean([(crop == 3).any() for row in rows for crop in row]) < 0.2


def test_windows_carry_what_is_ignored():
    source = LabelledSource([sparse()], patch_size=(16, 16, 16))
    counted = sum(
        int((batch["valid"] & (batch["target"] != IGNORED))[batch["weight"] > 0].sum())
        for batch in WindowBatches(source, batch_size=3)
    )
    assert counted == 2 * 24 * 20


def test_evaluate_leaves_ignored_voxels_out(tmp_path):
    folder = write_sparse(tmp_path / "labels")
    for path in sorted(folder.glob("*_ch0.nii.gz")):
        image, _ = read_single(path)
        name = path.name.replace(".nii.gz", "_mask.nii.gz")
        (tmp_path / "pred").mkdir(exist_ok=True)
        write_nifti(tmp_path / "pred" / name, (image > 400).astype(np.uint8), like=None)
    values = LabelValues(foreground=(2,), ignore=(0,), names=NAMES)
    result = evaluate_folders(tmp_path / "pred", folder, tmp_path / "s.csv", values=values)
    dice = [row.scores["dice"] for row in result.rows if row.method == "prediction"]
    assert min(dice) > 0.95
    assert result.settings["labels"] == "mask" and result.settings["ignore_labels"] == "0"
    plain = evaluate_folders(tmp_path / "pred", folder, tmp_path / "s.csv")
    assert max(row.scores["dice"] for row in plain.rows if row.method == "prediction") < 0.6


def test_a_run_from_before_there_was_a_key_resumes_at_its_default():
    config = defaults("segment")
    old = as_json(config)
    del old["data"]["ignore_labels"], old["data"]["allow_dense_masks"]
    assert differences(old, as_json(config)) == []
    config.data.ignore_labels = (0,)
    assert differences(old, as_json(config)) == ["data.ignore_labels: () -> [0]"]


def test_real_axons_of_two_planes(shared, tmp_path):
    folder = shared / "data" / "more" / "trailmap_labelled"
    config = defaults("segment")
    config.data.folder, config.data.ignore_labels, config.data.foreground_labels = str(folder), (0,), (2,)
    patches = read_patches(config, tmp_path / "run", print_line=lambda line: None)
    for patch in (*patches.train, *patches.validation):
        annotated = patch.target != IGNORED
        assert 2 <= annotated.any(axis=(1, 2)).sum() <= 4, patch.name
        assert 0 < patch.target[annotated].mean() < 0.3, patch.name
