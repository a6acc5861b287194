"""The baselines on generated patches, against an exhaustive search, and on real patches of known figures."""

import nibabel
import numpy as np
import pytest
from skimage.filters import threshold_otsu

from lsmfm_jax import baselines
from lsmfm_jax.metrics.segmentation import foreground_scores


def patch(seed: int, *, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Noise with two bright cubes in it."""
    random = np.random.default_rng(seed)
    mask = np.zeros((10, 11, 12), bool)
    for z, y, x in random.integers(0, 7, (2, 3)):
        mask[z : z + 3, y : y + 3, x : x + 3] = True
    volume = random.normal(0.3 + offset, 0.1, mask.shape) + 0.35 * mask
    return volume.astype(np.float32), mask


def test_otsu_is_that_of_scikit_image_and_finds_the_cubes():
    volume, mask = patch(0)
    volume = (volume + 0.5 * mask).astype(np.float32)
    otsu = baselines.otsu_mask(volume)
    np.testing.assert_array_equal(otsu, volume > threshold_otsu(volume))
    assert foreground_scores(otsu, mask)["dice"] > 0.95


def test_otsu_of_a_constant_volume_is_empty():
    assert not baselines.otsu_mask(np.full((4, 4, 4), 7, np.uint16)).any()


def test_best_threshold_equals_an_exhaustive_search():
    volumes, masks = zip(*(patch(seed, offset=0.05 * seed) for seed in range(3)), strict=True)
    threshold, dice = baselines.best_threshold(volumes, masks, candidates=4000)

    def mean_dice(value: float) -> float:
        return np.mean([foreground_scores(v > value, m)["dice"] for v, m in zip(volumes, masks, strict=True)])

    assert dice == pytest.approx(mean_dice(threshold))
    every = np.concatenate([v.ravel() for v in volumes])
    best = max(mean_dice(value) for value in np.quantile(every, np.linspace(0.8, 0.999, 300)))
    assert dice >= best - 2e-3


def test_best_threshold_of_integers_and_of_a_patch_without_foreground():
    volume = np.array([[[0, 0, 1, 1, 5, 5, 9, 9]]], np.uint16)
    mask = volume == 9
    threshold, dice = baselines.best_threshold([volume, volume // 9], [mask, np.zeros_like(mask)])
    # Above 5 the first patch is perfect and the second, whose values end at 1, is empty as it should be.
    assert (threshold, dice) == (5.0, 1.0)
    assert baselines.best_threshold([volume], [np.zeros_like(mask)]) == (9.0, 1.0)


def test_best_threshold_names_what_does_not_fit():
    volume, mask = patch(0)
    with pytest.raises(ValueError, match="2 volumes came with 1 masks"):
        baselines.best_threshold([volume, volume], [mask])
    with pytest.raises(ValueError, match="has the shape"):
        baselines.best_threshold([volume], [mask[1:]])


def textures(seed: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes that differ in which half of the patch is bright, or in none being."""
    random = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 3], per_class)
    volumes = random.normal(0.3, 0.2, (len(labels), 12, 12, 12))
    volumes[labels == 0, :6] += 0.2
    volumes[labels == 1, :, 6:] += 0.2
    return volumes.astype(np.float32), labels


def test_pca_classifies_new_patches():
    fitted = baselines.fit_pca_classifier(*textures(0, 8), components=5)
    volumes, labels = textures(1, 6)
    predicted = baselines.pca_classify(fitted, volumes)
    assert (predicted == labels).mean() > 0.9
    assert set(predicted) <= {0, 1, 3}


def test_pca_takes_fewer_patches_than_components():
    fitted = baselines.fit_pca_classifier(*textures(0, 2), components=50)
    assert fitted.pipeline[0].n_components_ == 5
    assert len(baselines.pca_classify(fitted, textures(1, 1)[0])) == 3


def test_one_class_alone_is_an_error():
    volumes, labels = textures(0, 2)
    with pytest.raises(ValueError, match=r"all of class \[0\]"):
        baselines.fit_pca_classifier(volumes[:2], labels[:2])


@pytest.mark.parametrize(("kind", "volumes", "expected"), [("microglia", (2433, 3941), 0.88), ("cFos", (1147,), 0.40)])
def test_the_best_threshold_per_patch_on_real_patches(shared, kind, volumes, expected):
    """With the truth in hand: the figures that a few-shot network is measured against."""
    folder = shared / "data" / "delivr" / kind
    files = [f for volume in volumes for f in folder.glob(f"patchvolume_{volume}_*_label.nii.gz")]
    scores = []
    for file in files:
        mask = np.asarray(nibabel.load(file).dataobj) > 0
        image = np.asarray(nibabel.load(str(file).replace("_label", "")).dataobj)
        scores.append(baselines.best_threshold([image], [mask])[1])
    assert np.mean(scores) == pytest.approx(expected, abs=0.01)
