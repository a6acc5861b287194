"""Small labelled patches on disk: bright balls on noise, with masks and blurred companions."""

import pathlib

import numpy as np
from scipy import ndimage

from lsmfm_jax.volumes.read import write_nifti


def write_patch(folder: pathlib.Path, name: str, *, size: int = 20, seed: int = 0, balls: int = 3) -> None:
    """Writes `<name>`, `<name>_label` and `<name>_blurred` as NIfTI."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), -1)
    mask = np.zeros((size,) * 3, bool)
    for centre in rng.uniform(4, size - 4, (balls, 3)):
        mask |= np.linalg.norm(grid - centre, axis=-1) < 3
    image = 200 + 20 * rng.standard_normal(mask.shape) + 400 * mask
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"": image, "_label": mask, "_blurred": ndimage.gaussian_filter(image, 1.5)}
    for ending, array in arrays.items():
        array = array.astype(np.uint8 if ending == "_label" else np.uint16)
        write_nifti(folder / f"{name}{ending}.nii.gz", array, like=None)


def write_patches(folder: pathlib.Path, *, count: int = 4, size: int = 20) -> pathlib.Path:
    """Patches of two classes, `dense` and `sparse`, each in a volume of its own."""
    for number in range(count):
        kind, balls = ("dense", 6) if number % 2 else ("sparse", 1)
        write_patch(folder, f"{kind}_patch_{number:03d}_vol{number:03d}_ch0", size=size, seed=number, balls=balls)
    return folder
