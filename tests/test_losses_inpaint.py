"""The loss and the metric of inpainting judge hidden voxels alone; the smooth fill continues what is around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smooth_volumes import smooth_volumes

from lsmfm_jax.errors import InputError
from lsmfm_jax.losses.deblur import ssim
from lsmfm_jax.losses.inpaint import inpaint_sums, inpaint_terms
from lsmfm_jax.metrics.image import scores_inside
from lsmfm_jax.resample import fill_smoothly


def volumes_and_mask(seed=0):
    rng = np.random.default_rng(seed)
    hidden = np.zeros((2, 15, 14, 13), bool)
    hidden[0, 4:9, 5:9, 6:8] = True
    hidden[1, 6:10, 2:8, 4:9] = True
    noise, target = jnp.asarray(rng.random((2, 2, 15, 14, 13, 1)), jnp.float32)
    prediction = 0.7 * target + 0.3 * noise
    return prediction, target, jnp.asarray(hidden)


def test_the_loss_is_that_of_hidden_voxels_alone():
    prediction, target, hidden = volumes_and_mask()
    both = jax.jit(jax.value_and_grad(lambda x: jnp.sum(inpaint_terms(x, target, hidden)["loss"])))
    loss, gradient = both(prediction)
    assert (np.asarray(gradient)[~hidden] == 0).all() and (np.abs(np.asarray(gradient)[hidden]) > 0).mean() > 0.99
    assert float(both(jnp.where(hidden[..., None], prediction, 77.0))[0]) == float(loss)
    assert float(both(jnp.where(hidden[..., None], prediction + 0.5, prediction))[0]) > float(loss)


def test_its_terms_are_what_they_are_called():
    prediction, target, hidden = volumes_and_mask()
    terms = {name: np.asarray(values) for name, values in inpaint_terms(prediction, target, hidden).items()}
    differences = np.abs(np.asarray(prediction - target))[..., 0]
    error = [one[where].mean() for one, where in zip(differences, np.asarray(hidden), strict=True)]
    np.testing.assert_allclose(terms["l1"], error, rtol=1e-5)
    np.testing.assert_allclose(terms["loss"], terms["l1"] + 0.2 * (1 - terms["ssim"]), rtol=1e-6)
    # Where all is hidden, the windows around hidden voxels are all windows.
    everywhere = jnp.ones_like(hidden)
    alike = inpaint_terms(prediction, target, everywhere, l1_weight=3.0, ssim_weight=0.5)
    np.testing.assert_allclose(alike["ssim"], ssim(prediction, target), rtol=1e-5)
    np.testing.assert_allclose(alike["loss"], 3.0 * alike["l1"] + 0.5 * (1 - alike["ssim"]), rtol=1e-6)
    nothing = inpaint_terms(prediction, target, ~everywhere)
    assert np.asarray(nothing["loss"]).tolist() == [0.0, 0.0]


def test_the_metric_agrees_with_the_loss_and_names_what_it_cannot_judge():
    arrays = volumes_and_mask(3)
    sums = {name: np.asarray(values) for name, values in inpaint_sums(*arrays).items()}
    prediction, target, hidden = map(np.asarray, arrays)
    for row in range(2):
        scores = scores_inside(prediction[row, ..., 0], target[row, ..., 0], hidden[row])
        assert scores["l1"] == pytest.approx(sums["absolute_error"][row] / sums["voxels"][row], rel=1e-5)
        assert scores["ssim"] == pytest.approx(1 - sums["dissimilarity"][row] / sums["windows"][row], abs=1e-5)
    truth, corner = target[0, ..., 0], np.zeros((15, 14, 13), bool)
    corner[0, 0, 0] = True
    scores = scores_inside(np.where(corner, truth + 0.25, 9.0), truth, corner)
    assert scores["l1"] == pytest.approx(0.25) and np.isnan(scores["ssim"])
    with pytest.raises(InputError, match="no voxel is inside of the mask"):
        scores_inside(truth, truth, corner & False)
    with pytest.raises(InputError, match="SSIM needs at least 11 voxels"):
        scores_inside(truth[:10], truth[:10], corner[:10])


# --- the smooth fill ---


def test_the_smooth_fill_keeps_what_is_known_and_continues_it():
    volumes = smooth_volumes(2, side=24)[..., None]
    known = np.ones((2, 24, 24, 24), bool)
    known[0, 4:12, 6:14, 8:16] = False
    known[1, :12] = False
    holes = np.where(known[..., None], volumes, np.nan)
    filled = np.asarray(fill_smoothly(jnp.asarray(holes), jnp.asarray(known)))
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[known], volumes[known])
    inside = ~known[0]
    error = np.abs(filled[0] - volumes[0])[inside].mean()
    assert error < 0.6 * np.abs(volumes[0][known[0]].mean() - volumes[0][inside]).mean()


def test_a_constant_is_filled_exactly_and_a_volume_without_a_known_voxel_is_zero():
    known = np.random.default_rng(0).random((1, 12, 12, 12)) > 0.4
    filled = fill_smoothly(jnp.where(known[..., None], 0.3, jnp.nan), jnp.asarray(known))
    np.testing.assert_allclose(np.asarray(filled), 0.3, rtol=1e-6)
    nothing = fill_smoothly(jnp.full((1, 12, 12, 12, 1), jnp.nan), jnp.zeros((1, 12, 12, 12), bool))
    assert (np.asarray(nothing) == 0).all()
