"""Stand-ins for outside tools, by the path of the module that a command of theirs runs or a script of ours imports.

A stand-in takes the options that its program takes and names its files as that does (micro_sam 1.8.14, stardist 0.9.2,
napari_cellseg3d 0.2.4, cellpose 3.1.1 and 4.2.1); it segments by a threshold.
"""

import os
import pathlib
from collections.abc import Mapping

from lsmfm_jax.experiment.tools import environment_of_tool

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

class Network:
    weights_file = "weights.json"

    def named_parameters(self):
        return [("encoder", 0), ("decoder", 0)]

MODEL_LIST = {"SwinUNetR": Network, "WNet3D": Network}

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
CELLSEG3D_WEIGHTS = """
import os, pathlib

PRETRAINED_WEIGHTS_DIR = str(pathlib.Path(__file__).parent)

class WeightsDownloader:
    def download_weights(self, name, file):
        text = os.environ.get("WEIGHTS", '{"encoder": 0, "decoder": 0}')
        pathlib.Path(PRETRAINED_WEIGHTS_DIR, file).write_text(text)
"""
# Told no axis for Z, Cellpose 3 takes the shortest and Cellpose 4 the first; told one, 4 wants one for channels, too.
CELLPOSE = """
import argparse, pathlib
import numpy as np, tifffile

parser = argparse.ArgumentParser()
for name in ("dir", "savedir", "pretrained_model"):
    parser.add_argument("--" + name, required=True)
parser.add_argument("--z_axis", type=int)
parser.add_argument("--diameter", type=float)
for name in ("do_3D", "save_tif", "no_npy", "use_gpu", "verbose"):
    parser.add_argument("--" + name, action="store_true")
given = parser.parse_args()
assert given.pretrained_model != "cpsam" or given.z_axis is None
for path in pathlib.Path(given.dir).glob("*.tif"):
    image = tifffile.imread(path)
    guessed = 0 if given.pretrained_model == "cpsam" else int(np.argmin(image.shape))
    first = guessed if given.z_axis is None else given.z_axis
    mask = (np.moveaxis(image, first, 0) > 5).astype("uint16")
    tifffile.imwrite(pathlib.Path(given.savedir) / (path.stem + "_cp_masks.tif"), mask)
"""
STAND_INS = {
    "cellpose/__main__.py": CELLPOSE,
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
    "napari_cellseg3d/code_models/workers_utils.py": CELLSEG3D_WEIGHTS,
    "torch.py": "import json\ndef load(path, map_location): return json.loads(open(path).read())\n",
    "pyclesperanto.py": "import os\nif 'NO_OPENCL' not in os.environ: voronoi_otsu_labeling = print\n",
    "napari_cellseg3d/code_models/instance_segmentation.py": CELLSEG3D_INSTANCES,
    "napari_cellseg3d/dev_scripts/remote_inference.py": CELLSEG3D,
}


def environment_with(packages: Mapping[str, str], folder: pathlib.Path) -> dict[str, str]:
    """Writes modules into a folder; the variables of a tool's process that finds them there."""
    for name, text in packages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {**environment_of_tool(os.environ), "PYTHONPATH": str(folder)}
