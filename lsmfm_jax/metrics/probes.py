"""What pretrained features are worth, without labels: how many directions they use, and who their neighbours are."""

import numpy as np
from jaxtyping import Float, Int


def probe(
    features: Float[np.ndarray, "n c"], classes: Int[np.ndarray, " n"], volumes: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """What a validation set's features are worth.

    Args:
        features: a row for each sample.
        classes: of each; -1 is none, and counts for the rank alone.
        volumes: number of each sample's volume.

    Returns:
        `feature_rank` of all, and of those that have a class what `neighbour_accuracy` gives.
    """
    named = classes >= 0
    neighbours = neighbour_accuracy(features[named], classes[named], volumes[named])
    return {"feature_rank": effective_rank(features), **neighbours}


def effective_rank(features: Float[np.ndarray, "n c"]) -> float:
    """How many directions the features use: 1 where all lie on one line (collapse), at most min(n - 1, c).

    The exponential of the entropy of the singular values of the centred features, as shares of their sum (RankMe,
    Garrido et al. 2023, there without centring; features after a ReLU share a large mean, which would hide the rest).

    Args:
        features: a row for each sample.

    Returns:
        0 where no two samples differ.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    values = np.linalg.svd(centred, compute_uv=False)
    if values.sum() <= 1e-9 * np.abs(features).max(initial=0.0):
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def neighbour_accuracy(
    features: Float[np.ndarray, "n c"], classes: Int[np.ndarray, " n"], volumes: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """How often the nearest neighbour in another volume is of the same class, and chance.

    Neighbours of the same volume do not count: they are alike whatever a network has learnt. Samples whose class is in
    no other volume have no right answer and are left out. Nearest is by the cosine of the centred features.

    Args:
        features: a row for each sample.
        classes: such as the caption's key.
        volumes: number of each sample's volume.

    Returns:
        `neighbour_accuracy` and `neighbour_chance`, both in [0, 1]; nothing where fewer than two classes can be asked
        for.
    """
    candidate = volumes[:, None] != volumes[None, :]
    right = candidate & (classes[:, None] == classes[None, :])
    asked = right.any(axis=1)
    if len(np.unique(classes[asked])) < 2:
        return {}
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    nearest = np.argmax(np.where(candidate, unit @ unit.T, -np.inf), axis=1)
    found = right[np.arange(len(nearest)), nearest]
    chance = right[asked].sum(axis=1) / candidate[asked].sum(axis=1)
    return {"neighbour_accuracy": float(found[asked].mean()), "neighbour_chance": float(chance.mean())}
