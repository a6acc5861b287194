"""PSNR and SSIM against scikit-image and the deblurring loss."""

import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lsmfm_jax.losses import deblur
from lsmfm_jax.metrics import image


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    truth = random.uniform(size=(16, 14, 18)).astype(np.float32)
    return np.clip(truth + random.normal(0, 0.1, truth.shape), 0, 1).astype(np.float32), truth


def test_psnr_equals_scikit_image(pair):
    prediction, truth = pair
    assert image.psnr(prediction, truth) == pytest.approx(
        peak_signal_noise_ratio(truth, prediction, data_range=1), rel=1e-6
    )
    assert image.psnr(prediction * 255, truth * 255, data_range=255.0) == pytest.approx(
        image.psnr(prediction, truth), rel=1e-6
    )


def test_psnr_of_a_known_error_and_of_none():
    truth = np.zeros((4, 4, 4), np.float32)
    assert image.psnr(truth + np.float32(0.1), truth) == pytest.approx(20.0, rel=1e-6)
    assert image.psnr(truth, truth) == np.inf


def test_ssim_equals_scikit_image(pair):
    prediction, truth = (x.astype(np.float64) for x in pair)
    expected = structural_similarity(
        prediction, truth, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert image.ssim(*pair) == pytest.approx(expected, abs=1e-6)


def test_ssim_equals_the_loss(pair):
    prediction, truth = (jnp.asarray(x[None, ..., None]) for x in pair)
    assert image.ssim(*pair) == pytest.approx(float(deblur.ssim(prediction, truth)[0]), abs=1e-5)


def test_ssim_of_equal_volumes_is_one_and_of_a_negative_is_less(pair):
    _, truth = pair
    assert image.ssim(truth, truth) == pytest.approx(1.0)
    assert image.ssim(1 - truth, truth) < 0


def test_bad_shapes_are_errors(pair):
    prediction, truth = pair
    with pytest.raises(ValueError, match="has the shape"):
        image.psnr(prediction[:-1], truth)
    with pytest.raises(ValueError, match=r"at least 11 voxels.*\(8, 14, 18\)"):
        image.ssim(prediction[:8], truth[:8])


def test_image_scores_rank_a_better_restoration_higher(pair):
    prediction, truth = pair
    better = (truth + 0.5 * (prediction - truth)).astype(np.float32)
    worse, good = image.image_scores(prediction, truth), image.image_scores(better, truth)
    assert good["psnr"] == pytest.approx(worse["psnr"] + 20 * np.log10(2), rel=1e-4)
    assert good["ssim"] > worse["ssim"]
