"""Classification metrics against scikit-learn, and the table and picture of a confusion matrix."""

import csv

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from lsmfm_jax.metrics import classification

NAMES = ["plaque", "nucleus", "vessels", "c-Fos"]


@pytest.fixture(scope="module")
def samples() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    truth = random.integers(0, 4, 60)
    return truth, np.where(random.uniform(size=60) < 0.6, truth, random.integers(0, 4, 60))


def test_scores_equal_scikit_learn(samples):
    matrix = classification.confusion_matrix(*samples, classes=4)
    np.testing.assert_array_equal(matrix, sklearn_metrics.confusion_matrix(*samples))
    scores = classification.classification_scores(matrix)
    assert scores["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(*samples))
    assert scores["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(*samples, average="macro"))
    expected = sklearn_metrics.precision_recall_fscore_support(*samples)
    got = classification.class_scores(matrix)
    for name, values in zip(("precision", "recall", "f1", "samples"), expected, strict=True):
        np.testing.assert_allclose(got[name], values)


def test_absent_classes():
    # Class 1 is only ever predicted, class 2 only true, class 3 neither.
    truth, predicted = np.array([0, 0, 0, 2]), np.array([0, 0, 1, 0])
    matrix = classification.confusion_matrix(truth, predicted, classes=4)
    got = classification.class_scores(matrix)
    np.testing.assert_allclose(got["precision"], [2 / 3, 0, 0, np.nan])
    np.testing.assert_allclose(got["recall"], [2 / 3, 0, 0, np.nan])
    np.testing.assert_allclose(got["f1"], [2 / 3, 0, 0, np.nan])
    np.testing.assert_array_equal(got["samples"], [3, 0, 1, 0])
    expected = sklearn_metrics.f1_score(truth, predicted, average="macro")
    assert classification.classification_scores(matrix)["macro_f1"] == pytest.approx(expected)
    assert expected == pytest.approx(2 / 9)


def test_no_sample_scores_zero():
    matrix = classification.confusion_matrix(np.array([], int), np.array([], int), classes=3)
    assert classification.classification_scores(matrix) == {"accuracy": 0.0, "macro_f1": 0.0}


def test_a_class_number_out_of_range_is_an_error():
    with pytest.raises(ValueError, match="the prediction has class numbers from 0 to 4"):
        classification.confusion_matrix(np.array([0, 1]), np.array([0, 4]), classes=4)


def test_the_csv_holds_counts_and_scores(samples, tmp_path):
    matrix = classification.confusion_matrix(*samples, classes=4)
    classification.write_confusion_csv(matrix, NAMES, tmp_path / "confusion.csv")
    header, *rows = csv.reader((tmp_path / "confusion.csv").open())
    assert header[:2] == ["truth", "predicted plaque"]
    assert [row[0] for row in rows] == NAMES
    np.testing.assert_array_equal(np.array([row[1:5] for row in rows], int), matrix)
    recall = np.array([row[header.index("recall")] for row in rows], float)
    np.testing.assert_allclose(recall, sklearn_metrics.recall_score(*samples, average=None), rtol=1e-5)


def test_the_picture_shows_every_count(samples, tmp_path):
    matrix = classification.confusion_matrix(*samples, classes=4)
    figure = classification.confusion_figure(matrix, NAMES)
    figure.savefig(tmp_path / "confusion.png", dpi=50)
    assert (tmp_path / "confusion.png").stat().st_size > 1000
    axes = figure.axes[0]
    shown = {tuple(map(int, text.get_position())): int(text.get_text()) for text in axes.texts}
    assert shown == {(c, r): n for (r, c), n in np.ndenumerate(matrix) if n}
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
