"""Metrics of restored volumes: peak signal-to-noise ratio and structural similarity."""

import math

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy import ndimage

from lsmfm_jax.config.schema import SSIM_WINDOW
from lsmfm_jax.errors import InputError

Volume = Num[np.ndarray, "z y x"]
# Its own shape, which the functions compare with that of the truth themselves.
Prediction = Num[np.ndarray, "_ _ _"]


def psnr(prediction: Prediction, truth: Volume, *, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio in decibels, `10 log10(range^2 / mean squared error)`.

    Equal volumes have an infinite one.

    Raises:
        ValueError: if the shapes differ.
    """
    _same_shape(prediction, truth)
    error = float(np.mean((prediction.astype(np.float64) - truth.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else float(10.0 * np.log10(data_range**2 / error))


def ssim(
    prediction: Prediction,
    truth: Volume,
    *,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    data_range: float = 1.0,
) -> float:
    """Mean structural similarity under a 3D Gaussian window (Wang et al. 2004, equation 13).

    The same measure as in the deblurring loss, in double precision; windows lie wholly inside the volume.

    Raises:
        ValueError: if the shapes differ, or a side is shorter than the window.
    """
    similarity = _ssim_map(prediction, truth, window=window, sigma=sigma, k1=k1, k2=k2, data_range=data_range)
    return float(np.mean(similarity))


def scores_inside(
    prediction: Prediction, truth: Volume, inside: Bool[np.ndarray, "z y x"], *, data_range: float = 1.0
) -> dict[str, float]:
    """Mean absolute error of the voxels `inside` a mask, and SSIM of the windows whose middle is inside.

    Outside, the truth stands in for the prediction, so that only what is inside is judged. `ssim` is NaN where no
    window that lies wholly in the volume has its middle inside.

    Raises:
        ValueError: if the shapes differ, a side is shorter than the window of SSIM, or nothing is inside.
    """
    _same_shape(prediction, truth)
    if not inside.any():
        raise InputError("no voxel is inside of the mask, so there is nothing to judge: give one that has some")
    composed = np.where(inside, prediction, truth).astype(np.float64)
    margin = SSIM_WINDOW // 2
    middles = inside[(slice(margin, -margin),) * 3]
    similarity = _ssim_map(composed, truth, window=SSIM_WINDOW, sigma=1.5, k1=0.01, k2=0.03, data_range=data_range)
    return {
        "l1": float(np.mean(np.abs(composed - truth)[inside])),
        "ssim": float(np.mean(similarity[middles])) if middles.any() else math.nan,
    }


def _ssim_map(
    prediction: Prediction,
    truth: Volume,
    *,
    window: int,
    sigma: float,
    k1: float,
    k2: float,
    data_range: float,
) -> Float[np.ndarray, "zv yv xv"]:
    """The structural similarity of each window that lies wholly inside the volume."""
    _same_shape(prediction, truth)
    if min(truth.shape) < window:
        raise InputError(
            f"SSIM needs at least {window} voxels along every axis, the volume is {truth.shape} (ZYX): "
            "use larger patches, or a smaller window"
        )
    x, y = prediction.astype(np.float64), truth.astype(np.float64)
    # Moments about a common centre: variances do not change, and lose fewer digits.
    centre = float(y.mean())
    x, y = x - centre, y - centre
    mean_x, mean_y = _window_mean(x, window, sigma), _window_mean(y, window, sigma)
    variance_x = _window_mean(x * x, window, sigma) - mean_x**2
    variance_y = _window_mean(y * y, window, sigma) - mean_y**2
    covariance = _window_mean(x * y, window, sigma) - mean_x * mean_y
    mean_x, mean_y = mean_x + centre, mean_y + centre
    luminance_floor, contrast_floor = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + luminance_floor) / (mean_x**2 + mean_y**2 + luminance_floor)
    contrast = (2 * covariance + contrast_floor) / (variance_x + variance_y + contrast_floor)
    return luminance * contrast


def _window_mean(volume: Float[np.ndarray, "z y x"], window: int, sigma: float) -> Float[np.ndarray, "zv yv xv"]:
    """Gaussian mean of every window that lies inside the volume."""
    offsets = np.arange(window) - (window - 1) / 2
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    for axis in range(3):
        size = volume.shape[axis] - window + 1
        filtered = ndimage.correlate1d(volume, weights, axis=axis)
        volume = np.take(filtered, np.arange(window // 2, window // 2 + size), axis=axis)
    return volume


def image_scores(prediction: Prediction, truth: Volume, *, data_range: float = 1.0) -> dict[str, float]:
    """PSNR and SSIM of one volume; give the blurred input as `prediction` for the row to compare with."""
    return {
        "psnr": psnr(prediction, truth, data_range=data_range),
        "ssim": ssim(prediction, truth, data_range=data_range),
    }


def _same_shape(prediction: Prediction, truth: Volume) -> None:
    if prediction.shape != truth.shape:
        raise InputError(f"the prediction has the shape {prediction.shape}, the truth {truth.shape} (ZYX)")
