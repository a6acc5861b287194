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
import tifffile
from napari_cellseg3d.code_models.instance_segmentation import threshold, voronoi_otsu
from napari_cellseg3d.config import InferenceWorkerConfig, ModelInfo
from napari_cellseg3d.dev_scripts.remote_inference import CONFIG, WINDOW_SIZE, inference_on_images


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
    model = ModelInfo(name=given.model, model_input_size=WINDOW_SIZE)
    # It keeps a copy of its output in a folder of results, which nobody needs.
    with tempfile.TemporaryDirectory() as results:
        config = dataclasses.replace(CONFIG, model_info=model, results_path=results)
        for path in sorted(given.images.glob("*.tif")):
            segment(path, given.out, config, given)


if __name__ == "__main__":
    main()
