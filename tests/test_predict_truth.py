"""Predictions and their truths: blank volumes, label values as the run took them, labels on another grid."""

import nibabel
import numpy as np
import pytest

from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.network import Predictor
from lsmfm_jax.predict.run import Settings, predict
from lsmfm_jax.scale import Scale

AFFINE = np.array([[0.002, 0, 0, 1.5], [0, 0.002, 0, -4.0], [0, 0, 0.006, 2.0], [0, 0, 0, 1]])


def save(path, zyx, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(zyx.T), affine), path)


@pytest.fixture
def network(monkeypatch):
    """A "network" that knows what is bright, and finds something in a blank volume; its record is returned."""
    record: dict = {}

    def bright(windows):
        return np.where(windows >= 0.5, 0.9, 0.6 * (windows.max() == 0))

    predictor = Predictor("segment", record, "a threshold", (16, 16, 16), Scale(), apply=bright)
    monkeypatch.setattr("lsmfm_jax.predict.run.load_ensemble", lambda *_, **__: predictor)
    return record


def volume():
    image = np.random.default_rng(0).poisson(100, (16, 18, 20)).astype(np.uint16)
    image[3:7, 3:7, 3:7] += 800
    image[11:14, 10:15, 5:9] += 800
    return image


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_a_blank_volume_has_an_empty_mask_and_is_judged(threshold, network, tmp_path):
    blank = np.full((16, 18, 20), 107, np.uint16)
    save(tmp_path / "a.nii.gz", blank)
    save(tmp_path / "a_label.nii.gz", np.zeros_like(blank, np.uint8))
    save(tmp_path / "b.nii.gz", volume())
    rows = predict(
        tmp_path, [tmp_path], tmp_path / "o", settings=Settings(threshold=threshold), print_line=lambda line: None
    )
    assert not nibabel.load(tmp_path / "o" / "a_mask.nii.gz").get_fdata().any()
    assert not nibabel.load(tmp_path / "o" / "a_prob.nii.gz").get_fdata().any()
    assert rows[0]["foreground_frac"] == 0 and rows[0]["dice"] == 1 and rows[1]["foreground_frac"] > 0


def test_a_truth_is_read_as_the_run_read_its_labels(network, tmp_path):
    image = volume()
    label = np.where(image > 500, 2, 1).astype(np.uint8)
    label[9:] = 0  # nobody looked there
    save(tmp_path / "a.nii.gz", image)
    save(tmp_path / "a_label.nii.gz", label)
    network["labels"] = {"foreground": [2], "background": [], "ignore": [0]}
    (row,) = predict(tmp_path, [tmp_path], tmp_path / "o", print_line=lambda line: None)
    assert row["dice"] == row["cl_dice"] == row["panoptic_quality"] == 1.0 and row["true_positives"] == 1
    del network["labels"]  # a run from before they were recorded
    (row,) = predict(tmp_path, [tmp_path], tmp_path / "p", print_line=lambda line: None)
    assert row["dice"] < 0.2


def test_a_label_without_foreground_is_named_where_it_makes_the_dice_zero(network, tmp_path):
    image = volume()
    save(tmp_path / "a.nii.gz", image)
    save(tmp_path / "a_label.nii.gz", np.where(image > 500, 255, 0).astype(np.uint8))
    lines: list[str] = []
    for value in (255, 3):
        network["labels"] = {"foreground": [value], "background": [], "ignore": []}
        predict(tmp_path, [tmp_path], tmp_path / f"o{value}", print_line=lines.append)
    told = [line for line in lines if "a_label.nii.gz has no voxel that counts as foreground" in line]
    assert len(told) == 1 and lines.index(told[0]) > len(lines) // 2


def test_a_mirrored_truth_is_turned_and_a_shifted_one_refused(network, tmp_path):
    image = volume()
    mirrored = AFFINE.copy()
    mirrored[:3, 3] += AFFINE[:3, 0] * 19
    mirrored[:3, 0] *= -1
    save(tmp_path / "a.nii.gz", image)
    save(tmp_path / "a_label.nii.gz", (image > 500).astype(np.uint8)[:, :, ::-1], mirrored)
    (row,) = predict(tmp_path, [tmp_path], tmp_path / "o", print_line=lambda line: None)
    assert row["dice"] == 1.0
    shifted = AFFINE.copy()
    shifted[2, 3] -= 3 * 0.006
    save(tmp_path / "a_label.nii.gz", (image > 500).astype(np.uint8), shifted)
    with pytest.raises(PredictionError, match=r"a_label\.nii\.gz lies -3 in Z voxels off .*a\.nii\.gz"):
        predict(tmp_path, [tmp_path], tmp_path / "p", print_line=lambda line: None)
