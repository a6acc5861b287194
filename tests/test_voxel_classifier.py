"""The regression of voxels beside a network: what is fitted, what it adds, and that a run keeps it."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression

from lsmfm_jax.baselines import PIXEL_SIGMAS, best_threshold, fit_pixel_classifier, pixel_logits
from lsmfm_jax.config import defaults
from lsmfm_jax.data.labelled_patches import LabelledPatch
from lsmfm_jax.tasks.declaration import Patches
from lsmfm_jax.tasks.voxel_classifier import VoxelClassifier, fit_voxel_classifier, recorded


def scene(seed: int, shape=(30, 31, 32)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for centre in rng.integers(4, 26, (6, 3)):
        mask |= sum((axis - at) ** 2 for axis, at in zip(np.indices(shape), centre, strict=True)) < 10
    image = 0.2 + 0.25 * ndimage.gaussian_filter(mask.astype(float), 0.7) + rng.normal(0, 0.06, shape)
    return image.clip(0, 1).astype(np.float32), mask


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_it_is_better_than_a_threshold_on_another_noisy_volume():
    (image, mask), (other, truth) = scene(0), scene(1)
    fitted = fit_pixel_classifier([image], [mask], [np.ones_like(mask)])
    threshold, _ = best_threshold([image], [mask])
    assert dice(pixel_logits(fitted, other) > 0, truth) > dice(other > threshold, truth) + 0.1


def test_weights_are_those_of_scikit_learns_regression():
    image, mask = scene(2, (20, 20, 20))
    fitted = fit_pixel_classifier([image], [mask], [np.ones_like(mask)])
    features = np.stack([image, *(ndimage.gaussian_filter(image, s) for s in PIXEL_SIGMAS)], -1).reshape(-1, 4)
    mean, std = features.mean(axis=0), features.std(axis=0)
    other = LogisticRegression(max_iter=500).fit((features - mean) / std, mask.ravel())
    np.testing.assert_allclose(fitted.weights, other.coef_[0] / std, rtol=0.05)


def test_what_is_not_annotated_changes_nothing():
    image, mask = scene(3)
    annotated = np.zeros_like(mask)
    annotated[10:14] = True
    wrong = np.where(annotated, mask, ~mask)
    rows = [fit_pixel_classifier([image], [m], [annotated]) for m in (mask, wrong)]
    assert rows[0] == rows[1]


def test_without_foreground_there_is_nothing_to_fit():
    image, mask = scene(4)
    with pytest.raises(ValueError, match="foreground"):
        fit_pixel_classifier([image], [np.zeros_like(mask)], [np.ones_like(mask)])


def test_the_device_adds_what_numpy_computes():
    image, mask = scene(5)
    fitted = fit_pixel_classifier([image], [mask], [np.ones_like(mask)])
    voxels = VoxelClassifier(fitted.weights, fitted.bias, 0.3)
    logits = np.random.default_rng(6).normal(size=image.shape).astype(np.float32)
    found = voxels.combined(jnp.asarray(logits)[None, ..., None], jnp.asarray(image)[None, ..., None])
    np.testing.assert_allclose(found[0, ..., 0], pixel_logits(fitted, image) + 0.3 * logits, atol=2e-3)


def test_a_record_gives_the_same_again():
    voxels = VoxelClassifier((1.0, -2.0, 0.5, 0.25), -3.0, 0.25)
    assert recorded(voxels.record()) == voxels
    assert recorded(None) is None and recorded({}) is None


def patch(image: np.ndarray, mask: np.ndarray, low: float = 0.0, high: float = 1.0) -> LabelledPatch:
    return LabelledPatch("p", image, low, high, mask.astype(np.uint8))


def test_it_is_fitted_on_what_the_network_sees():
    image, mask = scene(7)
    config = defaults("segment")
    lines: list[str] = []
    assert fit_voxel_classifier(config, Patches([patch(image, mask)], [], ()), lines.append) is None and not lines
    config.voxel_classifier.enabled = True
    plain = fit_voxel_classifier(config, Patches([patch(image, mask)], [], ()), lines.append)
    counts = patch(image * 1000 + 50, mask, 50.0, 1050.0)
    scaled = fit_voxel_classifier(config, Patches([counts], [], ()), lines.append)
    np.testing.assert_allclose(plain.weights, scaled.weights, rtol=1e-2)
    empty = Patches([patch(image, np.zeros_like(mask))], [], ())
    assert fit_voxel_classifier(config, empty, lines.append) is None and "foreground" in lines[-1]


def test_without_gaussians_it_is_the_best_threshold():
    (image, mask), (other, _) = scene(8), scene(9)
    counted = [np.ones_like(mask)]
    threshold, _ = best_threshold([image], [mask])
    fitted = fit_pixel_classifier([image], [mask], counted, sigmas=())
    assert fitted.weights[0] > 0 and -fitted.bias / fitted.weights[0] == pytest.approx(threshold, abs=2e-3)
    # Beside a network the mean of this logit and of that with Gaussians counts.
    config = defaults("segment")
    config.voxel_classifier.enabled = True
    both = fit_voxel_classifier(config, Patches([patch(image, mask)], [], ()), lambda line: None)
    smooth = fit_pixel_classifier([image], [mask], counted)
    own = fitted.weights[0] * other + fitted.bias
    found = both.combined(jnp.zeros((1, *other.shape, 1)), jnp.asarray(other)[None, ..., None])[0, ..., 0]
    np.testing.assert_allclose(found, (own + pixel_logits(smooth, other)) / 2, atol=2e-3)
