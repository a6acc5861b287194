"""The four pretraining losses, each on trunk values and tail, as per-sample sums or over the global batch.

Sums rather than means, because the released objective divides by counts over the whole batch: a caller that
accumulates micro-batches or gathers devices adds sums and divides once.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import entr
from jaxtyping import Array, Bool, Float, Int

from lsmfm_jax.losses.fused_distillation import Form, distillation_sums
from lsmfm_jax.losses.linear_tail import (
    EXACT,
    Tail,
    mean_normalised_features,
    normalised_log_softmax,
    rows_per_slab,
    split_rows,
)
from lsmfm_jax.precision import wide_type, widen

__all__ = [
    "DistillationSums",
    "alignment",
    "contrastive",
    "distillation",
    "mean_normalised_features",
    "reconstruction_l1",
    "teacher_entropy_monitors",
]


class DistillationSums(NamedTuple):
    """Sums over each sample's masked voxels; a sample without masked voxels adds nothing.

    Attributes:
        divergence: KL(teacher ‖ student) in nats.
        voxels: number of masked voxels.
        teacher_entropy: entropy of the teacher's distribution in nats; no gradient.
        teacher_probability: the teacher's distribution over channels; no gradient.
    """

    divergence: Float[Array, " b"]
    voxels: Float[Array, " b"]
    teacher_entropy: Float[Array, " b"]
    teacher_probability: Float[Array, "b d"]


def distillation(
    student: Float[Array, "b z y x f"],
    student_tail: Tail | None,
    teacher: Float[Array, "b z y x f"],
    teacher_tail: Tail | None,
    mask: Bool[Array, "b z y x"],
    *,
    student_temperature: float,
    teacher_temperature: float,
    slab_voxels: int = 8192,
    kernels: str = "plain",
    channels_first: bool = True,
) -> DistillationSums:
    """KL(teacher ‖ student) of softmax over channels of L2-normalised dense features, at masked voxels.

    The loss is `sums.divergence.sum() / sums.voxels.sum()`. No gradient reaches the teacher. Slabs of voxels
    are recomputed in the backward pass, so that all D channels exist for one slab at a time in either pass.

    Args:
        student: trunk values for the masked volume.
        student_tail: kernel and bias that close the student's trunk, or None.
        teacher: trunk values for the whole volume.
        teacher_tail: kernel and bias that close the teacher's trunk, or None.
        mask: True at voxels that were hidden from the student.
        student_temperature: divides the student's normalised features.
        teacher_temperature: divides the teacher's normalised features.
        slab_voxels: most voxels of one sample to hold with all their channels at a time.
        kernels: "plain", or "fused" for hand-written kernels on NVIDIA cards (`fused_distillation`), which hold
            channels for 64 voxels at a time and skip where none is masked. Elsewhere both are the same.
        channels_first: how fused kernels read values: as convolutions on cards have them in memory, `B F Z Y X`, or
            as the compiler's fast mode has them, `B Z Y X F`. The other of both costs copies.

    Source: paper, "Pretraining Objective", term (1); the normalisation is from the released code.
    """
    teacher, teacher_tail = lax.stop_gradient((teacher, teacher_tail))
    plain = partial(
        _plain_sums,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        slab_voxels=slab_voxels,
    )
    operands = (student, student_tail, teacher, teacher_tail, mask)
    # The kernels know float32 and less; whoever checks gradients in float64 means the formula.
    if kernels == "fused" and wide_type(student, teacher) == jnp.float32:
        sums = distillation_sums(Form(student_temperature, teacher_temperature, plain, channels_first), *operands)
    else:
        sums = plain(*operands)
    divergence, entropy, probability = sums
    voxels = mask.sum(axis=(1, 2, 3)).astype(jnp.float32)
    return DistillationSums(divergence, voxels, entropy, probability)


def _plain_sums(
    student: Float[Array, "b z y x f"],
    student_tail: Tail | None,
    teacher: Float[Array, "b z y x f"],
    teacher_tail: Tail | None,
    mask: Bool[Array, "b z y x"],
    *,
    student_temperature: float,
    teacher_temperature: float,
    slab_voxels: int,
) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, "b d"]]:
    """Divergence, the teacher's entropy and its probabilities, slab by slab."""

    def add_slab(sums: tuple[Array, Array, Array], slab: tuple[Array, Array, Array]):
        student_slab, teacher_slab, mask_slab = slab
        log_student = normalised_log_softmax(student_slab, student_tail, student_temperature)
        log_teacher = normalised_log_softmax(teacher_slab, teacher_tail, teacher_temperature)
        probability = jnp.exp(log_teacher)
        weight = mask_slab.astype(probability.dtype)
        divergence = jnp.sum(probability * (log_teacher - log_student), axis=-1) * weight
        entropy = -jnp.sum(probability * log_teacher, axis=-1) * weight
        # Z is kept to the end: were it summed here, a mesh that shards Z would reduce once a slab.
        parts = (
            divergence.sum(axis=(2, 3)),
            entropy.sum(axis=(2, 3)),
            jnp.sum(probability * weight[..., None], axis=(2, 3)),
        )
        return jax.tree.map(jnp.add, sums, parts), None

    batch, depth = mask.shape[:2]
    channels = student.shape[-1] if student_tail is None else student_tail[0].shape[-1]
    sum_type = wide_type(student, teacher)
    start = (
        jnp.zeros((batch, depth), sum_type),
        jnp.zeros((batch, depth), sum_type),
        jnp.zeros((batch, depth, channels), sum_type),
    )
    rows = rows_per_slab(mask.shape[1:], slab_voxels)
    slabs = tuple(split_rows(array, rows) for array in (student, teacher, mask))
    (divergence, entropy, probability), _ = lax.scan(jax.checkpoint(add_slab), start, slabs)
    return divergence.sum(axis=1), entropy.sum(axis=1), probability.sum(axis=1)


