"""The files of outside tools and the scripts beside them, called with stand-ins for the programs they name."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from outside_stand_ins import STAND_INS, environment_with

from lsmfm_jax.data.labelled import find_labelled
from lsmfm_jax.experiment.load import load_experiment
from lsmfm_jax.experiment.tool_files import gather, hand_over, only_file
from lsmfm_jax.experiment.tools import PLACES, filled, read_tool, tools_folder

NAMES = sorted(path.stem for path in tools_folder().glob("*.toml"))


@pytest.fixture
def run(tmp_path):
    """Fills a command of a tool and runs it with the stand-ins in its way."""
    own = environment_with(STAND_INS, tmp_path / "packages")

    def call(tool, command, environment=(), **changes):
        places = {name: str(tmp_path / name) for name in ("train", "images", "out")}
        values = {**tool.settings, **places, "python": sys.executable, "here": tool.here, **changes}
        words, variables = filled(command, values), own | dict(environment)
        return subprocess.run(words, env=variables, capture_output=True, text=True, timeout=600)

    return call


def _patches(folder, names, *, shape=(20, 24, 28)):
    """Patches with an object in the upper half of the intensities, which is at another place in each."""
    folder.mkdir()
    for number, name in enumerate(names):
        image = np.random.default_rng(number).integers(1, 5, shape).astype(np.uint16)
        image[number + 1 : number + 4, 2:8, 3 + number : 9 + number] += 5
        label = (image > 5).astype(np.uint8)
        image[number + 2, 3, 4 + number], image[-1, -1, -1] = 90, 0
        tifffile.imwrite(folder / f"{name}.tif", image, metadata={"axes": "ZYX"})
        tifffile.imwrite(folder / f"{name}_label.tif", label, metadata={"axes": "ZYX"})
    return find_labelled(folder)


def _predicted(run, tmp_path, tool, **changes):
    """Masks of all that `run` predicts, by the name of the patch."""
    (tmp_path / "out").mkdir()
    done = run(tool, tool.predict, **changes)
    assert done.returncode == 0, done.stderr
    names = [path.stem for path in (tmp_path / "images").glob("*.tif")]
    gather(names, tmp_path / "out", tmp_path / "found", tool)
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == sorted(f"{name}.tif" for name in names)
    for name in names:
        mask, image = (tifffile.imread(tmp_path / folder / f"{name}.tif") for folder in ("found", "images"))
        assert np.array_equal(mask > 0, image > 5)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_file_calls_is_there_and_is_python(name):
    tool = read_tool(name)
    values = {**tool.settings, **dict.fromkeys(PLACES, "/place"), "here": tool.here}
    for command in (tool.train, tool.predict):
        words = filled(command, values)
        assert all(os.path.isfile(word) for word in words if word.endswith(".py"))
        if "-c" in words[:2]:
            compile(words[2], name, "exec")


@pytest.mark.parametrize(
    ("name", "patches"),
    [
        ("micro_sam_base_zero_shot", 1),
        ("micro_sam_base_zero_shot", 3),
        ("micro_sam_large_zero_shot", 1),
        ("cellseg3d_swin_zero_shot", 2),
        ("cellseg3d_wnet_zero_shot", 1),
        ("stardist_demo", 1),
        ("stardist_demo", 2),
    ],
)
def test_a_tool_as_it_comes_masks_one_patch_or_several_where_its_file_says(run, tmp_path, name, patches):
    tool = read_tool(name)
    assert not tool.train
    known = _patches(tmp_path / "known", [f"p{number}_vol0.1_ch0" for number in range(patches)])
    hand_over(known, tmp_path / "images", tool, labels=False)
    _predicted(run, tmp_path, tool)


@pytest.mark.parametrize("name", ["cellpose3", "cellpose_sam", "cellpose_sam_zero_shot"])
def test_cellpose_keeps_the_axes_of_a_patch_whose_z_is_not_the_shortest(run, tmp_path, name):
    tool = read_tool(name)
    hand_over(_patches(tmp_path / "known", ["a"], shape=(24, 20, 28)), tmp_path / "images", tool, labels=False)
    _predicted(run, tmp_path, tool)


@pytest.mark.parametrize("name", ["micro_sam_base", "micro_sam_large"])
def test_micro_sam_learns_from_planes_with_their_own_labels(run, tmp_path, name):
    tool, known = read_tool(name), _patches(tmp_path / "known", ["a", "a_2", "a-3"])
    hand_over(known, tmp_path / "train", tool, labels=True)
    done = run(tool, tool.train)
    assert done.returncode == 0, done.stderr
    checkpoint = only_file(tmp_path / "train", tool.gives["checkpoint"], tool)
    hand_over(known, tmp_path / "images", tool, labels=False)
    _predicted(run, tmp_path, tool, checkpoint=str(checkpoint))


@pytest.mark.parametrize(("patches", "learnt"), [(1, 1), (4, 3)])
def test_stardist_is_trained_on_crops_that_fit_and_keeps_a_patch_to_choose_by(run, tmp_path, patches, learnt):
    tool = read_tool("stardist")
    known = _patches(tmp_path / "known", [f"p{number}" for number in range(patches)], shape=(22, 70, 41))
    hand_over(known, tmp_path / "train", tool, labels=True)
    empty = tmp_path / "train" / "q.tif"
    for path in (empty, empty.with_name("q_masks.tif")):
        tifffile.imwrite(path, np.zeros((9, 9, 9), np.uint16))
    done = run(tool, tool.train)
    assert done.returncode == 0, done.stderr
    config = (tmp_path / "train" / "model" / "config.json").read_text()
    assert '"train_patch_size": [20, 64, 40]' in config and '"anisotropy": [2.0, 1.0, 1.0]' in config
    assert f'"learnt": {learnt}, "kept": 1' in config and '"train_epochs": 100' in config
    hand_over(known, tmp_path / "images", tool, labels=False)
    _predicted(run, tmp_path, tool)


def test_stardist_says_that_there_is_nothing_to_learn_from(run, tmp_path):
    (tmp_path / "train").mkdir()
    for name in ("a.tif", "a_masks.tif"):
        tifffile.imwrite(tmp_path / "train" / name, np.zeros((8, 8, 8), np.uint16))
    done = run(read_tool("stardist"), read_tool("stardist").train)
    assert done.returncode == 1 and "no label there holds an object" in done.stderr


@pytest.mark.parametrize("brightest", [4, 201])
def test_cellseg3d_of_an_empty_patch_is_empty_and_of_a_failed_one_an_error(run, tmp_path, brightest):
    tool = read_tool("cellseg3d_swin_zero_shot")
    (tmp_path / "images").mkdir()
    (tmp_path / "out").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", np.full((4, 5, 6), brightest, np.uint16), metadata={"axes": "ZYX"})
    done = run(tool, tool.predict)
    if brightest == 4:
        assert done.returncode == 0 and not tifffile.imread(tmp_path / "out" / "a.tif").any()
    else:
        assert done.returncode == 1 and "CellSeg3D gave no result" in done.stderr
        assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WEIGHTS": '{"encoder": 0}'}, "weights.json: 1 of the 2 parameters of SwinUNetR are not there, decoder"),
        ({"NO_OPENCL": "1"}, "no OpenCL driver"),
    ],
)
def test_cellseg3d_is_refused_where_it_could_give_nothing_of_worth(run, tmp_path, environment, said):
    tool = read_tool("cellseg3d_swin_zero_shot")
    hand_over(_patches(tmp_path / "known", ["a"]), tmp_path / "images", tool, labels=False)
    (tmp_path / "out").mkdir()
    done = run(tool, tool.predict, environment)
    assert done.returncode == 1 and said in done.stderr and not any((tmp_path / "out").iterdir())


def test_table1_declares_the_tools_that_its_types_are_for():
    arms = {arm.tool for study in load_experiment("table1").studies for arm in study.arms if arm.tool}
    assert arms <= set(NAMES) and set(NAMES) - arms == {"stardist_demo"}
