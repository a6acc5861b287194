"""Losses of binary segmentation: Dice, focal, cross-entropy, soft clDice, and their sums.

Every function takes one channel of logits and a mask of 0 and 1, computes in float32, and gives one value per
sample; the sums at the end of the file reduce to a scalar. MONAI's losses for one channel, with
`sigmoid=True` and channel-first tensors, are these; the defaults of MONAI 1.6 differ in:

- `DiceFocalLoss`: both weights 1 and `alpha=None` (no class balance in the focal term). Ours are those of the
  paper's code: 0.5 and 0.5, alpha 0.25, gamma 2.
- `DiceCELoss`: the same as here; the cross-entropy of one channel is the binary one, from logits.
- `SoftclDiceLoss`, `SoftDiceclDiceLoss`: the same as here; the latter smooths its Dice by 1, not by 1e-5.

MONAI means over samples with equal weights; here a weight per sample makes padded samples count for nothing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

Volumes = Num[Array, "b z y x 1"]
PerSample = Float[Array, " b"]
Scalar = Float[Array, ""]

_VOXELS = (1, 2, 3, 4)


def mean_over_samples(values: PerSample, weights: Num[Array, " b"] | None = None) -> Scalar:
    """Mean of one value per sample, weighted; 0 where all weights are 0.

    Args:
        values: one loss per sample.
        weights: None for equal weights; 0 for a sample that only fills up the batch.
    """
    if weights is None:
        return jnp.mean(values)
    weights = weights.astype(jnp.float32)
    total = jnp.sum(weights)
    return jnp.sum(values * weights) / jnp.where(total > 0, total, 1.0)


def dice(logits: Volumes, target: Volumes, *, smooth: float = 1e-5) -> PerSample:
    """One minus the soft Dice of the sigmoid of `logits` and a mask.

    `1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth)`, the sums over the voxels of a sample.
    """
    probability = jax.nn.sigmoid(logits.astype(jnp.float32))
    target = target.astype(jnp.float32)
    overlap = jnp.sum(probability * target, _VOXELS)
    sizes = jnp.sum(probability, _VOXELS) + jnp.sum(target, _VOXELS)
    return 1.0 - (2.0 * overlap + smooth) / (sizes + smooth)


def focal(logits: Volumes, target: Volumes, *, alpha: float | None = 0.25, gamma: float = 2.0) -> PerSample:
    """Focal loss, mean over voxels: `-a (1 - p_t)^gamma log p_t` (Lin et al. 2017, equation 5).

    Args:
        logits: before the sigmoid.
        target: 0 or 1.
        alpha: weight of the foreground, `1 - alpha` that of the background; None for 1 and 1.
        gamma: how far well-classified voxels are played down; 0 is cross-entropy.
    """
    logits = logits.astype(jnp.float32)
    target = target.astype(jnp.float32)
    # In logarithms, so that neither p_t nor 1 - p_t rounds to 0 far from the boundary.
    signed = logits * (2.0 * target - 1.0)
    loss = -jax.nn.log_sigmoid(signed) * jnp.exp(gamma * jax.nn.log_sigmoid(-signed))
    if alpha is not None:
        loss = loss * (alpha * target + (1.0 - alpha) * (1.0 - target))
    return jnp.mean(loss, _VOXELS)


def cross_entropy(logits: Volumes, target: Volumes) -> PerSample:
    """Binary cross-entropy from logits, mean over voxels."""
    logits = logits.astype(jnp.float32)
    target = target.astype(jnp.float32)
    return jnp.mean(jax.nn.softplus(logits) - logits * target, _VOXELS)


def soft_skeleton(volumes: Float[Array, "b z y x 1"], *, iterations: int = 3) -> Float[Array, "b z y x 1"]:
    """Differentiable skeleton: what repeated erosion loses to an opening (Shit et al. 2021, algorithm 1).

    Args:
        volumes: probabilities or a mask, in [0, 1].
        iterations: erosions; at least the radius in voxels of the widest tube.
    """
    opened = _dilate(_erode(volumes))
    skeleton = jax.nn.relu(volumes - opened)
    for _ in range(iterations):
        volumes = _erode(volumes)
        opened = _dilate(_erode(volumes))
        lost = jax.nn.relu(volumes - opened)
        skeleton = skeleton + jax.nn.relu(lost - skeleton * lost)
    return skeleton


def _neighbours(volumes: Float[Array, "b z y x 1"], axis: int, fill: float) -> tuple[Array, Array, Array]:
    """The volume moved by -1, 0 and 1 voxels along an axis, `fill` coming in at the border."""
    width = [(0, 0)] * volumes.ndim
    width[axis] = (1, 1)
    padded = jnp.pad(volumes, width, constant_values=fill)
    size = volumes.shape[axis]
    return tuple(jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in range(3))


def _erode(volumes: Float[Array, "b z y x 1"]) -> Float[Array, "b z y x 1"]:
    """Minimum over a voxel and its six face neighbours."""
    # Minima of moved copies, not a windowed reduction: they fuse into one pass, and so does their gradient.
    lowest = volumes
    for axis in (1, 2, 3):
        before, _, after = _neighbours(volumes, axis, jnp.inf)
        lowest = jnp.minimum(lowest, jnp.minimum(before, after))
    return lowest


def _dilate(volumes: Float[Array, "b z y x 1"]) -> Float[Array, "b z y x 1"]:
    """Maximum over the 3 x 3 x 3 box around a voxel, one axis after another."""
    for axis in (1, 2, 3):
        before, here, after = _neighbours(volumes, axis, -jnp.inf)
        volumes = jnp.maximum(here, jnp.maximum(before, after))
    return volumes


def cl_dice(
    logits: Volumes, target: Volumes, *, iterations: int = 3, smooth: float = 1.0, epsilon: float = 1e-4
) -> PerSample:
    """One minus the soft centre-line Dice of the sigmoid of `logits` and a mask (Shit et al. 2021, eq. 2).

    The harmonic mean of how much of the predicted skeleton lies in the truth, and of the true skeleton in the
    prediction. It says little about where the wall of a vessel is: add it to a Dice, do not replace one.

    Args:
        logits: before the sigmoid.
        target: 0 or 1.
        iterations: erosions of `soft_skeleton`.
        smooth: added to both parts of both ratios.
        epsilon: added to the denominator of the harmonic mean.
    """
    probability = jax.nn.sigmoid(logits.astype(jnp.float32))
    target = target.astype(jnp.float32)
    thin_prediction = soft_skeleton(probability, iterations=iterations)
    thin_target = soft_skeleton(target, iterations=iterations)
    precision = (jnp.sum(thin_prediction * target, _VOXELS) + smooth) / (jnp.sum(thin_prediction, _VOXELS) + smooth)
    recall = (jnp.sum(thin_target * probability, _VOXELS) + smooth) / (jnp.sum(thin_target, _VOXELS) + smooth)
    return 1.0 - 2.0 * precision * recall / (precision + recall + epsilon)


def dice_focal_loss(
    logits: Volumes,
    target: Volumes,
    *,
    weights: Num[Array, " b"] | None = None,
    dice_weight: float = 0.5,
    focal_weight: float = 0.5,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    cl_dice_frac: float = 0.0,
) -> Scalar:
    """Dice plus focal loss, with a share of soft clDice for vessels.

    `(1 - f) (dice_weight Dice + focal_weight focal) + f clDice`, with `f = cl_dice_frac`; the defaults are
    those of the paper's code.

    Args:
        logits: before the sigmoid.
        target: 0 or 1.
        weights: see `mean_over_samples`.
        dice_weight: factor of the Dice term.
        focal_weight: factor of the focal term.
        alpha: see `focal`.
        gamma: see `focal`.
        cl_dice_frac: share of clDice in the whole, 0 to 1; 0 leaves its computation out.
    """
    base = dice_weight * dice(logits, target) + focal_weight * focal(logits, target, alpha=alpha, gamma=gamma)
    return mean_over_samples(_with_cl_dice(base, logits, target, cl_dice_frac), weights)


def dice_cross_entropy_loss(
    logits: Volumes,
    target: Volumes,
    *,
    weights: Num[Array, " b"] | None = None,
    dice_weight: float = 1.0,
    cross_entropy_weight: float = 1.0,
    cl_dice_frac: float = 0.0,
) -> Scalar:
    """Dice plus binary cross-entropy, with a share of soft clDice for vessels.

    Args:
        logits: before the sigmoid.
        target: 0 or 1.
        weights: see `mean_over_samples`.
        dice_weight: factor of the Dice term.
        cross_entropy_weight: factor of the cross-entropy.
        cl_dice_frac: share of clDice in the whole, 0 to 1; 0 leaves its computation out.
    """
    base = dice_weight * dice(logits, target) + cross_entropy_weight * cross_entropy(logits, target)
    return mean_over_samples(_with_cl_dice(base, logits, target, cl_dice_frac), weights)


def _with_cl_dice(base: PerSample, logits: Volumes, target: Volumes, frac: float) -> PerSample:
    """Mix a share of soft clDice into a loss per sample."""
    if not 0.0 <= frac <= 1.0:
        raise ValueError(f"cl_dice_frac is {frac}; it is the share of clDice in the loss: give 0 to 1")
    return base if frac == 0.0 else (1.0 - frac) * base + frac * cl_dice(logits, target)


def dice_cl_dice_loss(
    logits: Volumes,
    target: Volumes,
    *,
    weights: Num[Array, " b"] | None = None,
    cl_dice_frac: float = 0.5,
    smooth: float = 1.0,
) -> Scalar:
    """Dice plus soft clDice alone (Shit et al. 2021, section 3), smoothed by `smooth` in both terms."""
    region = dice(logits, target, smooth=smooth)
    lines = cl_dice(logits, target, smooth=smooth)
    return mean_over_samples((1.0 - cl_dice_frac) * region + cl_dice_frac * lines, weights)
