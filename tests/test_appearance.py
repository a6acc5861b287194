"""How samples vary in looks: each step does what it says, keyed by sample, and strengths of 0 change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsmfm_jax.appearance import Appearance, vary_appearance

SHAPE = (4, 12, 14, 16, 1)


def keys(seed: int = 0, count: int = SHAPE[0]) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


def images(seed: int = 1) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).uniform(0.1, 0.6, SHAPE), jnp.float32)


def test_without_strength_nothing_changes():
    settings = Appearance(background=0.2)
    assert not settings.changes
    np.testing.assert_array_equal(vary_appearance(images(), keys(), settings=settings), images())


def test_contrast_stretches_about_the_background():
    settings = Appearance(background=0.2, contrast=0.8)
    result = np.asarray(vary_appearance(images(), keys(), settings=settings))
    factors = (result - 0.2) / (np.asarray(images()) - 0.2)
    spread = factors.reshape(SHAPE[0], -1)
    np.testing.assert_allclose(spread, np.median(spread, axis=1, keepdims=True) * np.ones_like(spread), rtol=2e-3)
    of_sample = np.median(spread, axis=1)
    assert len({round(float(f), 4) for f in of_sample}) == SHAPE[0]
    assert (np.abs(np.log(of_sample)) <= 0.8).all()
    level = jnp.full(SHAPE, 0.2)
    np.testing.assert_allclose(vary_appearance(level, keys(), settings=settings), level, atol=1e-6)


def test_contrast_reaches_both_ways_over_many_samples():
    settings = Appearance(contrast=0.8)
    factors = np.asarray(vary_appearance(jnp.ones((400, 1, 1, 1, 1)), keys(3, 400), settings=settings)).ravel()
    logs = np.log(factors)
    assert logs.min() < -0.7 and logs.max() > 0.7 and abs(logs.mean()) < 0.1


def test_gamma_keeps_order_and_what_is_below_the_background():
    settings = Appearance(background=0.3, gamma=0.7)
    line = jnp.linspace(0.0, 1.0, 64).reshape(1, 1, 1, 64, 1)
    result = np.asarray(vary_appearance(line, keys(5, 1), settings=settings)).ravel()
    assert (np.diff(result) > 0).all()
    below = np.asarray(line).ravel() < 0.3
    np.testing.assert_allclose(result[below], np.asarray(line).ravel()[below], atol=1e-6)
    assert np.abs(result - np.asarray(line).ravel()).max() > 0.01
    # The value in the middle between background and 1 is kept.
    assert result[np.argmin(np.abs(np.asarray(line).ravel() - 0.65))] == pytest.approx(0.65, abs=0.01)


def test_a_bias_field_is_smooth():
    result = np.asarray(vary_appearance(jnp.zeros(SHAPE), keys(), settings=Appearance(bias_field=0.2)))
    assert result.std() > 0.01
    for axis in (1, 2, 3):
        assert np.abs(np.diff(result, n=2, axis=axis)).max() < 0.5 * np.abs(result).max()


def test_stripes_run_along_x():
    result = np.asarray(vary_appearance(jnp.zeros(SHAPE), keys(), settings=Appearance(stripe_prob=1.0)))
    np.testing.assert_allclose(result, np.broadcast_to(result[:, :, :, :1], SHAPE))
    assert (result.std(axis=2) > 0.005).all()


def test_z_blur_blurs_z_alone():
    impulse = jnp.zeros((1, 15, 15, 15, 1)).at[0, 7, 7, 7, 0].set(1.0)
    settings = Appearance(z_blur_prob=1.0, z_blur_sigma=3.0)
    result = np.asarray(vary_appearance(impulse, keys(2, 1), settings=settings))[0, ..., 0]
    assert result[7, 7, 7] < 0.9
    assert result.sum() == pytest.approx(1.0, abs=1e-4)
    assert result[:, 7, 7].sum() == pytest.approx(1.0, abs=1e-4)


def test_a_sample_depends_on_its_own_key_alone():
    settings = Appearance(0.2, 0.5, 0.3, 0.1, 0.1, 0.05, z_blur_prob=0.5, stripe_prob=0.5)
    together = vary_appearance(images(), keys(), settings=settings)
    alone = vary_appearance(images()[2:3], keys()[2:3], settings=settings)
    np.testing.assert_allclose(together[2:3], alone, atol=1e-6)


def test_leaving_a_step_out_moves_no_draw_of_another():
    noise = vary_appearance(jnp.zeros(SHAPE), keys(), settings=Appearance(noise_std=0.1))
    both = vary_appearance(jnp.zeros(SHAPE), keys(), settings=Appearance(noise_std=0.1, shift=0.2))
    difference = np.asarray(both - noise).reshape(SHAPE[0], -1)
    np.testing.assert_allclose(difference, difference[:, :1] * np.ones_like(difference), atol=1e-6)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_strength_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="contrast"):
        Appearance(contrast=value)
