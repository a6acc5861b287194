"""The pretraining losses against plain forms that make the dense features at full size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.special import logsumexp, softmax

from lsmfm_jax.losses.linear_tail import inverse_norms, mean_normalised_features, rows_per_slab
from lsmfm_jax.losses.pretrain import (
    alignment,
    contrastive,
    distillation,
    reconstruction_l1,
    teacher_entropy_monitors,
)

BATCH, SIDE, TRUNK, DENSE = 2, (4, 6, 5), 5, 16
TEMPERATURES = {"student_temperature": 0.05, "teacher_temperature": 0.1}


def make_inputs(tail: bool, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    width = TRUNK if tail else DENSE
    tails = [(normal(TRUNK, DENSE), normal(DENSE)) if tail else None for _ in range(2)]
    return {
        "student": normal(BATCH, *SIDE, width),
        "student_tail": tails[0],
        "teacher": normal(BATCH, *SIDE, width),
        "teacher_tail": tails[1],
        "mask": jnp.asarray(rng.random((BATCH, *SIDE)) < 0.4),
    }


def plain_dense(values, tail):
    return values if tail is None else values @ tail[0] + tail[1]


def plain_normalised(values, tail):
    dense = plain_dense(values, tail)
    return dense / jnp.linalg.norm(dense, axis=-1, keepdims=True)


def plain_distillation(student, student_tail, teacher, teacher_tail, mask):
    """Per-sample sums with every channel of every voxel made."""
    teacher = plain_normalised(teacher, teacher_tail) / TEMPERATURES["teacher_temperature"]
    student = plain_normalised(student, student_tail) / TEMPERATURES["student_temperature"]
    probability = jax.nn.softmax(teacher)
    gap = jnp.log(probability) - jax.nn.log_softmax(student)
    return jnp.sum((probability * gap).sum(-1) * mask, axis=(1, 2, 3))


@pytest.mark.parametrize("tail", [True, False])
def test_distillation_equals_the_plain_form_with_its_gradients(tail):
    inputs = make_inputs(tail)
    mask = inputs["mask"]
    cotangent = jnp.asarray([0.3, -0.7])

    def ours(student, student_tail, teacher, teacher_tail, slab_voxels):
        sums = distillation(student, student_tail, teacher, teacher_tail, mask, **TEMPERATURES, slab_voxels=slab_voxels)
        return jnp.sum(sums.divergence * cotangent)

    def plain(student, student_tail):
        frozen = inputs["teacher"], inputs["teacher_tail"]
        return jnp.sum(plain_distillation(student, student_tail, *frozen, mask) * cotangent)

    arguments = tuple(inputs[name] for name in ("student", "student_tail", "teacher", "teacher_tail"))
    expected, expected_gradients = jax.value_and_grad(plain, argnums=(0, 1))(*arguments[:2])
    # 40 voxels a slab: two of the six rows, so three slabs.
    value, gradients = jax.value_and_grad(ours, argnums=(0, 1, 2, 3))(*arguments, 40)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for got, want in zip(jax.tree.leaves(gradients[:2]), jax.tree.leaves(expected_gradients), strict=True):
        assert np.abs(want).max() > 1e-2
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients[2:]))
    np.testing.assert_allclose(ours(*arguments, 10**9), value, rtol=1e-6)


def test_distillation_counts_and_monitors_equal_scipy():
    inputs = make_inputs(True)
    sums = distillation(*inputs.values(), **TEMPERATURES, slab_voxels=40)
    mask = np.asarray(inputs["mask"])
    np.testing.assert_array_equal(sums.voxels, mask.sum((1, 2, 3)))
    teacher = np.asarray(plain_normalised(inputs["teacher"], inputs["teacher_tail"]), np.float64)
    probability = softmax(teacher / TEMPERATURES["teacher_temperature"], axis=-1)[mask]
    mean = probability.mean(0)
    entropy = -(probability * np.log(probability)).sum(-1).mean()
    marginal = -(mean * np.log(mean)).sum()
    monitors = teacher_entropy_monitors(sums)
    np.testing.assert_allclose(monitors["teacher_entropy"], entropy, rtol=1e-5)
    np.testing.assert_allclose(monitors["teacher_marginal_entropy"], marginal, rtol=1e-5)
    np.testing.assert_allclose(monitors["teacher_information"], marginal - entropy, rtol=1e-4)


def test_a_collapsed_teacher_has_no_information():
    inputs = make_inputs(True)
    inputs["teacher"] = jnp.broadcast_to(inputs["teacher"][:1, :1, :1, :1], inputs["teacher"].shape)
    monitors = teacher_entropy_monitors(distillation(*inputs.values(), **TEMPERATURES))
    assert abs(float(monitors["teacher_information"])) < 1e-5
    assert float(monitors["teacher_entropy"]) > 0.1


def test_samples_without_masked_voxels_add_nothing():
    inputs = make_inputs(True)
    inputs["mask"] = inputs["mask"].at[1].set(False)
    sums = distillation(*inputs.values(), **TEMPERATURES)
    assert float(sums.divergence[0]) > 0
    assert all(not np.any(leaf[1]) for leaf in sums)


def test_voxels_of_zero_features_give_finite_loss_and_gradient():
    inputs = make_inputs(False)
    mask = jnp.ones_like(inputs["mask"])

    def loss(student):
        sums = distillation(student, None, jnp.zeros_like(student), None, mask, **TEMPERATURES)
        return sums.divergence.sum() + mean_normalised_features(student, None).sum()

    value, gradient = jax.value_and_grad(loss)(inputs["student"].at[:, 1].set(0.0))
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[:, 1])


@pytest.mark.parametrize("tail", [True, False])
def test_mean_of_normalised_features_equals_the_plain_form_with_its_gradients(tail):
    inputs = make_inputs(tail)
    arguments = inputs["student"], inputs["student_tail"]
    direction = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, DENSE)), jnp.float32)

    def value_of(mean):
        return jax.value_and_grad(lambda v, t: jnp.sum(mean(v, t) * direction), argnums=(0, 1))(*arguments)

    plain, plain_gradients = value_of(lambda v, t: plain_normalised(v, t).mean((1, 2, 3)))
    ours, gradients = value_of(mean_normalised_features)
    np.testing.assert_allclose(ours, plain, rtol=1e-5)
    for got, want in zip(jax.tree.leaves(gradients), jax.tree.leaves(plain_gradients), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_bfloat16_features_have_the_norm_that_is_computed_for_them():
    inputs = make_inputs(True)
    values, (kernel, bias) = inputs["student"].astype(jnp.bfloat16), inputs["student_tail"]
    rounded = np.asarray(kernel.astype(jnp.bfloat16), np.float64)
    dense = np.asarray(values, np.float64) @ rounded + np.asarray(bias, np.float64)
    np.testing.assert_allclose(inverse_norms(values, (kernel, bias)) * np.linalg.norm(dense, axis=-1), 1, 1e-5)


def test_the_dense_features_are_never_made():
    values = jax.ShapeDtypeStruct((1, 16, 16, 16, 4), jnp.float32)
    tail = (jax.ShapeDtypeStruct((4, 256), jnp.float32), jax.ShapeDtypeStruct((256,), jnp.float32))
    mask = jax.ShapeDtypeStruct((1, 16, 16, 16), jnp.bool_)

    def loss(student, student_tail, teacher, teacher_tail, mask):
        sums = distillation(student, student_tail, teacher, teacher_tail, mask, **TEMPERATURES, slab_voxels=256)
        return sums.divergence.sum() + mean_normalised_features(student, student_tail).sum()

    step = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(values, tail, values, tail, mask).compile()
    full = 16**3 * 256 * 4
    assert step.memory_analysis().temp_size_in_bytes < full


def test_a_mesh_over_batch_and_depth_needs_no_gather():
    mesh = jax.make_mesh((2, 2), ("data", "depth"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    voxels, whole = NamedSharding(mesh, P("data", "depth")), NamedSharding(mesh, P())
    inputs = make_inputs(True)

    def loss(student, student_tail, teacher, teacher_tail, mask):
        sums = distillation(student, student_tail, teacher, teacher_tail, mask, **TEMPERATURES, slab_voxels=40)
        return sums.divergence.sum() + (mean_normalised_features(student, student_tail) ** 2).sum()

    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    shardings = (voxels, whole, voxels, whole, voxels)
    sharded = jax.jit(gradient, in_shardings=shardings).lower(*inputs.values()).compile()
    text = sharded.as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text
    got = sharded(*(jax.device_put(leaf, place) for leaf, place in zip(inputs.values(), shardings, strict=True)))
    for ours, alone in zip(jax.tree.leaves(got), jax.tree.leaves(gradient(*inputs.values())), strict=True):
        np.testing.assert_allclose(ours, alone, atol=1e-5 * np.abs(alone).max())


def test_slabs_are_the_largest_divisor_that_fits():
    assert rows_per_slab((64, 64, 64), 8192) == 2
    assert rows_per_slab((4, 6, 5), 70) == 3
    assert rows_per_slab((4, 7, 5), 60) == 1
    assert rows_per_slab((64, 64, 64), 1) == 1


def test_reconstruction_and_alignment_by_hand():
    prediction = jnp.arange(8.0).reshape(1, 2, 2, 2, 1)
    mask = jnp.zeros((1, 2, 2, 2), bool).at[0, 1, 1].set(True)
    np.testing.assert_allclose(reconstruction_l1(prediction, 0.5 - 0 * prediction, mask), [5.5 + 6.5])
    image, text = jnp.asarray([[1.0, 0.0], [0.6, 0.8]]), jnp.asarray([[0.0, 1.0], [0.6, 0.8]])
    np.testing.assert_allclose(alignment(image, text), [1.0, 0.0], atol=1e-6)
    assert not np.any(jax.grad(lambda t: alignment(image, t).sum())(text))


def unit_rows(rng, *shape):
    rows = rng.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_contrastive_equals_a_loop_over_pairs():
    rng = np.random.default_rng(2)
    image, text = unit_rows(rng, 6, 4), unit_rows(rng, 6, 4)
    keys = np.asarray([0, 1, 0, 2, 1, 0])
    scores = 7.0 * image.astype(np.float64) @ text.astype(np.float64).T
    rows = []
    for s in (scores, scores.T):
        log_softmax = s - logsumexp(s, axis=1, keepdims=True)
        for i in range(6):
            rows.append(-np.mean([log_softmax[i, j] for j in range(6) if keys[i] == keys[j]]))
    value = contrastive(jnp.asarray(image), jnp.asarray(text), jnp.float32(7.0), keys=jnp.asarray(keys))
    np.testing.assert_allclose(value, np.mean(rows), rtol=1e-5)


def test_contrastive_without_keys_is_one_key_a_sample_and_weight_zero_leaves_out():
    rng = np.random.default_rng(3)
    image, text = jnp.asarray(unit_rows(rng, 5, 4)), jnp.asarray(unit_rows(rng, 5, 4))
    scale, keys = jnp.float32(10.0), jnp.asarray([0, 1, 0, 1, 1])
    plain = contrastive(image, text, scale)
    np.testing.assert_allclose(plain, contrastive(image, text, scale, keys=jnp.arange(5)), rtol=1e-6)
    assert abs(float(plain) - float(contrastive(image, text, scale, keys=keys))) > 1e-2

    weight = jnp.asarray([1.0, 1.0, 1.0, 0.0, 0.0])
    short = contrastive(image[:3], text[:3], scale, keys=keys[:3])
    padded = contrastive(image, text, scale, keys=keys, weight=weight)
    np.testing.assert_allclose(padded, short, rtol=1e-6)
    gradient = jax.grad(lambda i: contrastive(i, text, scale, weight=weight))(image)
    assert np.any(gradient[:3])
    assert not np.any(gradient[3:])
    assert float(contrastive(image, text, scale, weight=jnp.zeros(5))) == 0.0
