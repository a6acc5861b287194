"""The kernels of distillation, run by JAX's own operations, against the plain form and a computation in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.special import log_softmax

from lsmfm_jax.config.load import load_config
from lsmfm_jax.losses import pretrain
from lsmfm_jax.losses.fused_distillation import Form, distillation_sums
from lsmfm_jax.tasks.pretrain import pretraining_task

BATCH = 2
COTANGENT = np.asarray([0.3, -0.7])


def make_inputs(side, *, trunk=None, dense, dtype=jnp.float32, density=0.4, seed=0):
    """Student, its tail, teacher, its tail, mask; without `trunk` there are no tails."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def network():
        values = normal(BATCH, *side, trunk or dense).astype(dtype)
        return values, (normal(trunk, dense), normal(dense)) if trunk else None

    return *network(), *network(), jnp.asarray(rng.random((BATCH, *side)) < density)


def forms(temperatures, *, channels_first=True):
    """The plain form, and the kernels interpreted."""
    student, teacher = temperatures
    settings = {"student_temperature": student, "teacher_temperature": teacher}
    plain = partial(pretrain._plain_sums, **settings, slab_voxels=10**9)
    return plain, partial(distillation_sums, Form(student, teacher, plain, channels_first, interpret=True))


def value_and_gradients(form, inputs):
    def loss(student, student_tail):
        sums = form(student, student_tail, *inputs[2:])
        return jnp.sum(sums[0] * COTANGENT.astype(np.float32)), sums

    (_, sums), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*inputs[:2])
    return sums, jax.tree.leaves(gradients)


def in_float64(inputs, temperatures):
    """Divergence, entropy and probabilities, written down from their definitions."""
    student, student_tail, teacher, teacher_tail, mask = inputs

    def logarithms(values, tail, temperature):
        features = np.asarray(values, np.float64)
        if tail is not None:
            kernel = np.asarray(tail[0].astype(values.dtype), np.float64)
            features = features @ kernel + np.asarray(tail[1], np.float64)
        return log_softmax(features / np.linalg.norm(features, axis=-1, keepdims=True) / temperature, axis=-1)

    log_p = logarithms(teacher, teacher_tail, temperatures[1])
    log_q = logarithms(student, student_tail, temperatures[0])
    p, mask = np.exp(log_p), np.asarray(mask)
    voxels = (1, 2, 3)
    return (
        ((p * (log_p - log_q)).sum(-1) * mask).sum(voxels),
        -((p * log_p).sum(-1) * mask).sum(voxels),
        (p * mask[..., None]).sum(voxels),
    )


def close(got, expected, tolerance):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


CASES = {
    "tiles of channels": {"side": (2, 9, 10), "trunk": 36, "dense": 512},
    "channels beyond the last": {"side": (1, 8, 16), "trunk": 5, "dense": 100},
    "no tail": {"side": (3, 5, 7), "dense": 128},
    "no tail, several tiles, the last not full": {"side": (2, 4, 17), "dense": 200},
}


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_sums_and_gradients_equal_float64_and_the_plain_form(name, channels_first):
    temperatures = (0.05, 0.1)
    inputs = make_inputs(**CASES[name])
    plain, fused = forms(temperatures, channels_first=channels_first)
    sums, gradients = value_and_gradients(fused, inputs)
    for got, expected in zip(sums, in_float64(inputs, temperatures), strict=True):
        assert np.abs(expected).max() > 0.1
        close(got, expected, 1e-5)
    expected_sums, expected_gradients = value_and_gradients(plain, inputs)
    for got, expected in zip((*sums, *gradients), (*expected_sums, *expected_gradients), strict=True):
        assert np.abs(expected).max() > 1e-3
        assert got.dtype == expected.dtype
        close(got, expected, 1e-5)


