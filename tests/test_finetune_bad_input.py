"""Labelled patches that cannot be used, or only in part, as `lsmfm finetune` meets them: each is told by name."""

import json
import shutil

import numpy as np
import pytest
from labelled_toy import write_patch, write_patches

from lsmfm_jax.cli import main
from lsmfm_jax.config import ConfigError, defaults
from lsmfm_jax.data.labelled import LabelledDataError
from lsmfm_jax.data.splits import SplitError
from lsmfm_jax.scale import ScaleError
from lsmfm_jax.tasks import SETUPS
from lsmfm_jax.tasks.finetune_patches import read_patches
from lsmfm_jax.train.run import execute
from lsmfm_jax.volumes.read import VolumeError, read_single, write_nifti


@pytest.fixture
def patches(tmp_path):
    return write_patches(tmp_path / "patches", count=4, size=12)


def read(task, folder, run, **changes):
    config = defaults(task)
    config.data.folder = str(folder)
    for name, value in changes.items():
        config.data[name] = value
    lines = []
    return read_patches(config, run, print_line=lines.append), lines


def test_a_mask_of_another_shape_is_named_with_both_shapes(patches, tmp_path):
    mask = patches / "dense_patch_001_vol001_ch0_label.nii.gz"
    write_nifti(mask, np.zeros((12, 12, 11), np.uint8), like=None)
    with pytest.raises(LabelledDataError, match=rf"{mask.name} has the shape \(12, 12, 11\), its image .*export them"):
        read("segment", patches, tmp_path / "run")


def test_a_label_without_its_image_stops_every_task(patches, tmp_path):
    (patches / "dense_patch_001_vol001_ch0.nii.gz").unlink()
    for task in ("segment", "classify", "deblur", "inpaint"):
        with pytest.raises(LabelledDataError, match=r"have no image beside them: .*dense_patch_001_vol001_ch0_"):
            read(task, patches, tmp_path / task)


def test_a_2d_image_is_named(patches, tmp_path):
    np.save(patches / "flat_patch_009_vol009_ch0.npy", np.arange(144.0).reshape(12, 12))
    with pytest.raises(VolumeError, match=r"flat_patch_009_vol009_ch0\.npy: .*3"):
        read("classify", patches, tmp_path / "run", validation_frac=0.0)


def test_a_class_seen_only_in_test_is_said_and_does_not_stop(tmp_path):
    folder = tmp_path / "patches"
    for side, kinds in {"train": "ab", "val": "ab", "test": "abc"}.items():
        for number, kind in enumerate(kinds):
            write_patch(folder / side, f"{kind}_patch_{number:03d}_vol{side}", size=12, seed=ord(side[1]) + number)
    read_in, lines = read("classify", folder, tmp_path / "run")
    assert read_in.classes == ("a", "b")
    assert any("test has classes without a training patch, never to be predicted: c" in line for line in lines)
    # Of the other sides, it is an error.
    write_patch(folder / "val", "c_patch_000_volval", size=12, seed=77)
    with pytest.raises(LabelledDataError, match=r"1 validation patches are of classes .* of c; training has a, b"):
        read("classify", folder, tmp_path / "other")


def test_one_class_alone(patches, tmp_path):
    with pytest.raises(LabelledDataError, match=r"all of one class, sparse: there is nothing to tell apart"):
        read("classify", patches, tmp_path / "run", prefix="sparse")


def test_masks_that_are_all_empty(tmp_path):
    for number in range(3):
        write_patch(tmp_path / "patches", f"a_{number}", size=12, seed=number, balls=0)
    with pytest.raises(LabelledDataError, match=r"masks of all training patches are empty"):
        read("segment", tmp_path / "patches", tmp_path / "run", validation_frac=0.0)


def test_one_file_on_both_sides(tmp_path):
    folder = tmp_path / "patches"
    write_patch(folder / "train", "a_patch_000_vol000", size=12)
    (folder / "val").mkdir()
    for ending in ("", "_label", "_blurred"):
        source = folder / "train" / f"a_patch_000_vol000{ending}.nii.gz"
        shutil.copy(source, folder / "val" / f"b_patch_000_vol001{ending}.nii.gz")
    with pytest.raises(LabelledDataError, match=r"both trains and validates: a_patch_000_vol000 and b_patch"):
        read("segment", folder, tmp_path / "run")


def test_no_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.folder: ''; name the folder or the store"):
        read("segment", "", tmp_path / "run")
    with pytest.raises(LabelledDataError, match=r"nosuch is not a folder"):
        read("segment", tmp_path / "nosuch", tmp_path / "run")


