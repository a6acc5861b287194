"""Probes of pretrained features, against scikit-learn and cases that can be told by hand."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from lsmfm_jax.metrics.probes import effective_rank, neighbour_accuracy, probe


def test_the_rank_counts_directions_that_are_used_alike():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(20, 6)))[0]
    # Columns of a matrix with orthonormal, centred columns have equal singular values.
    for used in (1, 2, 6):
        points = np.linalg.qr(np.concatenate([np.ones((50, 1)), rng.normal(size=(50, used))], axis=1))[0][:, 1:]
        assert effective_rank(points @ basis[:, :used].T + 7.0) == pytest.approx(used)
    assert effective_rank(np.ones((9, 4), np.float32)) == 0.0
    assert effective_rank(rng.normal(size=(1, 4))) == 0.0


def test_a_weak_direction_counts_less_than_one():
    points = np.zeros((4, 3))
    points[:, 0], points[:, 1] = [1, -1, 1, -1], [0.1, 0.1, -0.1, -0.1]
    shares = np.array([1.0, 0.1]) / 1.1
    assert effective_rank(points) == pytest.approx(np.exp(-np.sum(shares * np.log(shares))))


def test_neighbours_agree_with_scikit_learn_when_each_sample_is_a_volume():
    rng = np.random.default_rng(2)
    classes = rng.integers(0, 3, 60)
    features = rng.normal(size=(60, 5)) + 1.5 * np.eye(3, 5)[classes]
    centred = features - features.mean(axis=0)
    right = 0
    for left_out in range(60):
        others = np.arange(60) != left_out
        model = KNeighborsClassifier(1, metric="cosine").fit(centred[others], classes[others])
        right += model.predict(centred[left_out : left_out + 1])[0] == classes[left_out]
    found = neighbour_accuracy(features, classes, np.arange(60))
    assert found["neighbour_accuracy"] == right / 60
    counts = np.bincount(classes)
    assert found["neighbour_chance"] == pytest.approx(np.mean([(counts[own] - 1) / 59 for own in classes]))


def test_patches_of_the_same_volume_are_no_neighbours():
    """Features that tell volumes apart and nothing else are not taken for features that know stains."""
    rng = np.random.default_rng(3)
    volumes = np.repeat(np.arange(8), 10)
    classes = volumes % 2
    features = rng.normal(size=(8, 16))[volumes] + 0.01 * rng.normal(size=(80, 16))
    same = neighbour_accuracy(features, classes, np.arange(80))["neighbour_accuracy"]
    apart = neighbour_accuracy(features, classes, volumes)
    assert same == 1.0 and apart["neighbour_accuracy"] < 0.9
    assert apart["neighbour_chance"] == pytest.approx(3 / 7)


def test_classes_that_no_other_volume_has_are_not_asked_for():
    features = np.array([[1.0, 0.0], [0.9, 0.0], [-1.0, 0.1], [-1.0, 0.0], [5.0, 5.0]])
    found = neighbour_accuracy(features, np.array([0, 0, 1, 1, 2]), np.arange(5))
    assert found == {"neighbour_accuracy": 1.0, "neighbour_chance": pytest.approx(1 / 4)}
    assert neighbour_accuracy(features, np.array([0, 0, 1, 2, 3]), np.arange(5)) == {}
    assert neighbour_accuracy(features[:0], np.zeros(0, int), np.zeros(0, int)) == {}


def test_samples_without_a_class_count_for_the_rank_alone():
    rng = np.random.default_rng(4)
    features, classes, volumes = rng.normal(size=(12, 3)), np.arange(12) % 3 - 1, np.arange(12)
    found, named = probe(features, classes, volumes), classes >= 0
    assert found["feature_rank"] == effective_rank(features)
    assert (
        found["neighbour_accuracy"]
        == neighbour_accuracy(features[named], classes[named], volumes[named])["neighbour_accuracy"]
    )
