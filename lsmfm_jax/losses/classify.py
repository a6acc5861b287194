"""Cross-entropy of patch classification, and class weights from the counts of the training set."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from lsmfm_jax.config.schema import CLASS_WEIGHTS
from lsmfm_jax.errors import InputError
from lsmfm_jax.precision import widen


def class_weights(counts: Int[np.ndarray, " k"], *, method: str, beta: float = 0.999) -> Float[np.ndarray, " k"]:
    """Weight of each class in the loss, from how many training samples it has.

    `inverse_frequency` is N / (K n), N samples of K classes, scikit-learn's "balanced". `effective_number` is
    (1 - beta) / (1 - beta^n) (Cui et al. 2019), scaled so that the K weights sum to K. A class without a
    sample gets the weight 0, and does not count in K: its weight would be infinite, and no sample uses it.

    Args:
        counts: training samples per class.
        method: one of `CLASS_WEIGHTS`.
        beta: of `effective_number`, in [0, 1): 0 gives equal weights, near 1 inverse frequency.

    Returns:
        float32 weights.

    Raises:
        ValueError: for an unknown method, a beta outside [0, 1), a negative count, or no sample at all.
    """
    if method not in CLASS_WEIGHTS:
        raise InputError(f"class_weights method {method!r} is unknown: use one of {', '.join(CLASS_WEIGHTS)}")
    if not 0.0 <= beta < 1.0:
        raise InputError(f"class_weights beta is {beta}: give a number from 0 up to, not including, 1")
    if counts.min() < 0 or counts.sum() == 0:
        raise InputError(f"class_weights got the counts {counts.tolist()}: give at least one training sample")
    present = counts > 0
    if method == "none":
        return present.astype(np.float32)
    number = np.where(present, counts, 1).astype(np.float64)
    if method == "inverse_frequency":
        raw = counts.sum() / (present.sum() * number)
    else:
        raw = (1.0 - beta) / (1.0 - beta**number)
        raw = raw * present.sum() / raw[present].sum()
    return np.where(present, raw, 0.0).astype(np.float32)


def cross_entropy(logits: Num[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Cross-entropy of the softmax of `logits` for each sample, float32; labels are class numbers, 0 to K - 1."""
    return -jnp.take_along_axis(jax.nn.log_softmax(widen(logits)), labels[:, None], axis=1)[:, 0]


def shares_by_class(weights_of_classes: Num[Array, " k"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Weight of each sample in the mean loss of a batch: `w[label]` over its sum, all 0 where all weights are 0.

    With these, the sum of `cross_entropy` is what torch's `CrossEntropyLoss(weight)` reduces to.
    """
    weights = weights_of_classes.astype(jnp.float32)[labels]
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1.0)
