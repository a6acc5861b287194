"""A run remembers how large the voxels were that it learnt from, and prediction says where a volume has others."""

import brain_runs
import nibabel
import numpy as np
import pytest
from labelled_toy import write_patches

from lsmfm_jax.cli import main
from lsmfm_jax.config import defaults
from lsmfm_jax.tasks import SETUPS
from lsmfm_jax.train.weights import read_weights, write_weights
from lsmfm_jax.volumes.voxel_sizes import distinct_sizes, other_size

UNSURE = "header (unverified: 1, 1, 1 is what stands there by default)"


def test_only_what_is_certain_is_kept():
    sizes = [((4.0, 1.6, 1.6), "header"), ((4.00001, 1.6, 1.6), ""), (None, ""), ((1.0, 1.0, 1.0), UNSURE)]
    assert distinct_sizes([*sizes, ((1.0, 1.0, 1.0), ""), ((2.0, 2.0, 2.0), UNSURE)]) == [[4.0, 1.6, 1.6]]
    assert distinct_sizes([((1.0, 1.0, 1.0), "header")]) == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    "size, told",
    [
        ((4.0, 1.6, 1.6), False),
        ((4.5, 1.6, 1.9), False),  # 1.19 times
        ((4.0, 0.8, 1.6), True),
        ((8.0, 1.6, 1.6), True),
        ((2.2, 0.9, 0.9), False),  # near the second one
        (None, False),
    ],
)
def test_a_size_is_another_where_no_patch_was_near_it(size, told):
    found = other_size(size, "header", [[4.0, 1.6, 1.6], [2.0, 0.8, 0.8]])
    assert (found is not None) == told


def test_without_a_size_to_compare_nothing_is_said():
    assert other_size((4.0, 1.6, 1.6), "header", []) is None
    assert other_size((4.0, 1.6, 1.6), UNSURE, [[1.0, 1.0, 1.0]]) is None


def test_the_message_says_by_how_much():
    found = other_size((2.0, 0.4, 0.8), "header", [[4.0, 1.6, 1.6]])
    assert "2 x 0.4 x 0.8 um (ZYX, header)" in found and "4 x 1.6 x 1.6 um" in found and "2, 4, 2 times" in found


def sized(path, um):
    """The same file with a voxel size, Z, Y, X in micrometres."""
    image = nibabel.load(path)
    new = nibabel.Nifti1Image(np.array(image.dataobj), np.diag([*um[::-1], 1.0]))
    new.header.set_xyzt_units("micron")
    new.to_filename(path)


def test_a_finetuning_records_the_sizes_of_its_training_patches(tmp_path):
    folder = write_patches(tmp_path / "patches", count=4)
    for path in folder.glob("*.nii.gz"):
        sized(path, (4.0, 1.6, 1.6))
    config = defaults("segment")
    config.data.folder, config.data.patch_size = str(folder), (16, 16, 16)
    config.model.out_channels, config.model.unet.channels, config.model.unet.strides = 6, (4, 8), (2,)
    (tmp_path / "run").mkdir()
    found = SETUPS["segment"](config, tmp_path / "run", print_line=lambda line: None).record
    assert found["voxel_sizes_um"] == [[4.0, 1.6, 1.6]]


@pytest.fixture
def run(tmp_path):
    made = brain_runs.make_run(tmp_path / "drawn", "segment")
    weights = read_weights(made)
    record = {**weights.record, "voxel_sizes_um": [[2.0, 1.0, 1.0]]}
    write_weights(tmp_path / "run", record=record, params=weights.params, batch_stats=weights.batch_stats)
    return tmp_path / "run"


def test_files_with_other_voxels_are_named_once_for_each_size(run, tmp_path, capsys):
    for name, um in {"alike": (2.0, 1.0, 1.0), "other_a": (1.0, 0.5, 0.5), "other_b": (1.0, 0.5, 0.5)}.items():
        path = tmp_path / "images" / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        image = nibabel.Nifti1Image(brain_runs.blobs((16, 16, 16)), np.eye(4))
        image.to_filename(path)
        sized(path, um)
    assert main(["predict", "--checkpoint", str(run), str(tmp_path / "images"), "--out", str(tmp_path / "out")]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "learnt from" in line]
    assert len(said) == 1 and "other_a.nii.gz" in said[0]


def test_the_plan_of_a_brain_says_it_too(run, tmp_path, capsys):
    image = nibabel.Nifti1Image(brain_runs.blobs((16, 16, 16)), np.eye(4))
    image.to_filename(tmp_path / "brain.nii")
    sized(tmp_path / "brain.nii", (2.0, 3.0, 3.0))
    arguments = ["predict", "--checkpoint", str(run), str(tmp_path / "brain.nii"), "--dry-run"]
    assert main([*arguments, "--out", str(tmp_path / "result.ome.zarr")]) == 0
    assert "learnt from 2 x 1 x 1 um" in capsys.readouterr().out
