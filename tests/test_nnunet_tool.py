"""The file and the script for nnU-Net, called with a stand-in that takes what nnunetv2 2.8.1 takes."""

import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from outside_stand_ins import environment_with

from lsmfm_jax.data.labelled import find_labelled
from lsmfm_jax.experiment.tool_files import gather, hand_over
from lsmfm_jax.experiment.tools import filled, read_tool

# Planning reads this number for threads of its own and cannot do with none; training takes none for "no workers".
PLANNING = """
import json, os, pathlib

RAW, MADE = (pathlib.Path(os.environ[name]) / "Dataset001_patches" for name in ("nnUNet_raw", "nnUNet_preprocessed"))

def extract_fingerprints(numbers, num_processes):
    assert numbers == [1] and sorted(path.name for path in RAW.iterdir()) == ["dataset.json", "imagesTr", "labelsTr"]

def plan_experiments(numbers):
    assert int(os.environ.get("nnUNet_n_proc_DA", 4)) > 0
    lists = {"features_per_stage": [32, 64, 128, 256, 320], "n_conv_per_stage": [2] * 5}
    lists["n_conv_per_stage_decoder"] = [2] * 4
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    network = {"n_stages": 5, "strides": strides, "kernel_sizes": [[3, 3, 3]] * 5, **lists}
    settings = {"patch_size": [24, 96, 96], "architecture": {"arch_kwargs": network}}
    MADE.mkdir(parents=True, exist_ok=True)
    (MADE / "nnUNetPlans.json").write_text(json.dumps({"configurations": {"3d_fullres": settings}}))

def preprocess(numbers, configurations, num_processes):
    assert configurations == ("3d_fullres",) and (MADE / "nnUNetPlans.json").exists()
"""
TRAINING = """
import json, os, pathlib
import nibabel
import numpy as np
from nnunetv2.experiment_planning.plan_and_preprocess_api import MADE, RAW

class Trainer:
    def run_training(self):
        facts = json.loads((RAW / "dataset.json").read_text())
        labels = sorted((RAW / "labelsTr").iterdir())
        assert facts["numTraining"] == len(labels) and facts["channel_names"] == {"0": "lightsheet"}
        for path in labels:
            label = np.asarray(nibabel.load(path).dataobj)
            image = np.asarray(nibabel.load(RAW / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz")).dataobj)
            counted = label != facts["labels"].get("ignore", -1)
            assert ((image > 5) == (label == 1))[counted].all()
            assert set(np.unique(label)) <= set(facts["labels"].values())
        out = pathlib.Path(os.environ["nnUNet_results"]) / "Dataset001_patches"
        out /= "nnUNetTrainer__nnUNetPlans__3d_fullres"
        out.mkdir(parents=True)
        plans = json.loads((MADE / "nnUNetPlans.json").read_text())["configurations"]["3d_fullres"]
        ignored = sum(int((np.asarray(nibabel.load(path).dataobj) == 2).sum()) for path in labels)
        told = {"epochs": self.num_epochs, "steps": self.num_iterations_per_epoch, "ignored": ignored, "plans": plans}
        (out / "checkpoint_final.pth").write_text(json.dumps(told | {"workers": os.environ.get("nnUNet_n_proc_DA")}))

def get_trainer_from_args(dataset, configuration, fold, device):
    assert (dataset, configuration, fold) == ("1", "3d_fullres", "all")
    return Trainer()
"""
PREDICTING = """
import pathlib
import nibabel
import numpy as np

class nnUNetPredictor:
    def __init__(self, **settings):
        assert settings["perform_everything_on_device"] == (settings["device"].type != "cpu")

    def initialize_from_trained_model_folder(self, folder, folds, checkpoint):
        assert (pathlib.Path(folder) / checkpoint).is_file() and folds == ("all",)

    def predict_from_files_sequential(self, images, names):
        for (image,), name in zip(images, names, strict=True):
            read = nibabel.load(image)
            mask = (np.asarray(read.dataobj) > 5).astype(np.uint8)
            nibabel.save(nibabel.Nifti1Image(mask, read.affine), name + ".nii.gz")
        (pathlib.Path(names[0]).parent / "dataset.json").write_text("{}")
"""
STAND_INS = {
    "nnunetv2/experiment_planning/plan_and_preprocess_api.py": PLANNING,
    "nnunetv2/run/run_training.py": TRAINING,
    "nnunetv2/inference/predict_from_raw_data.py": PREDICTING,
    "torch.py": (
        "class device:\n    def __init__(self, name): self.type = name.split(':')[0]\ndef manual_seed(seed): pass\n"
    ),
}