def teacher_entropy_monitors(sums: DistillationSums) -> dict[str, Float[Array, ""]]:
    """Signs of collapse in the teacher's distributions over all masked voxels of the batch, in nats.

    `teacher_entropy` is the mean entropy of a voxel, `teacher_marginal_entropy` that of the mean
    distribution, and `teacher_information` their difference, what the channel tells about the voxel: 0 is
    collapse.
    """
    voxels = jnp.maximum(sums.voxels.sum(), 1.0)
    entropy = sums.teacher_entropy.sum() / voxels
    marginal = entr(sums.teacher_probability.sum(axis=0) / voxels).sum()
    return {
        "teacher_entropy": entropy,
        "teacher_marginal_entropy": marginal,
        "teacher_information": marginal - entropy,
    }


def reconstruction_l1(
    prediction: Float[Array, "b z y x 1"],
    target: Float[Array, "b z y x 1"],
    mask: Bool[Array, "b z y x"],
) -> Float[Array, " b"]:
    """Sum of |prediction - target| over each sample's masked voxels.

    The loss is the sum over the batch divided by the batch's number of masked voxels.

    Source: paper, "Pretraining Objective", term (2).
    """
    error = jnp.abs(widen(prediction) - widen(target))[..., 0]
    return jnp.sum(jnp.where(mask, error, 0.0), axis=(1, 2, 3))


def alignment(image: Float[Array, "b d"], text: Float[Array, "b d"]) -> Float[Array, " b"]:
    """One minus the cosine of each pair, in [0, 2]; inputs have unit norm, and no gradient reaches the text.

    The loss is the mean over the batch.

    Source: paper, "Pretraining Objective", term (3).
    """
    return 1.0 - jnp.sum(image * lax.stop_gradient(text), axis=-1)


def contrastive(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    *,
    keys: Int[Array, " b"] | None = None,
    weight: Float[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Symmetric cross-entropy between the images and texts of the global batch, several positives allowed.

    With s_ij = logit_scale · image_i · text_j, targets q_ij = w_j [key_i = key_j] / Σ_k w_k [key_i = key_k]
    and a softmax over the samples of positive weight, the loss is half of
    Σ_i w_i (-Σ_j q_ij log softmax_j s_ij) / Σ_i w_i plus half of the same with s transposed. Without keys
    each sample is its own only positive, which is CLIP. With m equal keys a row cannot fall below log m.

    Args:
        image: unit vectors, the whole global batch.
        text: unit vectors, row i belonging to image i.
        logit_scale: the factor on cosines, one over a temperature.
        keys: caption or class of each sample; equal keys are positives of each other.
        weight: 0 leaves a sample out (padding of a last batch), as row and as candidate.

    Source: paper, "Pretraining Objective", term (4); Radford et al. 2021; several positives as in Khosla et
    al. 2020, with the sum outside the log.
    """
    batch = image.shape[0]
    weight = jnp.ones(batch, wide_type(image)) if weight is None else widen(weight)
    same = jnp.eye(batch, dtype=bool) if keys is None else keys[:, None] == keys[None, :]
    target = same * weight[None, :]
    target = target / jnp.maximum(target.sum(axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    logits = logit_scale * jnp.matmul(widen(image), widen(text).T, precision=EXACT)

    def one_way(scores: Float[Array, "b b"]) -> Float[Array, ""]:
        scores = jnp.where(weight[None, :] > 0, scores, jnp.finfo(jnp.float32).min)
        rows = -jnp.sum(target * jax.nn.log_softmax(scores, axis=1), axis=1)
        return jnp.sum(weight * rows) / jnp.maximum(weight.sum(), jnp.finfo(jnp.float32).tiny)

    return 0.5 * (one_way(logits) + one_way(logits.T))
