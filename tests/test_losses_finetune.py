"""The finetuning losses on examples with known answers, and against scikit-learn, scipy and scikit-image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from sklearn.utils.class_weight import compute_class_weight

from lsmfm_jax.losses import classify, deblur, segment


def volume(array) -> jnp.ndarray:
    return jnp.asarray(np.asarray(array, np.float32)[None, ..., None])


def test_dice_of_a_half_right_prediction():
    target = np.zeros((2, 2, 2))
    target[0] = 1
    logits = np.full((2, 2, 2), -40.0)
    logits[:, 0] = 40.0  # 4 voxels, 2 of them right
    assert segment.dice(volume(logits), volume(target))[0] == pytest.approx(1 - 2 * 2 / 8, abs=1e-5)


def test_focal_and_cross_entropy_at_logit_zero():
    logits, target = volume(np.zeros((2, 2, 2))), volume(np.ones((2, 2, 2)))
    assert segment.cross_entropy(logits, target)[0] == pytest.approx(np.log(2), rel=1e-6)
    assert segment.focal(logits, target)[0] == pytest.approx(0.25 * 0.25 * np.log(2), rel=1e-6)
    assert segment.focal(logits, 1 - target)[0] == pytest.approx(0.75 * 0.25 * np.log(2), rel=1e-6)


def test_an_empty_truth_gives_a_finite_loss_that_falls_towards_an_empty_prediction():
    target = jnp.zeros((1, 8, 8, 8, 1))
    loss = jax.value_and_grad(lambda x: jnp.mean(segment.segmentation_loss(x, target, cl_dice_frac=0.3)))
    wrong, gradient = loss(jnp.full_like(target, 2.0))
    right, _ = loss(jnp.full_like(target, -40.0))
    assert np.isfinite(gradient).all()
    assert right < 1e-4 < 0.5 < wrong


def test_soft_skeleton_of_a_bar_is_its_centre_line():
    bar = np.zeros((9, 9, 15))
    bar[3:6, 3:6, 2:13] = 1
    skeleton = np.asarray(segment.soft_skeleton(volume(bar)))[0, ..., 0]
    expected = np.zeros_like(bar)
    expected[4, 4, 3:12] = 1
    np.testing.assert_array_equal(skeleton, expected)


def test_soft_skeleton_erodes_and_dilates_as_scipy_does():
    random = np.random.default_rng(0).uniform(size=(6, 7, 8)).astype(np.float32)
    cross, box = ndimage.generate_binary_structure(3, 1), np.ones((3, 3, 3))
    eroded = ndimage.grey_erosion(random, footprint=cross, mode="constant", cval=np.inf)
    opened = ndimage.grey_dilation(eroded, footprint=box, mode="constant", cval=-np.inf)
    skeleton = segment.soft_skeleton(volume(random), iterations=0)
    np.testing.assert_allclose(np.asarray(skeleton)[0, ..., 0], np.maximum(random - opened, 0), atol=1e-7)


def test_cl_dice_sees_a_gap_that_dice_hardly_sees():
    vessel = np.zeros((9, 9, 40))
    vessel[3:6, 3:6, :] = 1
    gap, thin = vessel.copy(), vessel.copy()
    gap[:, :, 19:21] = 0
    thin[3] = 0
    logits = [volume(80.0 * x - 40.0) for x in (gap, thin)]
    whole = volume(vessel)
    assert segment.dice(logits[0], whole)[0] < segment.dice(logits[1], whole)[0]
    assert segment.cl_dice(logits[0], whole)[0] > 0.01 + segment.cl_dice(logits[1], whole)[0]


@pytest.mark.parametrize("name", ["dice_focal", "dice_ce"])
def test_the_loss_of_a_sample_does_not_depend_on_others_in_its_batch(name):
    random = np.random.default_rng(1)
    logits = random.normal(size=(3, 11, 11, 11, 1)).astype(np.float32)
    target = (random.uniform(size=(3, 11, 11, 11, 1)) > 0.5).astype(np.float32)
    segmentation = functools.partial(segment.segmentation_loss, name=name, cl_dice_frac=0.2)
    for loss in (segmentation, lambda x, y: deblur.deblur_terms(x, y)["loss"]):
        whole, alone = jax.jit(loss)(logits, target), jax.jit(loss)(logits[1:2], target[1:2])
        np.testing.assert_allclose(whole[1:2], alone, rtol=1e-6)
        assert len(set(np.asarray(whole).tolist())) == 3


def test_classes_that_weigh_nothing_give_a_loss_of_zero():
    shares = classify.shares_by_class(jnp.array([0.0, 1.0]), jnp.zeros(3, jnp.int32))
    assert not np.asarray(shares).any()


def test_an_unknown_loss_is_refused():
    volumes = jnp.zeros((1, 4, 4, 4, 1))
    with pytest.raises(ValueError, match=r"'tversky' is unknown; allowed: dice_focal, dice_ce"):
        segment.segmentation_loss(volumes, volumes, name="tversky")


def test_the_share_of_cl_dice_mixes_and_is_checked():
    random = np.random.default_rng(2)
    logits = jnp.asarray(random.normal(size=(1, 8, 8, 8, 1)), jnp.float32)
    target = jnp.asarray(random.uniform(size=(1, 8, 8, 8, 1)) > 0.5, jnp.float32)
    base = segment.segmentation_loss(logits, target, name="dice_ce")[0]
    lines = segment.cl_dice(logits, target)[0]
    mixed = segment.segmentation_loss(logits, target, name="dice_ce", cl_dice_frac=0.3)[0]
    assert mixed == pytest.approx(0.7 * float(base) + 0.3 * float(lines), rel=1e-6)
    with pytest.raises(ValueError, match=r"cl_dice_frac is 1\.5"):
        segment.segmentation_loss(logits, target, cl_dice_frac=1.5)


def test_half_precision_logits_are_computed_in_float32():
    logits = jnp.full((1, 4, 4, 4, 1), 3.0, jnp.bfloat16)
    target = jnp.ones((1, 4, 4, 4, 1), jnp.bfloat16)
    loss = segment.segmentation_loss(logits, target)[0]
    assert loss.dtype == jnp.float32
    exact = segment.segmentation_loss(logits.astype(jnp.float32), target.astype(jnp.float32))[0]
    assert loss == exact


def test_deblur_terms_of_a_brightness_offset():
    target = volume(np.random.default_rng(3).uniform(0.1, 0.8, (12, 12, 12)))
    terms = {name: values[0] for name, values in deblur.deblur_terms(target + 0.1, target).items()}
    assert terms["l1"] == pytest.approx(0.1, rel=1e-5)
    # An offset changes neither edges nor detail, at the border of the volume neither.
    assert terms["edge"] == pytest.approx(0, abs=1e-6)
    assert terms["high_frequency"] == pytest.approx(0, abs=1e-6)
    assert terms["loss"] == pytest.approx(0.1 + 0.2 * (1 - float(terms["ssim"])), abs=1e-6)


def test_deblur_loss_of_equal_volumes_is_zero():
    target = volume(np.random.default_rng(4).uniform(size=(12, 12, 12)))
    terms = {name: values[0] for name, values in deblur.deblur_terms(target, target).items()}
    assert terms["loss"] == pytest.approx(0, abs=1e-6)
    assert terms["ssim"] == pytest.approx(1, abs=1e-6)


def test_edge_error_sums_over_axes_and_ignores_the_sign_of_a_gradient():
    ramp = np.broadcast_to(np.arange(4) / 4, (4, 4, 4)).astype(np.float32)
    flat = np.zeros_like(ramp)
    assert deblur.edge_error(volume(ramp), volume(flat))[0] == pytest.approx(0.25)
    assert deblur.edge_error(volume(ramp), volume(ramp[:, :, ::-1]))[0] == pytest.approx(0)
    diagonal = ramp + ramp.transpose(2, 0, 1) + ramp.transpose(1, 2, 0)
    assert deblur.edge_error(volume(diagonal), volume(flat))[0] == pytest.approx(0.75)


def test_high_frequency_error_is_that_of_scipy_inside_the_volume():
    random = np.random.default_rng(5).uniform(size=(2, 7, 8, 9)).astype(np.float32)
    ones = np.ones_like(random[0])
    mean = [
        ndimage.uniform_filter(v, 3, mode="constant") / ndimage.uniform_filter(ones, 3, mode="constant") for v in random
    ]
    expected = np.abs((random[0] - mean[0]) - (random[1] - mean[1])).mean()
    assert deblur.high_frequency_error(volume(random[0]), volume(random[1]))[0] == pytest.approx(expected, rel=1e-4)


def test_ssim_names_a_volume_that_is_too_thin():
    thin = volume(np.zeros((8, 12, 12)))
    with pytest.raises(ValueError, match=r"at least 11 voxels.*\(8, 12, 12\)"):
        deblur.ssim(thin, thin)


def test_class_weights():
    counts = np.array([6, 3, 1])
    labels = np.repeat(np.arange(3), counts)
    balanced = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(classify.class_weights(counts, method="inverse_frequency"), balanced, rtol=1e-6)
    np.testing.assert_array_equal(classify.class_weights(counts, method="none"), [1, 1, 1])
    effective = classify.class_weights(counts, method="effective_number", beta=0.9)
    numbers = (1 - 0.9**counts) / (1 - 0.9)
    np.testing.assert_allclose(effective, 3 / numbers / (1 / numbers).sum(), rtol=1e-6)
    np.testing.assert_allclose(classify.class_weights(counts, method="effective_number", beta=0.0), 1, rtol=1e-6)


@pytest.mark.parametrize("method", classify.CLASS_WEIGHTS)
def test_a_class_without_samples_weighs_nothing_and_changes_no_other(method):
    with_absent = classify.class_weights(np.array([4, 0, 2]), method=method)
    assert with_absent[1] == 0
    np.testing.assert_allclose(with_absent[[0, 2]], classify.class_weights(np.array([4, 2]), method=method))


@pytest.mark.parametrize(
    ("counts", "method", "beta", "message"),
    [
        ([1, 2], "balanced", 0.9, "'balanced' is unknown"),
        ([1, 2], "effective_number", 1.0, "beta is 1.0"),
        ([0, 0], "none", 0.9, "at least one"),
    ],
)
def test_class_weights_names_what_is_wrong(counts, method, beta, message):
    with pytest.raises(ValueError, match=message):
        classify.class_weights(np.array(counts), method=method, beta=beta)


def test_weighted_cross_entropy_of_two_samples():
    logits = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]]))
    labels = jnp.array([0, 0])
    losses = classify.cross_entropy(logits, labels)
    np.testing.assert_allclose(losses, [-np.log(0.9), -np.log(0.2)], rtol=1e-5)
    shares = classify.shares_by_class(jnp.array([1.0, 3.0]), jnp.array([0, 1]))
    np.testing.assert_allclose(shares, [0.25, 0.75], rtol=1e-6)