@pytest.fixture
def environment(tmp_path):
    """Variables of a process that finds the stand-in."""
    return environment_with(STAND_INS, tmp_path / "packages")


@pytest.fixture
def patches(tmp_path):
    """Three patches of unlike sides, dots in a name; inside is what is above 5."""
    folder = tmp_path / "known"
    folder.mkdir()
    for number, name in enumerate(["a", "b_vol0.1_ch0", "c"]):
        image = np.random.default_rng(number).integers(1, 9, (30, 26, 20 + number)).astype(np.uint16)
        affine = np.diag([1.0, 1.0, 4.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image((image > 5).astype(np.uint8), affine), folder / f"{name}_label.nii.gz")
    return find_labelled(folder)


def _told(train):
    results = train / "model" / "results" / "Dataset001_patches" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    return json.loads((results / "checkpoint_final.pth").read_text())


def test_nnunet_learns_as_it_plans_and_masks_carry_the_names_of_patches(environment, patches, tmp_path):
    tool = read_tool("nnunet")
    hand_over(patches, tmp_path / "train", tool, labels=True)
    hand_over(patches[:2], tmp_path / "images", tool, labels=False)
    places = {name: str(tmp_path / name) for name in ("train", "images", "out")}
    values = {**tool.settings, **places, "python": sys.executable, "here": tool.here}
    for command in (tool.train, tool.predict):
        subprocess.run(filled(command, values), env=environment, check=True, timeout=600)
    told = _told(tmp_path / "train")
    assert (told["epochs"], told["steps"], told["ignored"]) == (1000, 250, 0)
    assert told["plans"]["patch_size"] == [24, 96, 96] and told["workers"] is None
    gather([file.name for file in patches[:2]], tmp_path / "out", tmp_path / "found", tool)
    for file in patches[:2]:
        image = np.asarray(nibabel.load(file.path).dataobj)
        mask = np.asarray(nibabel.load(tmp_path / "found" / f"{file.name}.nii.gz").dataobj)
        assert np.array_equal(mask > 0, image > 5)


def test_smaller_crops_have_fewer_poolings_and_ignored_voxels_a_label_of_their_own(environment, patches, tmp_path):
    tool = read_tool("nnunet")
    hand_over(patches, tmp_path / "train", tool, labels=True)
    path = tmp_path / "train" / "c_label.nii.gz"
    label = nibabel.load(path)
    values = np.asarray(label.dataobj).astype(np.uint8)
    values[:, :3] = 255
    nibabel.save(nibabel.Nifti1Image(values, label.affine), path)
    given = ("--patch", "41", "--ignore", "255", "--device", "cpu", "--epochs", "2", "--iterations", "7")
    command = [
        sys.executable,
        f"{tool.here}/nnunet_run.py",
        "train",
        str(tmp_path / "train"),
        str(tmp_path / "train/model"),
    ]
    subprocess.run([*command, *given], env=environment, check=True, timeout=600)
    told = _told(tmp_path / "train")
    network = told["plans"]["architecture"]["arch_kwargs"]
    # 24 x 40 x 40 bears three poolings in the plane, down to 5, and two along Z, down to 6; a third would leave 3.
    assert told["plans"]["patch_size"] == [24, 40, 40]
    assert network["strides"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]] and network["n_stages"] == 4
    assert network["features_per_stage"] == [32, 64, 128, 256] and len(network["n_conv_per_stage_decoder"]) == 3
    assert (told["epochs"], told["steps"], told["workers"]) == (2, 7, "0")
    assert told["ignored"] == int((values == 255).sum())


def test_nnunet_says_that_there_is_nothing_to_learn_from(environment, tmp_path):
    (tmp_path / "train").mkdir()
    script = f"{read_tool('nnunet').here}/nnunet_run.py"
    command = [sys.executable, script, "train", str(tmp_path / "train"), str(tmp_path / "m")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "no *_label.nii.gz; nnU-Net has nothing to learn from" in done.stderr