def test_one_patch_alone_trains_without_validation(tmp_path):
    write_patch(tmp_path / "patches", "a_0", size=12)
    with pytest.raises(LabelledDataError, match=r"a_0.nii.gz is the only patch: .*data\.validation_frac to 0"):
        read("segment", tmp_path / "patches", tmp_path / "run")
    config, lines = defaults("segment"), []
    config.data.folder, config.data.validation_frac = str(tmp_path / "patches"), 0.0
    config.data.patch_size, config.model.dtype, config.model.out_channels = (8, 8, 8), "float32", 4
    config.model.unet.channels, config.model.unet.strides, config.model.unet.num_res_units = (2, 4), (2,), 1
    config.augment.probability, config.train.tensorboard = 0.0, False
    config.train.batch_size, config.train.epochs = 8, 2
    setup = SETUPS["segment"](config, tmp_path / "run", print_line=lines.append)
    _, ending = execute(config, setup, tmp_path / "run", print_line=lines.append)
    assert ending.value == "all epochs done", ending
    assert any("no validation: the last state of the run is its result" in line for line in lines)
    assert json.loads((tmp_path / "run" / "split.json").read_text())["validation"] == []


@pytest.mark.parametrize("kind", ["floats from 0 to 1", "signed, from -32768 on"])
def test_images_that_a_logarithm_of_counts_cannot_see_are_refused_and_planned_on_another_scale(kind, tmp_path):
    """Before, the network saw the same value everywhere, and trained on."""
    folder = tmp_path / "patches"
    for number in range(3):
        write_patch(folder, f"cells_patch_{number:03d}_vol{number}", size=16, seed=number)
    for path in folder.glob("*_vol?.nii.gz"):
        counts, info = read_single(path)
        signed = (counts.astype(np.int32) - 32768).astype(np.int16)
        write_nifti(path, signed if "signed" in kind else (counts / 4095).astype(np.float32), like=info)
    with pytest.raises(
        ScaleError, match=r"cells_patch_00\d_vol\d\.nii\.gz: its values from .*data\.scale 'local'.*z_score"
    ):
        read("segment", folder, tmp_path / "local", scale="local")
    seen, _ = read("segment", folder, tmp_path / "z_score", scale="z_score")
    assert all(np.ptp(patch.scaled()) > 0.2 for patch in seen.train)
    assert main(["plan", str(folder), "--out", str(tmp_path / "plan.py")]) == 0
    assert 'data.scale = "z_score"' in (tmp_path / "plan.py").read_text()
    if "signed" in kind:
        seen, _ = read("segment", folder, tmp_path / "offset", scale="local", camera_offset=-32768.0)
        assert all(np.ptp(patch.scaled()) > 0.2 for patch in seen.train)


def test_folders_of_sides_go_by_their_usual_names_and_no_side_is_trained_on_by_accident(tmp_path):
    """Before, `Training/` and `valid/` were pooled and drawn from, and so was `val/` or `test/` alone."""
    folder = tmp_path / "patches"
    for number, side in enumerate(("Training", "Training", "valid", "test")):
        write_patch(folder / side, f"cells_patch_000_vol{number}", size=12, seed=number)
    found, _ = read("segment", folder, tmp_path / "run")
    names = [[patch.name for patch in side] for side in (found.train, found.validation)]
    assert names == [["cells_patch_000_vol0", "cells_patch_000_vol1"], ["cells_patch_000_vol2"]]
    (folder / "train").mkdir()
    with pytest.raises(LabelledDataError, match=r"Training and .*train are folders of one side; keep one of them"):
        read("segment", folder, tmp_path / "two")
    shutil.rmtree(folder / "Training")
    with pytest.raises(LabelledDataError, match=r"no patches in .*train or one below .*put labelled patches there"):
        read("segment", folder, tmp_path / "empty")
    (folder / "train").rmdir()
    for left in ("valid", "test"):
        with pytest.raises(LabelledDataError, match=rf"{left} is there without a folder .*train, and its .*trained on"):
            read("segment", folder, tmp_path / "none")
        shutil.rmtree(folder / left)


def test_a_file_that_is_there_twice_and_masks_without_foreground_are_named(patches, tmp_path):
    for ending in ("", "_label"):
        source = patches / f"dense_patch_001_vol001_ch0{ending}.nii.gz"
        shutil.copy(source, patches / f"other_patch_001_vol007_ch0{ending}.nii.gz")
    with pytest.raises(SplitError, match=r"'dense_patch_001_.* and 'other_patch_001_.* one file is there twice"):
        read("segment", patches, tmp_path / "twice")
    for path in patches.glob("*_label.nii.gz"):
        write_nifti(path, np.zeros((12, 12, 12), np.uint8), like=None)
    (patches / "other_patch_001_vol007_ch0.nii.gz").unlink()
    (patches / "other_patch_001_vol007_ch0_label.nii.gz").unlink()
    with pytest.raises(LabelledDataError, match=r"patches: the masks of all .* empty.*; annotate a patch"):
        read("segment", patches, tmp_path / "blank")
