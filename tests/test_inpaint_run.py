"""Inpainting from end to end: a run on intact images, then a damaged one restored where its mask says."""

import csv
import json

import numpy as np
import pytest
from damaged_volumes import AFFINE, SIDE, damaged, save_nifti
from smooth_volumes import smooth_volumes
from toy_backbone import TOY

from lsmfm_jax.cli import main
from lsmfm_jax.models import BACKBONES
from lsmfm_jax.publish.card import card
from lsmfm_jax.volumes.read import read_single, write_nifti

SETTINGS = {
    "model.name": "toy",
    "model.out_channels": 4,
    "data.patch_size": (16, 16, 16),
    "data.crops_per_patch": 4,
    "mask.block_sizes": (4, 8),
    "optim.schedule": "constant",
    "train.batch_size": 8,
    "train.epochs": 2,
    "train.validate_every_epochs": 1,
    "train.pictures_count": 1,
    "train.tensorboard": False,
}


@pytest.fixture(scope="module")
def toy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "toy", TOY)
        yield


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    """A run that was finetuned on eight intact volumes."""
    folder = tmp_path_factory.mktemp("inpaint")
    (folder / "intact").mkdir()
    for number, volume in enumerate(smooth_volumes(8, side=SIDE)):
        write_nifti(folder / "intact" / f"mouse{number}.nii.gz", volume.astype(np.uint16), like=None)
    overrides = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    overrides.append(f"--config.data.folder={folder / 'intact'}")
    assert main(["finetune", "--config", "inpaint_unet:tiny", "--workdir", str(folder / "run"), *overrides]) == 0
    return folder / "run"


def test_a_run_needs_no_labels_and_tells_what_the_network_adds_to_a_plain_fill(run):
    record = json.loads((run / "run.json").read_text())
    assert record["task"] == "inpaint" and record["fill"] == 0.0 and record["head"] == {"kind": "dense", "outputs": 1}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = (line for line in lines if line["kind"] == "validation")
    # The same boxes are asked for each time: what does not depend on the network does not change.
    for name in ("l1_smooth", "ssim_smooth", "l1_mean", "ssim_mean"):
        assert first[name] == last[name]
    assert max(last["l1"], last["l1_smooth"]) < 0.75 * last["l1_mean"]
    assert last["loss"] == pytest.approx(last["l1"] + 0.2 * (1 - last["ssim"]), rel=1e-5)
    assert list((run / "pictures").glob("*.png"))
    text = card(run)
    assert "inpainting: hidden voxels restored" in text and "restores what `<name>_mask` beside `<name>` marks" in text


def test_boxes_are_restored_better_than_by_a_mean_and_judged_by_an_intact_volume(run, tmp_path, capsys):
    for folder in ("damaged", "intact"):
        (tmp_path / folder).mkdir()
    image, hidden, whole = damaged(tmp_path / "damaged", "a_1")
    save_nifti(tmp_path / "intact" / "a_1.nii.gz", whole)
    out = tmp_path / "out"
    command = ["predict", "--checkpoint", str(run), str(tmp_path / "damaged"), "--out", str(out)]
    assert main([*command, "--label-dir", str(tmp_path / "intact")]) == 0
    printed = capsys.readouterr().out
    assert "a_1.nii.gz: l1 " in printed and "1 files of 1 volumes judged" in printed
    result, info = read_single(out / "a_1_inpainted.nii.gz")
    np.testing.assert_array_equal(result[~hidden], image[~hidden])
    assert result.dtype == np.uint16 and (out / "a_1.png").is_file()
    np.testing.assert_array_equal(info.affine, AFFINE)
    wanted = whole[hidden].astype(float)
    error = np.abs(result[hidden] - wanted).mean()
    assert error < 0.6 * np.abs(image[~hidden].mean() - wanted).mean()
    with (out / "predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    low, high = np.percentile(image[~hidden], (1, 99))
    assert float(row["l1"]) == pytest.approx(error / (high - low), rel=1e-3)
    assert float(row["l1"]) < float(row["l1_mean"]) and float(row["ssim"]) > float(row["ssim_mean"])
    assert float(row["hidden_frac"]) == pytest.approx(hidden.mean(), rel=1e-5)
    assert row["truth"] == str(tmp_path / "intact" / "a_1.nii.gz") and float(row["scaled_to"]) == pytest.approx(high)
