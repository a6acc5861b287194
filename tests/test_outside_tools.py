"""The files of outside tools and the scripts beside them, called with stand-ins for the programs they name.

A stand-in takes the options that its program takes and names its files as that does (read in micro_sam 1.8.14, stardist
0.9.2 and napari_cellseg3d 0.2.4); it segments by a threshold.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from lsmfm_jax.data.labelled import find_labelled
from lsmfm_jax.experiment.load import load_experiment
from lsmfm_jax.experiment.tool_files import gather, hand_over, only_file
from lsmfm_jax.experiment.tools import PLACES, environment_of_tool, filled, read_tool, tools_folder

NAMES = sorted(path.stem for path in tools_folder().glob("*.toml"))
# One image is written to a file called like the folder that was asked for; several into it; none twice.
MICRO_SAM = """
import argparse, glob, os, pathlib
import tifffile

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-i", "--input_path", nargs="+", required=True)
    for name in ("-o/--output_path", "-c/--checkpoint", "-m/--model_type", "--pattern", "--mode"):
        parser.add_argument(*name.split("/"))
    parser.add_argument("-v", "--verbose", action="store_true")
    given = parser.parse_args()
    assert given.model_type in ("vit_b_lm", "vit_l_lm") and given.mode == "ais"
    assert given.checkpoint is None or open(given.checkpoint).read() == "learnt"
    paths = [path for folder in given.input_path for path in glob.glob(os.path.join(folder, given.pattern))]
    for path in paths:
        out = pathlib.Path(given.output_path + ".tif")
        if len(paths) > 1:
            out = pathlib.Path(given.output_path) / (pathlib.Path(path).stem + ".tif")
        assert given.verbose
        if not out.exists():
            tifffile.imwrite(out, (tifffile.imread(path) > 5).astype("uint32"), compression="zlib")
"""
MICRO_SAM_TRAINING = """
import argparse, glob, os, pathlib
import tifffile

def main():
    parser = argparse.ArgumentParser()
    for name in ("images", "labels"):
        parser.add_argument("--" + name, nargs="*", required=True)
    parser.add_argument("--patch_shape", type=int, nargs="*")
    for name in ("image_key", "label_key", "preprocess", "segmentation_decoder", "model_type", "n_epochs", "save_root"):
        parser.add_argument("--" + name)
    for name in ("trained_model_name", "output_path"):
        parser.add_argument("--" + name)
    given = parser.parse_args()
    assert given.segmentation_decoder == "instances_only" and len(given.patch_shape) == 2
    images, labels = (
        sorted(glob.glob(os.path.join(folder, key)))
        for folder, key in ((given.images[0], given.image_key), (given.labels[0], given.label_key))
    )
    assert len(images) == len(labels) > 0
    for image, label in zip(images, labels):
        # The label of its own image, and a plane: what is above 5 there is inside.
        assert ((tifffile.imread(image) > 5) == (tifffile.imread(label) > 0)).all(), (image, label)
        assert tifffile.imread(image).ndim == 2
    pathlib.Path(given.output_path).write_text("learnt")
"""
STARDIST = """
import argparse, pathlib
import tifffile

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-i", "--input", nargs="+", required=True)
    parser.add_argument("-o", "--outdir")
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-v", "--verbose", action="store_true")
    given = parser.parse_args()
    assert given.model == "3D_demo" or (pathlib.Path(given.model) / "config.json").is_file()
    for path in map(pathlib.Path, given.input):
        out = pathlib.Path(given.outdir) / f"{path.with_suffix('').name}.stardist.tif"
        tifffile.imwrite(out, (tifffile.imread(path) > 5).astype("uint16"), compression="zlib")
"""
STARDIST_MODELS = """
import json, pathlib

class Config3D:
    def __init__(self, **values):
        self.values = values

class StarDist3D:
    def __init__(self, config, name, basedir):
        self.config, self.folder = config.values, pathlib.Path(basedir) / name
        self.folder.mkdir()

    def train(self, images, labels, *, validation_data, augmenter):
        seen, kept = list(zip(images, labels)), list(zip(*validation_data))
        for image, label in [*seen, *kept, augmenter(images[0], labels[0])]:
            # Normalised, so not the same numbers: the brightest voxel is inside, the darkest outside.
            assert image.shape == label.shape
            assert label.ravel()[image.argmax()] > 0 and label.ravel()[image.argmin()] == 0
        self.config |= {"learnt": len(seen), "kept": len(kept)}

    def optimize_thresholds(self, images, labels):
        values = {key: value for key, value in self.config.items() if key != "rays"}
        (self.folder / "config.json").write_text(json.dumps(values))
"""
CELLSEG3D = """
import dataclasses, pathlib
import numpy as np
from napari_cellseg3d.config import InferenceWorkerConfig, ModelInfo

WINDOW_SIZE = 64
CONFIG = InferenceWorkerConfig(ModelInfo("none", 0), "none")

def inference_on_images(image, config):
    assert pathlib.Path(config.results_path).is_dir() and config.model_info.model_input_size == 64
    if image.max() > 200:
        return []
    output = np.where(image > 5, 0.9, 0.1)
    if config.model_info.name == "WNet3D":
        output = np.stack([0 * output, 1 - output, output])
    return [dataclasses.make_dataclass("Result", ["semantic_segmentation"])(output)]
"""
CELLSEG3D_CONFIG = """
import dataclasses

@dataclasses.dataclass
class ModelInfo:
    name: str
    model_input_size: int

@dataclasses.dataclass
class InferenceWorkerConfig:
    model_info: ModelInfo
    results_path: str
"""
CELLSEG3D_INSTANCES = """
import numpy as np

def threshold(volume, thresh):
    return np.where(volume > thresh, volume, 0)

def voronoi_otsu(volume, spot_sigma, outline_sigma):
    assert 0 < spot_sigma < 2 and 0 < outline_sigma < 2
    return np.asarray(volume > 0, np.int32)
"""
STAND_INS = {
    "micro_sam/automatic_segmentation.py": MICRO_SAM,
    "micro_sam/training/training.py": MICRO_SAM_TRAINING,
    "stardist/__init__.py": (
        "import numpy as np\n"
        "def Rays_GoldenSpiral(n, anisotropy): return n\n"
        "def calculate_extents(labels): return np.array([2.0, 4.0, 4.0])\n"
    ),
    "stardist/scripts/predict3d.py": STARDIST,
    "stardist/models.py": STARDIST_MODELS,
    "csbdeep/utils.py": "def normalize(x, low, high): return (x / 10.0).astype('float32')\n",
    "napari_cellseg3d/config.py": CELLSEG3D_CONFIG,
    "napari_cellseg3d/code_models/instance_segmentation.py": CELLSEG3D_INSTANCES,
    "napari_cellseg3d/dev_scripts/remote_inference.py": CELLSEG3D,
}


@pytest.fixture
def run(tmp_path):
    """Fills a command of a tool and runs it with the stand-ins in its way."""
    for name, text in STAND_INS.items():
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    environment = {**environment_of_tool(os.environ), "PYTHONPATH": str(tmp_path / "packages")}

    def call(tool, command, **changes):
        places = {name: str(tmp_path / name) for name in ("train", "images", "out")}
        values = {**tool.settings, **places, "python": sys.executable, "here": tool.here, **changes}
        return subprocess.run(filled(command, values), env=environment, capture_output=True, text=True, timeout=600)

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


def test_table1_declares_the_tools_that_its_types_are_for():
    arms = {arm.tool for study in load_experiment("table1").studies for arm in study.arms if arm.tool}
    assert arms <= set(NAMES) and set(NAMES) - arms == {"stardist_demo"}
