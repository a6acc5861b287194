"""`lsmfm baseline`: fitted on the patches of a run and no others, written and judged as its predictions are."""

import csv
import json

import nibabel
import numpy as np
import pytest
from labelled_toy import write_patch, write_patches
from skimage.filters import threshold_otsu
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lsmfm_jax.cli import main
from lsmfm_jax.config import defaults
from lsmfm_jax.config.load import as_json
from lsmfm_jax.metrics.segmentation import foreground_scores
from lsmfm_jax.tasks.finetune_patches import read_patches, run_configuration
from lsmfm_jax.volumes.read import read_single


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("labelled"), count=8, size=18)


def begin_run(folder, task, patches, **changes):
    """What a run of the task has in its folder before its first step."""
    config = defaults(task)
    config.data.folder, config.data.patch_size, config.data.validation_frac = str(patches), (16, 16, 16), 0.26
    for name, value in changes.items():
        config.data[name] = value
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(as_json(config)))
    return read_patches(config, folder, print_line=lambda line: None)


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_configuration_of_a_run_comes_back(patches, tmp_path):
    begin_run(tmp_path / "run", "segment", patches, upper_percentile="99.9")
    config = run_configuration(tmp_path / "run")
    assert (config.task, config.data.upper_percentile, config.data.patch_size) == ("segment", "99.9", (16, 16, 16))


def test_thresholds_are_those_of_the_training_patches(patches, tmp_path, capsys):
    read = begin_run(tmp_path / "run", "segment", patches)
    unseen, out = tmp_path / "unseen", tmp_path / "out"
    write_patch(unseen, "fresh_patch_000_vol100_ch0", size=18, seed=50)
    arguments = ["baseline", "--run", str(tmp_path / "run"), str(unseen), "--out", str(out)]
    assert main(arguments) == 0
    facts = json.loads((out / "threshold" / "baseline.json").read_text())
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert facts["patches"] == [record["name"] for record in split["train"]] and len(split["validation"]) == 2

    image, _ = read_single(unseen / "fresh_patch_000_vol100_ch0.nii.gz")
    otsu, best = (
        nibabel.load(out / name / "fresh_patch_000_vol100_ch0_mask.nii.gz").get_fdata().transpose(2, 1, 0) > 0
        for name in ("otsu", "threshold")
    )
    np.testing.assert_array_equal(otsu, image > threshold_otsu(image))
    # No other threshold does better on the training patches, each on its own percentiles' scale.
    scaled = [(p.image.astype(np.float32) - p.low) / (p.high - p.low) for p in read.train]

    def dice(value):
        scores = [foreground_scores(x > value, p.target > 0)["dice"] for x, p in zip(scaled, read.train, strict=True)]
        return np.mean(scores)

    assert facts["train_dice"] == pytest.approx(dice(facts["scaled_threshold"]), abs=1e-6)
    assert facts["train_dice"] >= max(dice(value) for value in np.linspace(0, 1.5, 40)) - 5e-3
    low, high = np.percentile(image, (1, 99))
    np.testing.assert_array_equal(best, (image - low) / (high - low) > facts["scaled_threshold"])

    truth, _ = read_single(unseen / "fresh_patch_000_vol100_ch0_label.nii.gz")
    (row,) = table(out / "threshold" / "predictions.csv")
    assert float(row["dice"]) == pytest.approx(foreground_scores(best, truth > 0)["dice"], abs=1e-5)
    assert (out / "otsu" / "fresh_patch_000_vol100_ch0.png").read_bytes()[:4] == b"\x89PNG"
    judged = ["evaluate", "--pred", str(out / "threshold"), "--label", str(unseen), "--out", str(tmp_path / "t.csv")]
    assert main([*judged, "--method", "threshold"]) == 0
    scores = next(row for row in table(tmp_path / "t.csv") if row["method"] == "threshold")
    assert float(scores["dice"]) == pytest.approx(float(row["dice"]), abs=1e-5)

    capsys.readouterr()
    assert main(arguments) == 2
    assert "there already" in capsys.readouterr().err


def test_pca_is_fitted_on_the_training_patches_and_names_classes(patches, tmp_path):
    read = begin_run(tmp_path / "run", "classify", patches, patch_size=(18, 18, 18))
    out = tmp_path / "out"
    assert main(["baseline", "--run", str(tmp_path / "run"), str(patches), "--out", str(out)]) == 0

    def features(images):
        scaled = [np.clip((x - np.percentile(x, 1)) / np.ptp(np.percentile(x, (1, 99))), 0, 1) for x in images]
        return np.stack([x.reshape(6, 3, 6, 3, 6, 3).mean(axis=(1, 3, 5)).ravel() for x in scaled])

    model = make_pipeline(
        PCA(len(read.train) - 1, random_state=0), StandardScaler(), LogisticRegression(class_weight="balanced")
    ).fit(features([p.image for p in read.train]), [p.label for p in read.train])
    rows = table(out / "pca" / "predictions.csv")
    assert len(rows) == 8 and {row["truth"] for row in rows} == {"dense", "sparse"}
    probabilities = model.predict_proba(features([read_single(row["file"])[0] for row in rows]))
    for row, expected in zip(rows, probabilities, strict=True):
        ours = [float(row[f"probability_{name}"]) for name in read.classes]
        np.testing.assert_allclose(ours, expected, atol=5e-3)
        assert row["class"] == read.classes[int(np.argmax(ours))]


def test_runs_without_a_baseline_say_why(patches, tmp_path, capsys):
    def refused(run):
        capsys.readouterr()
        assert main(["baseline", "--run", str(run), str(patches), "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    begin_run(tmp_path / "deblur", "deblur", patches)
    assert "of task 'deblur' needs no baseline" in refused(tmp_path / "deblur")
    assert "no config.json there" in refused(tmp_path)
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "config.json").write_text(json.dumps(as_json(defaults("pretrain"))))
    assert "a run of task 'pretrain'; name a run of lsmfm finetune" in refused(tmp_path / "pretrain")
    begin_run(tmp_path / "run", "segment", patches)
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    split["train"][0]["sha256"] = "0"
    (tmp_path / "run" / "split.json").write_text(json.dumps(split))
    assert "began with other patches" in refused(tmp_path / "run")
    (tmp_path / "run" / "split.json").unlink()
    assert "no split.json there" in refused(tmp_path / "run")
    assert not (tmp_path / "out").exists()
