"""The UNet by itself: shapes, names, statistics, refusals. Its numbers are compared in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lsmfm_jax.convert.convolutional import flatten
from lsmfm_jax.models.norm import BatchNorm, InstanceNorm
from lsmfm_jax.models.unet import UNet

TINY = UNet(channels=(4, 6, 8), strides=(2, 1), out_channels=5)


def draw(*shape, seed=0, shift=0.0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32) + shift)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(lambda x: TINY.init(jax.random.key(0), x, train=False))(draw(1, 4, 4, 4, 1))


def test_trunk_and_call(variables):
    x = draw(2, 8, 4, 6, 1)
    trunk = jax.jit(lambda x: TINY.apply(variables, x, train=False, method="trunk"))(x)
    dense = jax.jit(lambda x: TINY.apply(variables, x, train=False))(x)
    assert trunk.tail is None
    np.testing.assert_array_equal(trunk.values, dense)
    assert dense.shape == (2, 8, 4, 6, 5)
    assert [stage.shape for stage in trunk.stages] == [(2, 4, 2, 3, 4), (2, 4, 2, 3, 6), (2, 4, 2, 3, 8)]


def test_names_are_those_documented(variables):
    paths = set(flatten(variables["params"]))
    assert {path.split("/")[0] for path in paths} == {"down_0", "down_1", "bottom", "up_0", "up_1"}
    assert {path for path in paths if path.startswith("down_0/")} == {
        *(
            f"down_0/{layer}/{leaf}"
            for layer in ("residual", "unit_0/conv", "unit_1/conv")
            for leaf in ("kernel", "bias")
        ),
        *(f"down_0/unit_{i}/norm/{leaf}" for i in (0, 1) for leaf in ("scale", "bias")),
        *(f"down_0/unit_{i}/activation/slope" for i in (0, 1)),
    }
    # The top block ends in a convolution alone: nothing after it may bound or centre the features.
    assert {path for path in paths if path.startswith("up_0/unit_0/")} == {
        "up_0/unit_0/conv/kernel",
        "up_0/unit_0/conv/bias",
    }


def test_norms_start_as_identity_and_slopes_at_a_quarter(variables):
    start = {path.split("/", 2)[-1]: leaf for path, leaf in flatten(variables["params"]).items()}
    np.testing.assert_array_equal(start["norm/scale"], 1)
    np.testing.assert_array_equal(start["norm/bias"], 0)
    np.testing.assert_array_equal(start["activation/slope"], 0.25)


def test_only_the_top_block_depends_on_the_output_channels(variables):
    other = UNet(channels=(4, 6, 8), strides=(2, 1), out_channels=3)
    shapes = jax.eval_shape(lambda x: other.init(jax.random.key(0), x, train=False), draw(1, 4, 4, 4, 1))
    ours, theirs = flatten(variables), flatten(shapes)
    changed = {path for path in ours if ours[path].shape != theirs[path].shape}
    assert len(changed) == 8
    assert all(path.split("/")[1] == "up_0" for path in changed)


def test_statistics_move_in_training_only(variables):
    x = draw(2, 4, 4, 4, 1, shift=2.0)
    run = jax.jit(lambda train: TINY.apply(variables, x, train=train, mutable=["batch_stats"])[1], static_argnums=0)
    frozen, trained = run(False), run(True)
    for path, before in flatten(variables["batch_stats"]).items():
        np.testing.assert_array_equal(flatten(frozen)["batch_stats/" + path], before)
        assert not np.array_equal(flatten(trained)["batch_stats/" + path], before), path


def test_batch_norm_statistics_are_exact_far_from_zero():
    """A mean 10,000 times the spread; `E[x^2] - E[x]^2` in float32 would be noise there."""
    x = draw(2, 3, 4, 5, 2, shift=1e4)
    module = BatchNorm()
    y, updated = module.apply(module.init(jax.random.key(0), x, train=True), x, train=True, mutable=["batch_stats"])
    exact = np.asarray(x, np.float64).reshape(-1, 2)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * exact.var(0, ddof=1), rtol=1e-4)
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=3e-3)


def test_instance_norm_looks_at_one_sample():
    x = draw(2, 3, 4, 5, 2)
    y = InstanceNorm().apply({}, x, train=True)
    alone = InstanceNorm().apply({}, x[:1], train=False)
    np.testing.assert_allclose(y[:1], alone, atol=1e-6)
    np.testing.assert_allclose(np.asarray(y).mean((1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(np.asarray(y).var((1, 2, 3)), 1, atol=1e-4)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs more than one device (forced CPU devices will do)")
def test_batch_norm_of_a_sharded_batch_is_global():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    x = jnp.concatenate([draw(1, 2, 2, 2, 3), draw(1, 2, 2, 2, 3, seed=1, shift=5.0)])
    module = BatchNorm()
    start = module.init(jax.random.key(0), x, train=True)
    run = jax.jit(lambda x: module.apply(start, x, train=True, mutable=["batch_stats"]))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    for one, two in zip(jax.tree.leaves(run(x)), jax.tree.leaves(run(split)), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_compute_dtype_leaves_parameters_in_float32():
    half = UNet(channels=(4, 6), strides=(2,), num_res_units=1, out_channels=5, dtype=jnp.bfloat16)

    def run(x):
        start = half.init(jax.random.key(0), x, train=False)
        return start, half.apply(start, x, train=True, mutable=["batch_stats"], method="trunk")

    start, (trunk, updated) = jax.eval_shape(run, draw(1, 4, 4, 4, 1))
    assert trunk.values.dtype == jnp.bfloat16
    assert all(stage.dtype == jnp.bfloat16 for stage in trunk.stages)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((start, updated)))


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"strides": (2, 2)}, (8, 8, 8), "one entry fewer"),
        ({"channels": (4, 6), "strides": (2,), "norm": "group"}, (8, 8, 8), "'group'"),
        ({"channels": (4, 6), "strides": (2,), "num_res_units": 0}, (8, 8, 8), "num_res_units is 0"),
        ({"channels": (4, 6, 8), "strides": (2, 2)}, (8, 6, 8), r"\(8, 6, 8\) must be divisible by 4"),
    ],
)
def test_what_does_not_fit_is_refused(settings, size, message):
    with pytest.raises(ValueError, match=message):
        UNet(**settings).init(jax.random.key(0), jnp.zeros((1, *size, 1)), train=False)
