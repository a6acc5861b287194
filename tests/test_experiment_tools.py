"""Outside tools in an experiment: their files, what they are given and give back; one that learns a threshold."""

import json
import os
import sys

import numpy as np
import pytest
import tifffile
from labelled_toy import write_patch

from lsmfm_jax.cli import main
from lsmfm_jax.data.labelled import find_labelled
from lsmfm_jax.experiment.commands import CommandFailed
from lsmfm_jax.experiment.declaration import Arm, DataType, Experiment, ExperimentError, Study, check
from lsmfm_jax.experiment.grid import DONE, expand
from lsmfm_jax.experiment.prepare import with_inputs
from lsmfm_jax.experiment.tool_files import as_masks, gather, hand_over
from lsmfm_jax.experiment.tools import PLACES, environment_of_tool, filled, read_tool, tools_folder

# A tool as others write them: it learns from images and labels in a folder, and finds no package of ours.
SCRIPT = """
import os, pathlib, sys
import numpy as np, scipy.ndimage, tifffile

assert "PYTHONPATH" not in os.environ
task, folder, *rest = sys.argv[1:]
images = [path for path in sorted(pathlib.Path(folder).glob("*.tif")) if not path.stem.endswith("_masks")]
if task == "train":
    inside = [tifffile.imread(path)[tifffile.imread(path.with_name(path.stem + "_masks.tif")) > 0] for path in images]
    (pathlib.Path(folder) / "models").mkdir()
    (pathlib.Path(folder) / "models" / "learnt").write_text(str(0.7 * np.median(np.concatenate(inside))))
else:
    out, model = map(pathlib.Path, rest)
    for path in images[: 1 if os.environ.get("TOOL_IS_LAZY") else None]:
        mask = scipy.ndimage.label(tifffile.imread(path) > float(model.read_text()))[0]
        tifffile.imwrite(out / f"{path.stem}_cp_masks.tif", mask.astype(np.uint16))
"""
TOOL = """
title = "Median"
licence = "MIT"
home = "https://example.org"
install = ["python -m venv ENV"]
images = "tif"
masks = "labels"
output = "{{patch}}_cp_masks.tif"
[settings]
model = "none"
[train]
labels = "{{patch}}_masks.tif"
command = ["{{python}}", "{script}", "train", "{{train}}"]
gives = {{ model = "models/*" }}
[predict]
command = ["{{python}}", "{script}", "predict", "{{images}}", "{{out}}", "{{model}}"]
"""
OWN = """
from lsmfm_jax.experiment.declaration import Arm, DataType, Experiment, Study

def get_experiment(variant=""):
    arms = (Arm("median", "tool:{tool}"),)
    study = Study("segment", (DataType("dense", "dense"),), arms, sizes=(3,))
    return Experiment("own", (study,), seeds=(1, 2), folds=2, test_patches=1)
"""


@pytest.fixture
def tool(tmp_path):
    """The file of the tool."""
    (tmp_path / "median.py").write_text(SCRIPT)
    path = tmp_path / "median.toml"
    path.write_text(TOOL.format(script=tmp_path / "median.py"))
    return path


@pytest.fixture
def call(tool, tmp_path):
    """The command line of an experiment with that tool."""
    patches = tmp_path / "patches"
    for number in range(6):
        write_patch(patches, f"dense_patch_{number:03d}_vol{number:03d}_ch0", size=20, seed=number, balls=3)
    (tmp_path / "own.py").write_text(OWN.format(tool=tool))
    words = ["experiment", str(tmp_path / "own.py"), "--workdir", str(tmp_path / "w"), "--data", str(patches)]
    return [*words, "--tool", f"{tool}={sys.executable}"]


def _declared(recipe, **changes):
    arms = (Arm("network", "segment_unet:tiny"), Arm("other", recipe, against="network", **changes))
    return Experiment("toy", (Study("segment", (DataType("a", "a"),), arms, sizes=(3,)),))