@pytest.mark.parametrize("name", ["tiles of channels", "no tail"])
def test_gradients_equal_finite_differences_in_float64(name):
    temperatures = (0.05, 0.1)
    inputs = make_inputs(**CASES[name])
    _, gradients = value_and_gradients(forms(temperatures)[1], inputs)
    leaves, tree = jax.tree.flatten(inputs[:2])
    rng = np.random.default_rng(1)
    for index, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)

        def moved(step, index=index, direction=direction):
            # In float64 from here on, so that the step may be small.
            new = [np.asarray(leaf, np.float64) for leaf in leaves]
            new[index] = new[index] + step * direction
            return in_float64((*jax.tree.unflatten(tree, new), *inputs[2:]), temperatures)[0] @ COTANGENT

        expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
        assert abs(expected) > 1e-2
        assert np.sum(np.asarray(gradient, np.float64) * direction) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("trunk", [36, None])
def test_small_temperatures_neither_overflow_nor_vanish(trunk):
    inputs = make_inputs((1, 6, 9), trunk=trunk, dense=128)
    temperatures = (0.001, 0.002)
    plain, fused = forms(temperatures)
    sums, gradients = value_and_gradients(fused, inputs)
    expected, expected_gradients = value_and_gradients(plain, inputs)
    for got, wanted in zip((*sums, *gradients), (*expected, *expected_gradients), strict=True):
        # Logits go up to 1000, of which float32 knows four digits after the point.
        close(got, wanted, 1e-4)
    close(sums[0], in_float64(inputs, temperatures)[0], 1e-5)


@pytest.mark.parametrize(("trunk", "channels_first"), [(36, True), (None, True), (None, False)])
def test_masks_with_few_voxels_with_none_and_with_all(trunk, channels_first):
    side, temperatures = (2, 17, 18), (0.05, 0.1)
    inputs = make_inputs(side, trunk=trunk, dense=128)
    mask = np.zeros((BATCH, *side), bool)
    mask[0, 1, 16, 17] = mask[0, 0, 3, 5] = True
    plain, fused = forms(temperatures, channels_first=channels_first)
    for masked in (mask, np.ones_like(mask)):
        given = (*inputs[:4], jnp.asarray(masked))
        sums, gradients = value_and_gradients(fused, given)
        expected, expected_gradients = value_and_gradients(plain, given)
        for got, wanted in zip((*sums, *gradients), (*expected, *expected_gradients), strict=True):
            close(got, wanted, 1e-5)
        np.testing.assert_array_equal(np.any(gradients[0], axis=-1), masked)
    sums, gradients = value_and_gradients(fused, (*inputs[:4], jnp.zeros_like(inputs[4])))
    assert all(not np.any(leaf) for leaf in (*sums, *gradients))


def test_voxels_without_features_have_finite_loss_and_no_gradient():
    student, _, teacher, _, mask = make_inputs((2, 8, 8), dense=16)
    inputs = (student.at[:, 1].set(0.0), None, jnp.zeros_like(teacher), None, jnp.ones_like(mask))
    sums, (gradient,) = value_and_gradients(forms((0.05, 0.1))[1], inputs)
    # The uniform distribution has the entropy log 16.
    close(sums[1], np.full(BATCH, 128 * np.log(16)), 1e-5)
    assert np.all(np.isfinite(gradient)) and np.any(gradient[:, 0]) and not np.any(gradient[:, 1])


@pytest.mark.parametrize("trunk", [36, None])
def test_bfloat16_values_are_computed_with_in_float32(trunk):
    temperatures = (0.05, 0.1)
    inputs = make_inputs((2, 9, 10), trunk=trunk, dense=256, dtype=jnp.bfloat16)
    plain, fused = forms(temperatures)
    sums, gradients = value_and_gradients(fused, inputs)
    for got, expected in zip(sums, in_float64(inputs, temperatures), strict=True):
        close(got, expected, 1e-5)
    wide = (*(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), x) for x in inputs[:4]),)
    # Biases stay as they are.
    wide = tuple(x if i % 2 == 0 or x is None else (x[0], inputs[i][1]) for i, x in enumerate(wide))
    _, expected = value_and_gradients(plain, (*wide, inputs[4]))
    assert gradients[0].dtype == jnp.bfloat16
    for got, wanted in zip(gradients, expected, strict=True):
        # Eight binary digits, of which products and the result each lose the last.
        close(got, wanted, 2.0**-8)


