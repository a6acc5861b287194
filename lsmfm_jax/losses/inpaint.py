"""The inpainting loss: absolute error and structural similarity of hidden voxels alone.

The paper has no inpainting. The weight of `1 - SSIM` beside the absolute error is that of deblurring (section 3), and
the windows are the same. Each term is computed in float32, per sample, on scaled volumes.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lsmfm_jax.config.schema import SSIM_WINDOW
from lsmfm_jax.losses.deblur import ssim_map
from lsmfm_jax.precision import widen

Volumes = Float[Array, "b z y x 1"]
Hidden = Bool[Array, "b z y x"]
PerSample = Float[Array, " b"]


def inpaint_sums(
    prediction: Volumes, target: Volumes, hidden: Hidden, *, counted: Hidden | None = None
) -> dict[str, PerSample]:
    """Sums over the hidden voxels of each sample, and over the SSIM windows whose middle is hidden.

    What is visible counts as restored without error, whatever the prediction has there, so it changes neither sum;
    windows see it around the hidden voxels. Voxels nearer to the border than half a window are in the middle of none:
    the absolute error alone judges them.

    Args:
        prediction: restored volumes; only hidden voxels are read.
        target: intact volumes.
        hidden: where the network saw nothing.
        counted: hidden voxels that count; None: all of them.

    Returns:
        `absolute_error` and the number of `voxels`, `dissimilarity` (1 - SSIM) and the number of `windows`.

    Raises:
        ValueError: if a side of the volume is shorter than the window.
    """
    counted = hidden if counted is None else hidden & counted
    composed = jnp.where(hidden[..., None], widen(prediction), widen(target))
    error = jnp.abs(composed - widen(target))[..., 0]
    margin = SSIM_WINDOW // 2
    middles = counted[:, margin:-margin, margin:-margin, margin:-margin]
    dissimilarity = 1.0 - ssim_map(composed, target)
    axes = (1, 2, 3)
    return {
        "absolute_error": jnp.sum(jnp.where(counted, error, 0.0), axes),
        "voxels": jnp.sum(counted, axes, dtype=jnp.float32),
        "dissimilarity": jnp.sum(jnp.where(middles, dissimilarity, 0.0), axes),
        "windows": jnp.sum(middles, axes, dtype=jnp.float32),
    }


def inpaint_terms(
    prediction: Volumes, target: Volumes, hidden: Hidden, *, l1_weight: float = 1.0, ssim_weight: float = 0.2
) -> dict[str, PerSample]:
    """Absolute error + 0.2 (1 - SSIM), both of hidden voxels alone, and these terms by themselves.

    Args:
        prediction: restored volumes; only hidden voxels are read.
        target: intact volumes.
        hidden: where the network saw nothing; a sample without any has a loss of 0.
        l1_weight: factor of the absolute error.
        ssim_weight: factor of `1 - SSIM`.

    Returns:
        `loss`, and its terms before their factors: `l1` and `ssim` (the similarity itself); each for each sample.
    """
    sums = inpaint_sums(prediction, target, hidden)
    l1 = sums["absolute_error"] / jnp.maximum(sums["voxels"], 1.0)
    ssim = 1.0 - sums["dissimilarity"] / jnp.maximum(sums["windows"], 1.0)
    return {"loss": l1_weight * l1 + ssim_weight * (1.0 - ssim), "l1": l1, "ssim": ssim}
