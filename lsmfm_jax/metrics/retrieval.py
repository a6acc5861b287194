"""Image-text retrieval accuracy, with several right answers where captions are shared."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lsmfm_jax.errors import InputError


class Ahead(NamedTuple):
    """How many wrong candidates rank before the best right one, for each sample as a query, both ways."""

    image_to_text: Int[np.ndarray, " n"]
    text_to_image: Int[np.ndarray, " n"]


def wrong_ahead(image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n d"], keys: Int[np.ndarray, " n"]) -> Ahead:
    """Counts the wrong candidates before the best right one; 0 is a right answer at the first place.

    Every sample is a query and all samples of the other modality are its candidates, ranked by dot product.
    A wrong candidate that scores as high as the best right one ranks before it, so collapsed embeddings score
    at the bottom and not by luck of their order.

    Args:
        image: unit vectors.
        text: unit vectors, row i belonging to image i.
        keys: caption key of each sample; a candidate of the query's own key is right.

    Raises:
        ValueError: there are no samples.
    """
    if len(keys) == 0:
        raise InputError("retrieval accuracy of no samples: the validation set is empty")
    same = keys[:, None] == keys[None, :]
    scores = image.astype(np.float64) @ text.astype(np.float64).T

    def ahead(ranked: Float[np.ndarray, "n n"]) -> Int[np.ndarray, " n"]:
        best = np.where(same, ranked, -np.inf).max(axis=1, keepdims=True)
        # Two sums of the same products may differ in their last bits.
        return np.sum(~same & (ranked >= best - 1e-12), axis=1)

    return Ahead(ahead(scores), ahead(scores.T))


def retrieval_accuracy(
    image: Float[np.ndarray, "n d"],
    text: Float[np.ndarray, "n d"],
    keys: Int[np.ndarray, " n"],
    *,
    top: tuple[int, ...] = (1, 5),
) -> dict[str, float]:
    """Share of queries whose k best candidates hold one with the query's own key, both ways, and chance.

    Candidates are ranked as `wrong_ahead` has it. Chance is what a random ranking of the same candidates
    gives: 1 - C(n - m, k) / C(n, k) for a query with m right ones, averaged.

    Args:
        image: unit vectors.
        text: unit vectors, row i belonging to image i.
        keys: caption key of each sample.
        top: values of k.

    Returns:
        `image_to_text_top<k>`, `text_to_image_top<k>` and `chance_top<k>`, each in [0, 1].

    Raises:
        ValueError: there are no samples.
    """
    found = wrong_ahead(image, text, keys)
    result = {f"{name}_top{k}": float(np.mean(ahead < k)) for name, ahead in found._asdict().items() for k in top}
    positives = np.sum(keys[:, None] == keys[None, :], axis=1)
    return result | {f"chance_top{k}": _chance(positives, k) for k in top}


def _chance(positives: Int[np.ndarray, " n"], k: int) -> float:
    total = len(positives)
    if k >= total:
        return 1.0
    return float(np.mean([1.0 - math.comb(total - int(m), k) / math.comb(total, k) for m in positives]))
