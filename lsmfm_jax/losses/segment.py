"""Losses of binary segmentation: Dice, focal, cross-entropy, soft clDice, and their sum.

Every function takes one channel of logits and a mask of 0 and 1, computes in float32, and gives one value per
sample. MONAI's losses for one channel, with
`sigmoid=True` and channel-first tensors, are these; the defaults of MONAI 1.6 differ in:

- `DiceFocalLoss`: both weights 1 and `alpha=None` (no class balance in the focal term). Ours are those of the
  paper's code: 0.5 and 0.5, alpha 0.25, gamma 2.
- `DiceCELoss`: the same as here; the cross-entropy of one channel is the binary one, from logits.
- `SoftclDiceLoss`, `SoftDiceclDiceLoss`: the same as here; the latter smooths its Dice by 1, not by 1e-5.

MONAI means over samples with equal weights, and so do the tasks.

`annotated` is 1 where a voxel counts and 0 where nobody annotated it; every loss is then what it would be if the
other voxels were not there. A sample without an annotated voxel has a loss of 0, or a gradient of 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, Shaped

from lsmfm_jax.config.schema import SEGMENTATION_LOSSES
from lsmfm_jax.errors import InputError
from lsmfm_jax.precision import widen

Volumes = Num[Array, "b z y x 1"]
Annotated = Shaped[Array, "b z y x 1"] | None
PerSample = Float[Array, " b"]

_VOXELS = (1, 2, 3, 4)


def _mean_over_voxels(values: Float[Array, "b z y x 1"], annotated: Annotated) -> PerSample:
    """Mean over the annotated voxels of each sample; 0 where there are none."""
    if annotated is None:
        return jnp.mean(values, _VOXELS)
    count = jnp.sum(annotated, _VOXELS, dtype=jnp.float32)
    return jnp.sum(jnp.where(annotated > 0, values, 0.0), _VOXELS) / jnp.maximum(count, 1.0)


def _only(values: Float[Array, "b z y x 1"], annotated: Annotated) -> Float[Array, "b z y x 1"]:
    """The values with 0 where nothing is annotated."""
    return values if annotated is None else jnp.where(annotated > 0, values, 0.0)


def dice(logits: Volumes, target: Volumes, *, annotated: Annotated = None, smooth: float = 1e-5) -> PerSample:
    """One minus the soft Dice of the sigmoid of `logits` and a mask.

    `1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth)`, the sums over the voxels of a sample.
    """
    probability = _only(jax.nn.sigmoid(widen(logits)), annotated)
    target = _only(widen(target), annotated)
    overlap = jnp.sum(probability * target, _VOXELS)
    sizes = jnp.sum(probability, _VOXELS) + jnp.sum(target, _VOXELS)
    return 1.0 - (2.0 * overlap + smooth) / (sizes + smooth)


def focal(
    logits: Volumes,
    target: Volumes,
    *,
    annotated: Annotated = None,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
) -> PerSample:
    """Focal loss, mean over voxels: `-a (1 - p_t)^gamma log p_t` (Lin et al. 2017, equation 5).

    Args:
        logits: before the sigmoid.
        target: 0 or 1.
        annotated: 1 where a voxel counts; None for everywhere.
        alpha: weight of the foreground, `1 - alpha` that of the background; None for 1 and 1.
        gamma: how far well-classified voxels are played down; 0 is cross-entropy.
    """
    logits = widen(logits)
    target = widen(target)
    # In logarithms, so that neither p_t nor 1 - p_t rounds to 0 far from the boundary.
    signed = logits * (2.0 * target - 1.0)
    loss = -jax.nn.log_sigmoid(signed) * jnp.exp(gamma * jax.nn.log_sigmoid(-signed))
    if alpha is not None:
        loss = loss * (alpha * target + (1.0 - alpha) * (1.0 - target))
    return _mean_over_voxels(loss, annotated)


def cross_entropy(logits: Volumes, target: Volumes, *, annotated: Annotated = None) -> PerSample:
    """Binary cross-entropy from logits, mean over voxels."""
    logits = widen(logits)
    target = widen(target)
    return _mean_over_voxels(jax.nn.softplus(logits) - logits * target, annotated)


def soft_skeleton(
    volumes: Float[Array, "b z y x 1"], *, annotated: Annotated = None, iterations: int = 3
) -> Float[Array, "b z y x 1"]:
    """Differentiable skeleton: what repeated erosion loses to an opening (Shit et al. 2021, algorithm 1).

    Args:
        volumes: probabilities or a mask, in [0, 1].
        annotated: 1 where a voxel counts; elsewhere is as outside the volume, and 0 in the skeleton.
        iterations: erosions; at least the radius in voxels of the widest tube.
    """

    def erode(values: Float[Array, "b z y x 1"]) -> Float[Array, "b z y x 1"]:
        if annotated is None:
            return _erode(values)
        return _only(_erode(jnp.where(annotated > 0, values, jnp.inf)), annotated)

    def dilate(values: Float[Array, "b z y x 1"]) -> Float[Array, "b z y x 1"]:
        # 0 is the lowest value there is, so that what is not annotated raises no maximum.
        return _only(_dilate(_only(values, annotated)), annotated)

    volumes = _only(volumes, annotated)
    skeleton = jax.nn.relu(volumes - dilate(erode(volumes)))
    for _ in range(iterations):
        volumes = erode(volumes)
        lost = jax.nn.relu(volumes - dilate(erode(volumes)))
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
    logits: Volumes,
    target: Volumes,
    *,
    annotated: Annotated = None,
    iterations: int = 3,
    smooth: float = 1.0,
    epsilon: float = 1e-4,
) -> PerSample:
    """One minus the soft centre-line Dice of the sigmoid of `logits` and a mask (Shit et al. 2021, eq. 2).

    The harmonic mean of how much of the predicted skeleton lies in the truth, and of the true skeleton in the
    prediction. It says little about where the wall of a vessel is: add it to a Dice, do not replace one.

    Args:
        logits: before the sigmoid.
        target: 0 or 1.
        annotated: 1 where a voxel counts; None for everywhere.
        iterations: erosions of `soft_skeleton`.
        smooth: added to both parts of both ratios.
        epsilon: added to the denominator of the harmonic mean.
    """
    probability = _only(jax.nn.sigmoid(widen(logits)), annotated)
    target = _only(widen(target), annotated)
    thin_prediction = soft_skeleton(probability, annotated=annotated, iterations=iterations)
    thin_target = soft_skeleton(target, annotated=annotated, iterations=iterations)
    precision = (jnp.sum(thin_prediction * target, _VOXELS) + smooth) / (jnp.sum(thin_prediction, _VOXELS) + smooth)
    recall = (jnp.sum(thin_target * probability, _VOXELS) + smooth) / (jnp.sum(thin_target, _VOXELS) + smooth)
    return 1.0 - 2.0 * precision * recall / (precision + recall + epsilon)


def segmentation_loss(
    logits: Volumes,
    target: Volumes,
    *,
    annotated: Annotated = None,
    name: str = "dice_focal",
    dice_weight: float = 0.5,
    other_weight: float = 0.5,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    cl_dice_frac: float = 0.0,
) -> PerSample:
    """Dice plus focal loss or cross-entropy, with a share of soft clDice for vessels.

    `(1 - f) (dice_weight Dice + other_weight other) + f clDice`, with `f = cl_dice_frac`; the defaults are those of
    the paper's code.

    Args:
        logits: before the sigmoid.
        target: 0 or 1.
        annotated: 1 where a voxel counts; None: everywhere.
        name: "dice_focal" or "dice_ce".
        dice_weight: factor of the Dice term.
        other_weight: factor of the focal term or of the cross-entropy.
        alpha: see `focal`.
        gamma: see `focal`.
        cl_dice_frac: share of clDice in the whole, 0 to 1; 0 leaves its computation out.

    Raises:
        ValueError: another name, or a share outside 0 to 1.
    """
    if name not in SEGMENTATION_LOSSES:
        raise InputError(f"segmentation loss {name!r} is unknown; allowed: {', '.join(SEGMENTATION_LOSSES)}")
    if not 0.0 <= cl_dice_frac <= 1.0:
        raise InputError(f"cl_dice_frac is {cl_dice_frac}; it is the share of clDice in the loss: give 0 to 1")
    if name == "dice_focal":
        other = focal(logits, target, annotated=annotated, alpha=alpha, gamma=gamma)
    else:
        other = cross_entropy(logits, target, annotated=annotated)
    loss = dice_weight * dice(logits, target, annotated=annotated) + other_weight * other
    if cl_dice_frac == 0.0:
        return loss
    return (1.0 - cl_dice_frac) * loss + cl_dice_frac * cl_dice(logits, target, annotated=annotated)
