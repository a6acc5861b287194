"""Calibration by a patch of a new volume: the cut-off moves, the run stays, and what cannot be used is refused."""

import json

import numpy as np
import pytest

from lsmfm_jax.cli import main
from lsmfm_jax.predict.calibration import calibrate
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.network import load_predictor
from lsmfm_jax.volumes.read import read_single, write_nifti

SIZES = ["model.out_channels=4", "model.unet.channels=(4,8)", "model.unet.strides=(2,)"]


def blobs(seed: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.zeros((24, 24, 24), bool)
    for centre in rng.integers(4, 20, (5, 3)):
        mask |= sum((axis - at) ** 2 for axis, at in zip(np.indices(mask.shape), centre, strict=True)) < 9
    counts = rng.normal(500, 25, mask.shape) + mask * gain * 500
    return counts.clip(0).astype(np.uint16), mask.astype(np.uint8)


def write(folder, name, seed, gain=1.0):
    folder.mkdir(exist_ok=True)
    image, mask = blobs(seed, gain)
    write_nifti(folder / f"{name}.nii.gz", image, like=None)
    write_nifti(folder / f"{name}_label.nii.gz", mask, like=None)
    return folder / f"{name}.nii.gz"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    for number in range(4):
        write(folder / "patches", f"a_patch_00{number}_vol{number}_ch0", number)
    keys = [f"data.folder={folder / 'patches'}", "data.patch_size=(16,16,16)", "data.crops_per_patch=4"]
    keys += ["train.epochs=1", "train.batch_size=8"]
    overrides = [f"--config.{key}" for key in (*SIZES, *keys)]
    assert main(["finetune", "--config", "segment_unet:tiny", "--workdir", str(folder / "run"), *overrides]) == 0
    return folder / "run"


def test_the_cut_off_moves_and_the_run_stays(run, tmp_path):
    # Labels of the brightest voxels alone: another style than that of the training patches.
    image = write(tmp_path / "new", "b_vol9", 9, gain=1.0)
    counts, info = read_single(image)
    strict = (counts > 1010).astype(np.uint8)
    write_nifti(tmp_path / "new" / "b_vol9_label.nii.gz", strict, like=info)
    before = (run / "run.json").read_bytes()
    lines = []
    found = calibrate(run, [image], tmp_path / "moved", print_line=lines.append)
    assert found["dice_after"] > found["dice_before"] + 0.02 and found["logit_shift"] < 0
    assert (run / "run.json").read_bytes() == before
    record = json.loads((tmp_path / "moved" / "run.json").read_text())
    assert record["calibrated_on"] == ["b_vol9"] and record["logit_shift"] == found["logit_shift"]
    predictors = [load_predictor(folder) for folder in (run, tmp_path / "moved")]
    prepared = predictors[0].prepared(counts, predictors[0].levels(counts))
    old, new = (np.asarray(predictor.apply(prepared[None, :16, :16, :16])) for predictor in predictors)
    # float32 tells small probabilities apart, but not those next to 1.
    told_apart = (np.minimum(old, new) > 1e-30) & (np.maximum(old, new) < 1 - 1e-3)
    logits = [np.log(p[told_apart]) - np.log1p(-p[told_apart]) for p in (old.astype(float), new.astype(float))]
    assert told_apart.any()
    np.testing.assert_allclose(logits[1] - logits[0], found["logit_shift"], atol=1e-2)
    assert main(["predict", "--checkpoint", str(tmp_path / "moved"), str(image), "--out", str(tmp_path / "p")]) == 0


def uneven(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Blobs of twice the background, which grows threefold along X; and where they are."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((24, 24, 48), bool)
    for centre in zip(rng.integers(4, 20, 9), rng.integers(4, 20, 9), rng.integers(4, 44, 9), strict=True):
        mask |= sum((axis - at) ** 2 for axis, at in zip(np.indices(mask.shape), centre, strict=True)) < 9
    light = np.geomspace(300, 900, 48) * rng.normal(1, 0.05, mask.shape)
    return (light * (1 + mask)).astype(np.uint16), mask


@pytest.mark.parametrize("by_counts", [True, False])
def test_the_patches_tell_whether_the_background_is_fixed_in_counts(run, tmp_path, by_counts):
    """What was drawn is what is above so many counts, or what stands out from its surroundings."""
    (tmp_path / "new").mkdir()
    for seed in (1, 2):
        counts, blobs_there = uneven(seed)
        label = counts > 1100 if by_counts else blobs_there
        write_nifti(tmp_path / "new" / f"b_vol{seed}.nii.gz", counts, like=None)
        write_nifti(tmp_path / "new" / f"b_vol{seed}_label.nii.gz", label.astype(np.uint8), like=None)
    lines = []
    found = calibrate(run, [tmp_path / "new" / "b_vol1.nii.gz"], tmp_path / "moved", print_line=lines.append)
    assert (found["fixed_level"] is not None) == by_counts
    assert any(line.startswith("the background counts as ") for line in lines) == by_counts
    predictor = load_predictor(tmp_path / "moved")
    assert predictor.scale.fixed_level == found["fixed_level"]
    if by_counts:
        # A brighter half and a darker one of the same volume are scaled alike: by counts, whatever is around them.
        halves = [counts[..., :24], counts[..., 24:]]
        scaled = [predictor.prepared(half, predictor.levels(half)) for half in halves]
        np.testing.assert_allclose(np.concatenate(scaled, axis=2), predictor.prepared(counts, predictor.levels(counts)))
        expected = (np.log2(counts) - found["fixed_level"] + 1) / 5
        np.testing.assert_allclose(scaled[1], expected[..., 24:].clip(0, 1), atol=1e-5)
    again = calibrate(tmp_path / "moved", [tmp_path / "new" / "b_vol1.nii.gz"], tmp_path / "two", print_line=_quiet)
    assert again["dice_before"] == pytest.approx(found["dice_after"], abs=0.02)
    assert again["fixed_level"] == found["fixed_level"]


def _quiet(line):
    pass


def test_calibrating_again_starts_from_what_is_there(run, tmp_path):
    image = write(tmp_path / "new", "b_vol9", 9)
    first = calibrate(run, [image], tmp_path / "one", print_line=lambda line: None)
    again = calibrate(tmp_path / "one", [image], tmp_path / "two", print_line=lambda line: None)
    assert again["logit_shift"] == pytest.approx(first["logit_shift"], abs=1e-2)
    assert again["dice_before"] == pytest.approx(first["dice_after"], abs=0.02)


def test_what_cannot_be_used_is_refused(run, tmp_path, capsys):
    image = write(tmp_path / "new", "b_vol9", 9)
    label = tmp_path / "new" / "b_vol9_label.nii.gz"
    arguments = ["calibrate", str(run), "--patch", str(image), "--out", str(tmp_path / "moved")]
    write_nifti(label, np.zeros((24, 24, 24), np.uint8), like=None)
    assert main(arguments) == 2 and "no foreground" in capsys.readouterr().err
    label.unlink()
    assert main(arguments) == 2 and "no label beside it" in capsys.readouterr().err
    assert not (tmp_path / "moved").exists()
    write(tmp_path / "new", "b_vol9", 9)
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "notes.txt").write_text("mine")
    assert main(arguments) == 2 and (tmp_path / "moved" / "notes.txt").read_text() == "mine"
    with pytest.raises(PredictionError, match="no such file"):
        calibrate(run, [tmp_path / "absent.nii.gz"], tmp_path / "other")
