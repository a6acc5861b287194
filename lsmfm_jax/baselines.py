"""Baselines without a network: thresholds and a pixel classifier for segmentation, PCA for classification.

Pure functions of arrays: the caller hands in the patches of a split, so that a baseline sees the patches that
the networks see, scaled as they see them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import block_reduce
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from lsmfm_jax.errors import InputError

Volume = Num[np.ndarray, "z y x"]
Mask = Bool[np.ndarray, "z y x"]
# Patches of a list may each have a shape of their own.
Volumes = Sequence[Num[np.ndarray, "_ _ _"]]
Masks = Sequence[Bool[np.ndarray, "_ _ _"]]


def otsu_mask(volume: Volume) -> Mask:
    """Foreground by Otsu's threshold of the volume itself; nothing of a constant volume."""
    if volume.min() == volume.max():
        return np.zeros(volume.shape, bool)
    return volume > threshold_otsu(volume)


def best_threshold(volumes: Volumes, masks: Masks, *, candidates: int = 1000) -> tuple[float, float]:
    """Find the threshold with the largest mean foreground Dice over patches, foreground lying above it.

    On the training patches this is a baseline; on one patch alone, with its truth, it is the best that any
    threshold could do there, which no method without the truth may claim.

    Args:
        volumes: of the training patches, scaled alike.
        masks: their truths; one without foreground scores 1 where nothing lies above the threshold, else 0.
        candidates: thresholds tried, quantiles of all values: half of them evenly over the darker half, the
            others evenly in the logarithm of the share that lies above, where sparse structures are decided.

    Returns:
        The threshold, and its mean Dice.

    Raises:
        ValueError: without a patch, or with another number of masks, or masks of other shapes.
    """
    if not volumes or len(volumes) != len(masks):
        raise InputError(f"{len(volumes)} volumes came with {len(masks)} masks: give one or more, and as many")
    values = np.concatenate([volume.ravel() for volume in volumes])
    half = candidates // 2
    above = np.concatenate([np.linspace(1.0, 0.5, half), np.geomspace(0.5, 1.0 / values.size, half)])
    # Values that occur, the largest among them: above it lies nothing.
    thresholds = np.unique([*np.quantile(values, 1.0 - above, method="lower"), values.max()])
    scores = np.mean([_dice_above(v, m, thresholds) for v, m in zip(volumes, masks, strict=True)], axis=0)
    best = int(np.argmax(scores))
    return float(thresholds[best]), float(scores[best])


def _dice_above(
    volume: Num[np.ndarray, "_ _ _"], mask: Bool[np.ndarray, "_ _ _"], thresholds: Num[np.ndarray, " t"]
) -> Float[np.ndarray, " t"]:
    """Foreground Dice of `volume > threshold` for each of the sorted thresholds."""
    if volume.shape != mask.shape:
        raise InputError(f"a volume has the shape {volume.shape}, its mask {mask.shape} (ZYX)")
    predicted = volume.size - np.searchsorted(np.sort(volume, axis=None), thresholds, side="right")
    true = int(mask.sum())
    if true == 0:
        return (predicted == 0).astype(np.float64)
    shared = true - np.searchsorted(np.sort(volume[mask]), thresholds, side="right")
    return 2.0 * shared / (predicted + true)


# Standard deviations of the Gaussians that a pixel classifier sees beside the voxel itself, voxels.
PIXEL_SIGMAS = (1.0, 2.0, 4.0)
# Background voxels of a patch that a pixel classifier is fitted on; foreground is taken whole.
PIXEL_BACKGROUND = 100_000


class PixelClassifier(NamedTuple):
    """A fitted logistic regression of voxels: foreground where `features @ weights + bias` is above 0.

    Attributes:
        weights: of the voxel itself and of each Gaussian mean around it.
        bias: with the best cut-off of the training patches taken off.
    """

    weights: tuple[float, ...]
    bias: float


def pixel_features(volume: Volume, sigmas: Sequence[float] = PIXEL_SIGMAS) -> Float[np.ndarray, "n f"]:
    """A row for each voxel: its own value, and Gaussian means around it."""
    scaled = volume.astype(np.float32)
    smooth = [ndimage.gaussian_filter(scaled, sigma) for sigma in sigmas]
    return np.stack([scaled, *smooth], axis=-1).reshape(-1, 1 + len(sigmas))


