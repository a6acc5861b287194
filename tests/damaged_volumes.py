"""Volumes with a box whose voxels are lost, and the mask of it beside them."""

import nibabel
import numpy as np
from smooth_volumes import smooth_volumes

SIDE = 20
AFFINE = np.diag([0.5, 0.75, 2.0, 1.0])


def damaged(folder, name, *, dtype=np.uint16, under=0, ending=".nii.gz"):
    """A volume with a box whose voxels are lost, the mask beside it, and the whole volume."""
    volume = np.round(smooth_volumes(1, seed=9, side=SIDE)[0] / (40 if np.dtype(dtype).itemsize == 1 else 1))
    whole = volume.astype(dtype)
    hidden = np.zeros(whole.shape, bool)
    hidden[6:13, 5:11, 7:14] = True
    image = np.where(hidden, np.asarray(under, dtype), whole)
    save = (lambda path, array: np.save(path, array)) if ending == ".npy" else save_nifti
    save(folder / f"{name}{ending}", image)
    save(folder / f"{name}_mask{ending}", 3 * hidden.astype(np.uint8))
    return image, hidden, whole


def save_nifti(path, zyx, affine=AFFINE):
    nibabel.Nifti1Image(zyx.transpose(2, 1, 0), affine).to_filename(path)
