"""Smooth volumes, of which a hole can be told from what is around it."""

import numpy as np
from scipy import ndimage


def smooth_volumes(count: int, seed: int = 0, side: int = 16) -> np.ndarray:
    """`count` cubes of `side` voxels, float32, from 1000 to 5000."""
    noise = np.random.default_rng(seed).random((count, side, side, side))
    smooth = ndimage.gaussian_filter(noise, (0, 3, 3, 3), mode="wrap")
    low, high = smooth.min(), smooth.max()
    return (1000 + 4000 * (smooth - low) / (high - low)).astype(np.float32)
