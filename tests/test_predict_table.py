"""The summary of a prediction: means and intervals over patches and volumes, and the confusion of classes."""

import csv

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from lsmfm_jax.predict.table import summarise


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_means_of_the_files_that_have_a_truth(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "file": f"in/patchvolume_{k // 3}_{k}_blurred.nii.gz",
            "task": "deblur",
            "maximum": 9.0,
            "truth": "t.nii.gz",
            "psnr": 20 + rng.random(),
            "ssim_blurred": rng.random(),
        }
        for k in range(12)
    ]
    rows += [{"file": "in/other_1.npy", "task": "deblur"}, {"file": "x", "task": "deblur", "error": "no"}]
    lines = summarise(rows, tmp_path)
    psnr, ssim = table(tmp_path / "summary.csv")
    assert (psnr["metric"], ssim["metric"]) == ("psnr", "ssim_blurred")
    values = [row["psnr"] for row in rows[:12]]
    assert float(psnr["mean"]) == pytest.approx(np.mean(values), rel=1e-5)
    assert (psnr["patches"], psnr["volumes"]) == ("12", "4")
    for low, high in (("patches_low", "patches_high"), ("volumes_low", "volumes_high")):
        assert min(values) < float(psnr[low]) < float(psnr["mean"]) < float(psnr[high]) < max(values)
    assert lines[0].startswith("12 files of 4 volumes judged") and len(lines) == 3
    assert not (tmp_path / "confusion.csv").exists()


def test_without_a_truth_there_is_no_summary(tmp_path):
    assert summarise([{"file": "a.npy", "task": "segment", "foreground_frac": 0.1}], tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_few_volumes_have_no_interval(tmp_path):
    rows = [{"file": f"v_patch_{k}_vol001.npy", "task": "segment", "truth": "t", "dice": 0.5} for k in range(4)]
    summarise(rows, tmp_path)
    (row,) = table(tmp_path / "summary.csv")
    assert (row["volumes"], row["volumes_low"], row["patches_low"]) == ("1", "", "0.5")


def test_classes_are_counted_as_scikit_learn_does(tmp_path):
    classes = ["nuclei", "plaque", "vessels"]
    truth = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    predicted = [0, 0, 0, 1, 1, 1, 2, 2, 2, 0]
    rows = [
        {
            "file": f"{classes[t]}_patch_{k}_vol{k:03d}.npy",
            "task": "classify",
            "class": classes[p],
            "truth": classes[t],
            "correct": int(t == p),
            **{f"probability_{name}": 0.3 for name in classes},
        }
        for k, (t, p) in enumerate(zip(truth, predicted, strict=True))
    ]
    summarise(rows, tmp_path)
    accuracy, macro = table(tmp_path / "summary.csv")
    assert float(accuracy["mean"]) == pytest.approx(accuracy_score(truth, predicted))
    assert float(macro["mean"]) == pytest.approx(f1_score(truth, predicted, average="macro"), rel=1e-5)
    assert float(accuracy["patches_low"]) < 0.7 < float(accuracy["patches_high"]) and accuracy["volumes"] == "10"
    counts = [[int(row[f"predicted {name}"]) for name in classes] for row in table(tmp_path / "confusion.csv")]
    np.testing.assert_array_equal(counts, confusion_matrix(truth, predicted))
    assert (tmp_path / "confusion.png").read_bytes()[:4] == b"\x89PNG"
