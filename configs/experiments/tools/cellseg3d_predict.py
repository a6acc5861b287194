"""Segments a folder of patches with CellSeg3D; run by the Python that has it, as its package has no command line.

Args: folder with `<patch>.tif`, folder for the labels, which are called the same.
"""

import argparse
import os
import pathlib
import tempfile

# Before anything of Qt is imported: no window is opened, and there may be no screen.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import dataclasses

import numpy as np
import pyclesperanto
import tifffile
import torch
from napari_cellseg3d.code_models.instance_segmentation import threshold, voronoi_otsu
from napari_cellseg3d.code_models.workers_utils import PRETRAINED_WEIGHTS_DIR, WeightsDownloader
from napari_cellseg3d.config import MODEL_LIST, InferenceWorkerConfig, ModelInfo
from napari_cellseg3d.dev_scripts.remote_inference import CONFIG, WINDOW_SIZE, inference_on_images


def refuse_unfit_weights(name: str) -> None:
    """Ends where the weights of a model lack some of its network's: CellSeg3D goes on with those as they were drawn.

    Its networks are made by MONAI, which it takes in whatever version there is, and weights are loaded with
    `strict=False`: what is missing is a line of its log.
    """
    network = MODEL_LIST[name]()
    WeightsDownloader().download_weights(name, network.weights_file)
    path = pathlib.Path(PRETRAINED_WEIGHTS_DIR) / network.weights_file
    needed = {key for key, _ in network.named_parameters()}
    if missing := sorted(needed - torch.load(path, map_location="cpu").keys()):
        raise SystemExit(
            f"{path}: {len(missing)} of the {len(needed)} parameters of {name} are not there, {missing[0]} among them; "
            "install the MONAI that these weights were made with"
        )


def foreground_of(output: np.ndarray) -> np.ndarray:
    """The channel of the foreground [z, y, x].

    Args:
        output: 0 to 1, [z, y, x], or [c, z, y, x] of WNet3D, which does not say what a channel stands for: the one
            with the smallest share above a half that is not empty is taken, which is what CellSeg3D shows.
    """
    if output.ndim == 3:
        return output
    filled = [channel for channel in output if channel.any()] or [output[0]]
    return min(filled, key=lambda channel: float((channel > 0.5).mean()))


def segment(path: pathlib.Path, out: pathlib.Path, config: InferenceWorkerConfig, given: argparse.Namespace) -> None:
    """Writes the labels of one patch."""
    image = tifffile.imread(path)
    results = inference_on_images(image, config)
    # Its worker logs what goes wrong and ends without a result.
    if not results or results[0].semantic_segmentation is None:
        raise SystemExit(f"{path}: CellSeg3D gave no result; the reason is in its log above")
    foreground = threshold(foreground_of(np.asarray(results[0].semantic_segmentation)), given.threshold)
    if foreground.shape != image.shape:
        raise SystemExit(f"{path}: CellSeg3D gave {foreground.shape} voxels for an image of {image.shape}")
    # Otsu's threshold would split even what is all background.
    labels = np.zeros(image.shape)
    if foreground.any():
        labels = voronoi_otsu(foreground, spot_sigma=given.spot_sigma, outline_sigma=given.outline_sigma)
    tifffile.imwrite(out / path.name, np.asarray(labels, np.uint32), metadata={"axes": "ZYX"})


def main() -> None:
    """Reads the arguments and segments the patches in the order of their names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--model", required=True)
    for name in ("--threshold", "--spot-sigma", "--outline-sigma"):
        parser.add_argument(name, type=float, required=True)
    given = parser.parse_args()
    # Labels are made at the end, on OpenCL; without a driver its package just lacks the function.
    if not hasattr(pyclesperanto, "voronoi_otsu_labeling"):
        raise SystemExit("no OpenCL driver here; take a graphics card's, or a CPU's (Debian: pocl-opencl-icd)")
    refuse_unfit_weights(given.model)
    model = ModelInfo(name=given.model, model_input_size=WINDOW_SIZE)
    # It keeps a copy of its output in a folder of results, which nobody needs.
    with tempfile.TemporaryDirectory() as results:
        config = dataclasses.replace(CONFIG, model_info=model, results_path=results)
        for path in sorted(given.images.glob("*.tif")):
            segment(path, given.out, config, given)


if __name__ == "__main__":
    main()
