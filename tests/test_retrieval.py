"""Retrieval accuracy against counting by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from lsmfm_jax.metrics.retrieval import retrieval_accuracy


def unit_rows(rng, *shape):
    rows = rng.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_distinct_keys_equal_scikit_learn():
    rng = np.random.default_rng(0)
    text = unit_rows(rng, 30, 6)
    image = text + 0.6 * unit_rows(rng, 30, 6)
    result = retrieval_accuracy(image, text, np.arange(30))
    for k in (1, 5):
        scores = image @ text.T
        assert result[f"image_to_text_top{k}"] == top_k_accuracy_score(np.arange(30), scores, k=k)
        assert result[f"text_to_image_top{k}"] == top_k_accuracy_score(np.arange(30), scores.T, k=k)
        assert result[f"chance_top{k}"] == pytest.approx(k / 30)
    assert 0.1 < result["image_to_text_top1"] < 1.0


def test_any_candidate_with_the_same_key_is_right():
    # Image 0 is nearest to text 1, which has its key; image 2 is nearest to text 0, which has not.
    text = np.eye(3, dtype=np.float32)
    image = text[[1, 0, 0]]
    result = retrieval_accuracy(image, text, np.asarray([7, 7, 8]), top=(1,))
    assert result["image_to_text_top1"] == pytest.approx(2 / 3)
    # Text 1 finds image 0. Text 0 finds images 1 and 2 alike, text 2 all three: the wrong one ranks ahead.
    assert result["text_to_image_top1"] == pytest.approx(1 / 3)
    assert result["chance_top1"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3)


def test_random_embeddings_score_at_chance():
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 8, 400)
    result = retrieval_accuracy(unit_rows(rng, 400, 16), unit_rows(rng, 400, 16), keys)
    for k in (1, 5):
        assert result[f"image_to_text_top{k}"] == pytest.approx(result[f"chance_top{k}"], abs=0.08)


def test_collapsed_embeddings_score_nothing():
    same = np.tile(np.asarray([[0.6, 0.8]], np.float32), (10, 1))
    result = retrieval_accuracy(same, same, np.arange(10))
    assert result["image_to_text_top1"] == result["text_to_image_top5"] == 0.0


def test_fewer_samples_than_k_and_none_at_all():
    rng = np.random.default_rng(2)
    rows = unit_rows(rng, 3, 4)
    result = retrieval_accuracy(rows, rows, np.arange(3))
    assert result["image_to_text_top5"] == result["chance_top5"] == 1.0
    with pytest.raises(ValueError, match="no samples"):
        retrieval_accuracy(rows[:0], rows[:0], np.arange(0))
