"""The heads of pretraining: the decoder behind a tail, the projections, the logit scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import correlate

from lsmfm_jax.models.heads import LightDecoder, ProjectionHead, initial_logit_scale, logit_scale

SHAPE, TRUNK, DENSE = (1, 4, 5, 6), 3, 7


@pytest.fixture(scope="module")
def trunk():
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((*SHAPE, TRUNK), (TRUNK, DENSE), (DENSE,)))


def test_decoder_behind_a_tail_equals_the_decoder_of_dense_features(trunk):
    values, kernel, bias = trunk
    decoder = LightDecoder()
    params = decoder.init(jax.random.key(0), values, (kernel, bias))["params"]
    # Large enough that the bias in the padding decides the border voxels.
    bias = 5.0 * bias
    assert params["conv_0"]["kernel"].shape == (3, 3, 3, DENSE, 64)

    def factorised(params, values, kernel, bias):
        return decoder.apply({"params": params}, values, (kernel, bias))

    def plain(params, values, kernel, bias):
        return decoder.apply({"params": params}, values @ kernel + bias)

    arguments = params, values, kernel, bias
    expected = plain(*arguments)
    assert expected.shape == (*SHAPE, 1)
    np.testing.assert_allclose(factorised(*arguments), expected, atol=1e-5)

    direction = jnp.asarray(np.random.default_rng(1).normal(size=expected.shape), jnp.float32)
    got, want = (
        jax.grad(lambda *a, f=f: jnp.sum(f(*a) * direction), argnums=(0, 1, 2, 3))(*arguments)
        for f in (factorised, plain)
    )
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_decoder_equals_scipy(trunk):
    values = trunk[0]
    params = LightDecoder().init(jax.random.key(1), values)["params"]
    hidden = np.asarray(values[0], np.float64)
    for layer in ("conv_0", "conv_1", "conv_2"):
        kernel, bias = np.asarray(params[layer]["kernel"], np.float64), np.asarray(params[layer]["bias"])
        hidden = np.stack(
            [
                bias[c]
                + sum(correlate(hidden[..., f], kernel[..., f, c], mode="constant") for f in range(kernel.shape[3]))
                for c in range(kernel.shape[4])
            ],
            axis=-1,
        )
        hidden = hidden if layer == "conv_2" else np.maximum(hidden, 0)
    np.testing.assert_allclose(LightDecoder().apply({"params": params}, values)[0], hidden, atol=1e-5)


def test_projection_equals_numpy_and_keeps_a_zero_vector_finite():
    x = np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32)
    head = ProjectionHead(8)
    params = head.init(jax.random.key(0), jnp.asarray(x))["params"]
    hidden = np.maximum(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"], 0)
    hidden = hidden @ params["dense_1"]["kernel"] + params["dense_1"]["bias"]
    hidden = (hidden - hidden.mean(1, keepdims=True)) / np.sqrt(hidden.var(1, keepdims=True) + 1e-5)
    expected = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    np.testing.assert_allclose(head.apply({"params": params}, jnp.asarray(x)), expected, atol=1e-5)
    assert np.abs(params["dense_0"]["bias"]).max() > 0

    # Scale 0 and bias 0 in the norm make every embedding the zero vector.
    params["norm"]["scale"] = jnp.zeros(8)
    value, gradient = jax.value_and_grad(lambda p: head.apply({"params": p}, jnp.asarray(x)).sum())(params)
    assert float(value) == 0.0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_logit_scale_starts_at_one_over_temperature_and_is_clamped():
    parameter = initial_logit_scale(0.1)
    np.testing.assert_allclose(logit_scale(parameter), 10.0, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(logit_scale)(parameter), 10.0, rtol=1e-6)
    assert float(logit_scale(jnp.float32(9.0))) == 100.0
    assert float(logit_scale(jnp.float32(-9.0))) == pytest.approx(1e-3)
    with pytest.raises(ValueError, match="above 0"):
        initial_logit_scale(0.0)