def fit_pixel_classifier(
    volumes: Volumes, masks: Masks, annotated: Masks, *, sigmas: Sequence[float] = PIXEL_SIGMAS, seed: int = 0
) -> PixelClassifier:
    """Fit a logistic regression on voxels and Gaussians around them, and its best cut-off on the same patches.

    Seconds of work, and often enough: what a network must beat.

    Args:
        volumes: of the training patches, scaled alike.
        masks: their truths.
        annotated: which voxels count.
        sigmas: of the Gaussians; with none of them the result is a threshold, with the slope of its logit.
        seed: of the draw of background voxels.

    Raises:
        ValueError: without foreground, or without background.
    """
    rng = np.random.default_rng(seed)
    rows, truths = [], []
    features = [pixel_features(volume, sigmas) for volume in volumes]
    for found, mask, counted in zip(features, masks, annotated, strict=True):
        foreground = np.flatnonzero(mask & counted)
        background = np.flatnonzero(~mask & counted)
        chosen = rng.choice(background, min(len(background), PIXEL_BACKGROUND), replace=False)
        rows += [found[foreground], found[chosen]]
        truths += [np.ones(len(foreground), bool), np.zeros(len(chosen), bool)]
    truth = np.concatenate(truths)
    if truth.all() or not truth.any():
        raise ValueError("the training patches have foreground alone, or none: a classifier needs both")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(np.concatenate(rows), truth)
    scaler, regression = pipeline[0], pipeline[1]
    weights = regression.coef_[0] / scaler.scale_
    bias = float(regression.intercept_[0] - weights @ scaler.mean_)
    scores = [
        (found[counted.ravel()] @ weights + bias)[None, None]
        for found, counted in zip(features, annotated, strict=True)
    ]
    kept = [mask[counted][None, None] for mask, counted in zip(masks, annotated, strict=True)]
    return PixelClassifier(tuple(map(float, weights)), bias - best_threshold(scores, kept)[0])


def pixel_logits(fitted: PixelClassifier, volume: Volume) -> Float[np.ndarray, "z y x"]:
    """How sure each voxel of a volume is foreground: above 0 is. Scaled as the training patches were."""
    return (pixel_features(volume) @ np.array(fitted.weights, np.float32) + fitted.bias).reshape(volume.shape)


class PcaClassifier(NamedTuple):
    """A fitted classifier, and the blocks that its features are means over."""

    pipeline: Pipeline
    block_voxels: int


def fit_pca_classifier(
    volumes: Num[np.ndarray, "n z y x"],
    labels: Int[np.ndarray, " n"],
    *,
    components: int = 50,
    block_voxels: int = 3,
    balanced: bool = True,
    seed: int = 0,
) -> PcaClassifier:
    """Fit principal components of whole patches, and a logistic regression on them.

    Args:
        volumes: training patches, scaled alike.
        labels: class numbers.
        components: principal components, at most one less than there are patches.
        block_voxels: patches are averaged over blocks of this side first, which takes noise and memory away.
        balanced: weigh classes by inverse frequency.
        seed: of the PCA's solver.

    Raises:
        ValueError: if there are fewer than two classes to tell apart.
    """
    found = np.unique(labels)
    if len(found) < 2:
        raise InputError(
            f"the training patches are all of class {found.tolist()}: a classifier needs two classes or more"
        )
    pipeline = make_pipeline(
        PCA(n_components=min(components, len(volumes) - 1), random_state=seed),
        StandardScaler(),
        LogisticRegression(max_iter=2000, class_weight="balanced" if balanced else None),
    )
    return PcaClassifier(pipeline.fit(_blocks(volumes, block_voxels), labels), block_voxels)


def pca_classify(fitted: PcaClassifier, volumes: Num[np.ndarray, "n z y x"]) -> Int[np.ndarray, " n"]:
    """Class number of each patch; only classes that were among the training patches can come out."""
    return fitted.pipeline.predict(_blocks(volumes, fitted.block_voxels))


def pca_probabilities(fitted: PcaClassifier, volumes: Num[np.ndarray, "n z y x"]) -> Float[np.ndarray, "n k"]:
    """Probability of each class that was among the training patches, in the order of their numbers."""
    return fitted.pipeline.predict_proba(_blocks(volumes, fitted.block_voxels)).astype(np.float32)


def _blocks(volumes: Num[np.ndarray, "n z y x"], side: int) -> Float[np.ndarray, "n f"]:
    """Means over blocks of voxels, one row per patch."""
    means = block_reduce(volumes.astype(np.float32), (1, side, side, side), np.mean)
    return means.reshape(len(volumes), -1)