def test_a_mesh_over_batch_and_depth_needs_no_gather():
    mesh = jax.make_mesh((2, 2), ("data", "depth"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    voxels, whole = NamedSharding(mesh, P("data", "depth")), NamedSharding(mesh, P())
    for channels_first in (True, False):
        inputs = make_inputs((4, 9, 10), trunk=20, dense=48)
        fused = forms((0.05, 0.1), channels_first=channels_first)[1]

        def loss(*inputs, fused=fused):
            sums = fused(*inputs)
            return sums[0].sum(), sums

        gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        shardings = (voxels, whole, voxels, whole, voxels)
        sharded = jax.jit(gradient, in_shardings=shardings).lower(*inputs).compile()
        text = sharded.as_text()
        assert "all-reduce" in text
        assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))
        got = sharded(*(jax.device_put(leaf, place) for leaf, place in zip(inputs, shardings, strict=True)))
        assert got[1][0].sharding.is_equivalent_to(voxels, 5)
        for ours, alone in zip(jax.tree.leaves(got), jax.tree.leaves(jax.jit(gradient)(*inputs)), strict=True):
            close(ours, alone, 1e-6)


@pytest.mark.parametrize("trunk", [5, None])
def test_without_a_card_fused_is_the_plain_form(trunk):
    inputs = make_inputs((4, 6, 5), trunk=trunk, dense=16)

    def loss(student, student_tail, kernels):
        settings = {"student_temperature": 0.05, "teacher_temperature": 0.1, "slab_voxels": 40, "kernels": kernels}
        sums = pretrain.distillation(student, student_tail, *inputs[2:], **settings)
        return jnp.sum(sums.divergence * COTANGENT.astype(np.float32)), sums

    def results(kernels):
        return jax.jit(jax.value_and_grad(partial(loss, kernels=kernels), argnums=(0, 1), has_aux=True))(*inputs[:2])

    for fused, plain in zip(*(jax.tree.leaves(results(kernels)) for kernels in ("fused", "plain")), strict=True):
        assert np.any(plain)
        # The compiler fuses either in its own way, so the last bit may differ.
        close(fused, plain, 1e-6)


def _for_cards(dtype, trunk, channels_first):
    """The loss and its gradient lowered for NVIDIA cards, as text."""
    inputs = make_inputs((2, 8, 16), trunk=trunk, dense=128, dtype=dtype)

    def loss(student, student_tail):
        settings = {"student_temperature": 0.05, "teacher_temperature": 0.1, "channels_first": channels_first}
        return pretrain.distillation(student, student_tail, *inputs[2:], **settings, kernels="fused").divergence.sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(*inputs[:2])
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.skipif(
    tuple(map(int, jaxlib.__version__.split(".")[:3])) > (0, 10, 2), reason="later ones compile kernels as they lower"
)
@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("trunk", [36, None])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_for_cards_the_kernels_are_lowered_and_no_loop_is_left(dtype, trunk, channels_first):
    with jax.enable_x64(dtype == jnp.float64):
        text = _for_cards(dtype, trunk, channels_first)
    # In float64, which is for checking the formula, there are none.
    kernels = 0 if dtype == jnp.float64 else 3 if trunk else 2
    assert text.count("@__gpu$xla.gpu.triton") == kernels
    assert ("stablehlo.while" in text) == (kernels == 0)


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_the_key_reaches_the_loss_of_pretraining(kernels):
    given = [f"--config.train.kernels={kernels}", "--config.train.batch_size=1"]
    config = load_config("pretrain_unet:tiny_image_only", given)
    task = pretraining_task(config, None, warmup_steps=0)
    params, batch_stats = jax.eval_shape(task.init, jax.random.key(0))
    teacher = jax.eval_shape(task.teacher_of, params, batch_stats)
    volume = jax.ShapeDtypeStruct((1, *config.data.input_size, 1), jnp.float32)
    rows = {"image": volume, "mask": jax.ShapeDtypeStruct(volume.shape[:-1], bool)}
    rows |= {name: jax.ShapeDtypeStruct((1,), jnp.float32) for name in ("weight", "voxel_weight")}
    program = str(jax.make_jaxpr(task.local)(params, batch_stats, teacher, rows, 0))
    assert ("pallas_call" in program) == (kernels == "fused")
