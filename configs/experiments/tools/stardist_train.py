"""Trains StarDist in 3D on a folder of patches; run by StarDist's own Python, as its command line only predicts.

Args: folder with `<patch>.tif` and `<patch>_masks.tif`, folder of the model to write. The last patch by name chooses
the best weights and the thresholds and is not learnt from, unless it is the only one.
"""

import argparse
import pathlib

import numpy as np
import tifffile
from csbdeep.utils import normalize
from stardist import Rays_GoldenSpiral, calculate_extents
from stardist.models import Config3D, StarDist3D

MASKS = "_masks"
RAYS = 96
# What `stardist-predict3d` normalises by unless told otherwise.
PERCENTILES = (1, 99.8)
# Two poolings by 2: a crop must be divisible by this.
DIVISOR = 4


def read_pairs(folder: pathlib.Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images [z, y, x], normalised, and their labels, in the order of names; patches without an object are left out."""
    images, labels = [], []
    for path in sorted(folder.glob("*.tif")):
        if path.stem.endswith(MASKS):
            continue
        label = tifffile.imread(path.with_name(f"{path.stem}{MASKS}.tif"))
        if label.any():
            images.append(normalize(tifffile.imread(path), *PERCENTILES))
            labels.append(label)
    if not images:
        raise SystemExit(f"{folder}: no label there holds an object; StarDist has nothing to learn from")
    return images, labels


def crop_size(labels: list[np.ndarray], most: int) -> tuple[int, ...]:
    """The largest crop that fits into all patches, at most `most` a side."""
    shapes = np.array([label.shape for label in labels])
    return tuple(int(min(side, most)) // DIVISOR * DIVISOR for side in shapes.min(axis=0))


def vary(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors a crop along some axes, and changes its contrast and brightness a little."""
    axes = tuple(np.flatnonzero(np.random.rand(image.ndim) < 0.5))
    varied = np.ascontiguousarray(np.flip(image, axes)) * np.random.uniform(0.7, 1.3) + np.random.uniform(-0.1, 0.1)
    return varied.astype(np.float32), np.ascontiguousarray(np.flip(label, axes))


def train(folder: pathlib.Path, out: pathlib.Path, *, epochs: int, crop: int) -> None:
    """Writes a model folder that `stardist-predict3d -m` takes."""
    images, labels = read_pairs(folder)
    extents = calculate_extents(labels)
    anisotropy = tuple(float(extent) for extent in extents.max() / extents)
    config = Config3D(
        rays=Rays_GoldenSpiral(RAYS, anisotropy=anisotropy),
        anisotropy=anisotropy,
        train_patch_size=crop_size(labels, crop),
        train_epochs=epochs,
        train_tensorboard=False,
    )
    model = StarDist3D(config, name=out.name, basedir=str(out.parent))
    learnt = slice(None, -1 if len(images) > 1 else None)
    model.train(images[learnt], labels[learnt], validation_data=(images[-1:], labels[-1:]), augmenter=vary)
    model.optimize_thresholds(images[-1:], labels[-1:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--crop", type=int, required=True)
    given = parser.parse_args()
    train(given.folder, given.out, epochs=given.epochs, crop=given.crop)
