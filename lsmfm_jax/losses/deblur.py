"""The deblurring loss: absolute error, structural similarity, edges and high frequencies.

Each term is computed in float32, per sample, on volumes in [0, 1]; `deblur_terms` adds their weighted sum
(paper, section 3, deblurring).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lsmfm_jax.config.schema import SSIM_WINDOW
from lsmfm_jax.errors import InputError
from lsmfm_jax.precision import widen

Volumes = Float[Array, "b z y x 1"]
PerSample = Float[Array, " b"]

_VOXELS = (1, 2, 3, 4)


def absolute_error(prediction: Volumes, target: Volumes) -> PerSample:
    """Mean absolute difference over voxels."""
    return jnp.mean(jnp.abs(widen(prediction) - widen(target)), _VOXELS)


def ssim(
    prediction: Volumes,
    target: Volumes,
    *,
    window: int = SSIM_WINDOW,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    data_range: float = 1.0,
) -> PerSample:
    """Mean structural similarity under a 3D Gaussian window (Wang et al. 2004, equation 13).

    Windows lie wholly inside the volume, as in MONAI's `SSIMLoss(spatial_dims=3)`, whose defaults these are.

    Returns:
        One value per sample, 1 for equal volumes.

    Raises:
        ValueError: if a side of the volume is shorter than the window.
    """
    similarity = ssim_map(prediction, target, window=window, sigma=sigma, k1=k1, k2=k2, data_range=data_range)
    return jnp.mean(similarity, (1, 2, 3))


def ssim_map(
    prediction: Volumes,
    target: Volumes,
    *,
    window: int = SSIM_WINDOW,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    data_range: float = 1.0,
) -> Float[Array, "b zv yv xv"]:
    """The structural similarity of each window that lies wholly inside the volume; `ssim` is its mean.

    Args:
        prediction: volumes.
        target: volumes of the same shape.
        window: side of the window in voxels, odd.
        sigma: standard deviation of the window in voxels.
        k1: constant of the luminance term.
        k2: constant of the contrast term.
        data_range: largest possible difference of two values.

    Returns:
        `window - 1` voxels less along each axis: the first window's centre is voxel `window // 2`.

    Raises:
        ValueError: if a side of the volume is shorter than the window.
    """
    if min(prediction.shape[1:4]) < window:
        raise InputError(
            f"SSIM needs at least {window} voxels along every axis, the volumes are {prediction.shape[1:4]} "
            "(ZYX): use larger patches, or a smaller window"
        )
    x, y = widen(prediction)[..., 0], widen(target)[..., 0]
    blurred = _gaussian_windows(jnp.stack([x, y, x * x, y * y, x * y]), window=window, sigma=sigma)
    mean_x, mean_y, square_x, square_y, product = blurred
    luminance_floor, contrast_floor = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    variance_x = square_x - mean_x * mean_x
    variance_y = square_y - mean_y * mean_y
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + luminance_floor) / (mean_x**2 + mean_y**2 + luminance_floor)
    contrast = (2 * covariance + contrast_floor) / (variance_x + variance_y + contrast_floor)
    return luminance * contrast


def _gaussian_windows(volumes: Float[Array, "m b z y x"], *, window: int, sigma: float) -> Float[Array, "m b zv yv xv"]:
    """Gaussian mean of every window that lies inside the volume."""
    # One banded matrix product per axis: a convolution with one channel would waste an accelerator. The
    # highest precision, because variances are differences of nearly equal means and TF32 would drown them.
    for axis in (2, 3, 4):
        band = jnp.asarray(_band(volumes.shape[axis], window, sigma))
        moved = jnp.tensordot(volumes, band, axes=[[axis], [1]], precision=jax.lax.Precision.HIGHEST)
        volumes = jnp.moveaxis(moved, -1, axis)
    return volumes


def _band(size: int, window: int, sigma: float) -> Float[np.ndarray, "valid size"]:
    """Matrix whose rows hold the normalised Gaussian at every place where it fits."""
    offsets = np.arange(window) - (window - 1) / 2
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    band = np.zeros((size - window + 1, size), np.float32)
    for row in range(len(band)):
        band[row, row : row + window] = weights
    return band


def edge_error(prediction: Volumes, target: Volumes) -> PerSample:
    """Difference of edge strengths: mean of `| |dp| - |dt| |` for each axis, summed over the three axes.

    `dp` and `dt` are the differences of neighbouring voxels along the axis.
    """
    total = jnp.zeros(prediction.shape[0], jnp.float32)
    for axis in (1, 2, 3):
        strength = jnp.abs(jnp.diff(widen(prediction), axis=axis))
        wanted = jnp.abs(jnp.diff(widen(target), axis=axis))
        total = total + jnp.mean(jnp.abs(strength - wanted), _VOXELS)
    return total


def high_frequency_error(prediction: Volumes, target: Volumes) -> PerSample:
    """Mean absolute difference of what is left of both volumes after their 3 x 3 x 3 box mean is taken off.

    At the border the mean is over those voxels of the box that exist: zeros brought in from outside would
    make brightness itself look like detail.
    """
    # Linear in the volume, so the difference goes through once.
    difference = widen(prediction) - widen(target)
    return jnp.mean(jnp.abs(difference - _box_mean(difference)), _VOXELS)


def _box_mean(volumes: Volumes) -> Volumes:
    """Mean over the part of the 3 x 3 x 3 box around a voxel that lies in the volume."""
    for axis in (1, 2, 3):
        size = volumes.shape[axis]
        width = [(0, 0)] * volumes.ndim
        width[axis] = (1, 1)
        padded = jnp.pad(volumes, width)
        total = sum(jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in range(3))
        index = np.arange(size)
        count = 1 + (index > 0).astype(np.float32) + (index < size - 1)
        volumes = total / count.reshape([-1 if a == axis else 1 for a in range(volumes.ndim)])
    return volumes


def deblur_terms(
    prediction: Volumes,
    target: Volumes,
    *,
    ssim_weight: float = 0.2,
    edge_weight: float = 0.1,
    high_frequency_weight: float = 0.1,
) -> dict[str, PerSample]:
    """Absolute error + 0.2 (1 - SSIM) + 0.1 edge error + 0.1 high-frequency error, and these terms by themselves.

    Args:
        prediction: sharpened volumes, in [0, 1].
        target: sharp volumes, in [0, 1].
        ssim_weight: factor of `1 - SSIM`.
        edge_weight: factor of `edge_error`.
        high_frequency_weight: factor of `high_frequency_error`.

    Returns:
        `loss`, and its terms before their factors: `l1`, `ssim` (the similarity itself), `edge`, `high_frequency`;
        each for each sample.
    """
    terms = {
        "l1": absolute_error(prediction, target),
        "ssim": ssim(prediction, target),
        "edge": edge_error(prediction, target),
        "high_frequency": high_frequency_error(prediction, target),
    }
    loss = (
        terms["l1"]
        + ssim_weight * (1.0 - terms["ssim"])
        + edge_weight * terms["edge"]
        + high_frequency_weight * terms["high_frequency"]
    )
    return {"loss": loss, **terms}