def test_a_tool_is_trained_predicts_and_is_judged_on_the_splits_of_all(call, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TOOL_IS_LAZY", "")
    assert main(call) == 0
    cells = sorted((tmp_path / "w" / "cells").rglob(DONE))
    assert len(cells) == 2, "one of each fold: a tool is told no seed"
    for mark in cells:
        (scores,) = json.loads(mark.read_text())["methods"]["prediction"].values()
        # Balls on a dim background: a threshold that was learnt on other patches finds them.
        assert scores["dice"] > 0.7 and scores["panoptic_quality"] > 0.4
        trained = {path.name for path in (mark.parent / "train").glob("*.tif")}
        tested = {path.name for path in (mark.parent / "images").glob("*.tif")}
        assert len(trained) == 2 * 3 and len(tested) == 1 and not trained & tested
    assert "segment,dense,median,3,dice," in (tmp_path / "w" / "results.csv").read_text()
    capsys.readouterr()
    assert main([*call, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("2 cells, 2 done")


def test_a_tool_that_writes_no_mask_fails_its_cell_and_says_which(call, tmp_path, capsys):
    text = (tmp_path / "median.toml").read_text().replace('"{patch}_cp_masks.tif"', '"{patch}_other.tif"')
    (tmp_path / "median.toml").write_text(text)
    assert main(call) == 1
    said = capsys.readouterr().out
    assert "Median wrote no dense_patch_" in said and "_other.tif; in " in said and "_cp_masks.tif" in said
    (tmp_path / "median.toml").write_text(text.replace("_other.tif", "_cp_masks.tif"))
    assert main(call) == 0, "what was trained and predicted is used when the file is mended"


def test_what_a_killed_training_left_is_removed_before_it_begins_again(call, tmp_path):
    train = tmp_path / "w" / "cells" / "segment" / "dense" / "median" / "size3" / "fold1" / "seed1" / "train"
    assert main(call) == 0
    train.parent.joinpath("steps", "train.json").unlink()
    train.parent.joinpath(DONE).unlink()
    (train / "models" / "half").write_text("half")
    assert main(call) == 0
    assert [path.name for path in (train / "models").iterdir()] == ["learnt"]


def test_tools_that_are_not_at_hand_are_left_out_and_may_come_later(tmp_path):
    experiment = _declared("tool:cellpose3")
    assert {cell.arm for cell in expand(experiment)} == {"network"}
    (tmp_path / "python").touch()
    given = with_inputs(experiment, data=tmp_path, pretrained=[], tools=[f"cellpose3={tmp_path / 'python'}"])
    cells = [cell for cell in expand(given) if cell.arm == "other"]
    assert len(cells) == experiment.folds and {cell.seed for cell in cells} == {1}
    with pytest.raises(ExperimentError, match="--tool stardist: unknown; declared are cellpose3"):
        with_inputs(experiment, data=tmp_path, pretrained=[], tools=["stardist=python"])
    with pytest.raises(ExperimentError, match="--tool cellpose3: NAME=PYTHON is needed"):
        with_inputs(experiment, data=tmp_path, pretrained=[], tools=["cellpose3"])
    with pytest.raises(FileNotFoundError, match="no such interpreter; install it so: python -m venv"):
        with_inputs(experiment, data=tmp_path, pretrained=[], tools=[f"cellpose3={tmp_path / 'none'}"])
    with pytest.raises(ExperimentError, match="takes neither overrides nor a pretrained run"):
        check(_declared("tool:cellpose3", overrides={"seed": 1}))


def test_files_of_the_package_are_right_and_say_where_a_tool_comes_from():
    names = sorted(path.stem for path in tools_folder().glob("*.toml"))
    assert {"cellpose3", "cellpose_sam"} <= set(names)
    for name in names:
        tool = read_tool(name)
        assert tool.home.startswith("https://") and tool.licence and tool.install
        places = dict.fromkeys(PLACES, "/place")
        assert not any("{" in word for word in filled((*tool.train, *tool.predict), {**tool.settings, **places}))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('images = "tif"', 'images = "png"', "images is 'png'; allowed: tif, nii.gz"),
        ('masks = "labels"', "", "masks is missing; a text is needed"),
        ('title = "Median"', "title = 3", "title is 3; a text is needed"),
        ("[settings]", "[setting]", "setting is unknown; allowed: "),
        ('output = "{patch}_cp', 'output = "{name}_cp', "a file name with {patch} and nothing else"),
        ('"{images}"', '"{image}"', "predict.command names {image}; there are here, images, model, out, python, train"),
        ('"{images}"', '"{images"', "a brace that is meant as one is written twice"),
        ("gives = { model", "gives = { weights", "train.gives.weights is no setting; there are model"),
        ("[train]", "[train", "no TOML: "),
        ("[train]", "[train]\nplanes = 1", "train.planes is 1; true or false is needed"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_allowed(tool, before, after, said):
    text = tool.read_text()
    assert before in text
    tool.write_text(text.replace(before, after))
    with pytest.raises(ExperimentError) as error:
        read_tool(str(tool))
    assert said in str(error.value) and str(tool) in str(error.value)


def test_an_unknown_tool_is_refused_with_those_that_are_known():
    with pytest.raises(ExperimentError, match=r"ilastik: neither a tool of the package .*cellpose3"):
        read_tool("ilastik")


def test_labels_become_what_a_tool_learns_from():
    mask = np.zeros((4, 4, 6), np.uint8)
    mask[0, 0, :2] = mask[3, 3, 4:] = 1
    for foreground in (1, 255):
        assert np.array_equal(np.unique(as_masks(foreground * mask, "labels")), [0, 1, 2])
    assert np.array_equal(as_masks(5 * mask, "mask"), mask)
    instances = np.where(mask, np.arange(6), 0)  # 0 and 1 in one body, 4 and 5 in the other
    assert len(np.unique(as_masks(instances, "labels"))) == 4
    with pytest.raises(CommandFailed, match="70000 instances in one patch"):
        as_masks(np.arange(70_001).reshape(1, 1, -1), "labels")


def test_planes_with_labels_are_given_to_a_tool_that_learns_in_2d(tool, tmp_path):
    image = np.arange(4 * 5 * 6, dtype=np.int32).reshape(4, 5, 6)
    label = np.zeros(image.shape, np.uint8)
    label[1, 2, 3] = label[3, :2, 0] = 1
    tifffile.imwrite(tmp_path / "p.tif", image, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "p_label.tif", label, metadata={"axes": "ZYX"})
    tool.write_text(tool.read_text().replace("[train]", "[train]\nplanes = true"))
    hand_over(find_labelled(tmp_path), tmp_path / "given", read_tool(str(tool)), labels=True)
    given = {path.name: tifffile.imread(path) for path in (tmp_path / "given").iterdir()}
    assert sorted(given) == [f"p_plane000{z}{ending}.tif" for z in (1, 3) for ending in ("", "_masks")]
    assert given["p_plane0003.tif"].dtype == np.float32
    np.testing.assert_array_equal(given["p_plane0003.tif"], image[3])
    np.testing.assert_array_equal(given["p_plane0003_masks.tif"] > 0, label[3] > 0)


def test_masks_are_linked_under_the_names_of_their_patches(tool, tmp_path):
    (tmp_path / "out").mkdir()
    tifffile.imwrite(tmp_path / "out" / "a_cp_masks.tif", np.ones((2, 2, 2), np.uint16))
    gather(["a"], tmp_path / "out", tmp_path / "found", read_tool(str(tool)))
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["a.tif"]
    with pytest.raises(CommandFailed, match=r"Median wrote no b_cp_masks.tif; in .*out are a_cp_masks.tif"):
        gather(["a", "b"], tmp_path / "out", tmp_path / "none", read_tool(str(tool)))
    assert not (tmp_path / "none").exists()


def test_a_tool_gets_no_path_of_ours():
    assert environment_of_tool({"PYTHONPATH": "a", "HOME": "b"}) == {"HOME": "b"} and os.environ["HOME"]
