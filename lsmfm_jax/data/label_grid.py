"""Whether two files lie on one grid of voxels: by the affines of their NIfTI headers, as far as those are believed.

Headers are often wrong or lost on the way through a tool, so not every difference is one:

- A file without an affine (TIFF, .npy, a NIfTI whose two codes are 0) says nothing: voxel for voxel.
- A header that stands at its default says nothing either where the other one is of another voxel size: 1, 1, 1
  voxels at the origin, with no turn (nibabel) or with X and Y reversed (ITK), is what tools write for an array that
  has no header. Between those two defaults nothing is compared.
- Voxel sizes are not compared: they are in millimetres, micrometres or 1. Directions are, and the place of the
  first voxel, in voxels; where the sizes differ, in units of either or in those of the world.

What is left is compared: a pure flip or permutation of the axes that brings one grid onto the other is undone,
anything else is refused.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.volumes.read import VolumeInfo

# Half a voxel: further away the nearest voxel is another one.
TOLERANCE_VOXELS = 0.5
_AXES = "XYZ"
_DEFAULTS = (np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0]))


class LabelGridError(LsmfmError, ValueError):
    """Two files that belong together lie on different grids: which, how they differ, and what to do about it."""


class _Grid(NamedTuple):
    """An affine taken apart: unit vectors of the X, Y and Z axes as columns, voxel sizes, and the first voxel."""

    directions: np.ndarray
    sizes: np.ndarray
    origin: np.ndarray


def on_grid_of(
    volume: Shaped[np.ndarray, "z y x"],
    info: VolumeInfo,
    *,
    like: VolumeInfo,
    like_shape: tuple[int, ...],
) -> Shaped[np.ndarray, "a b c"]:
    """A volume with its axes in the order and direction of another's, as their affines have it.

    Args:
        volume: a label or a prediction.
        info: what its file says of it.
        like: what the file of the image (or of the label) says.
        like_shape: its Z, Y, X. Where the shapes differ, the caller has more to say about it: the places of the
            grids are not compared then.

    Raises:
        LabelGridError: the affines differ by more than flips and permutations of axes.
    """
    if _says_nothing(info, like):
        return volume
    from_grid, to_grid = _grid(info), _grid(like)
    if from_grid is None or to_grid is None:
        wrong = info if from_grid is None else like
        raise LabelGridError(
            f"{wrong.path}: its affine has no three independent axes; export it again, or copy the affine of "
            f"{like.path if wrong is info else info.path}"
        )
    turn = np.linalg.inv(to_grid.directions) @ from_grid.directions
    order = np.abs(turn).argmax(axis=1)  # of each axis of `like`: the axis of the volume that it is
    signs = np.sign(turn[np.arange(3), order])
    exact = np.zeros((3, 3))
    exact[np.arange(3), order] = signs
    # A turn moves the far corner of the grid by its angle times the length of an edge.
    allowed = max(TOLERANCE_VOXELS / max(volume.shape), 1e-3)
    if sorted(order) != [0, 1, 2] or np.abs(turn - exact).max() > allowed:
        raise LabelGridError(
            f"{info.path} is turned against {like.path}: their affines differ in direction by more than flips and "
            "permutations of axes; resample it onto the grid of the other, or copy the affine if the voxels agree"
        )
    turned = volume.transpose(2, 1, 0).transpose(order)
    turned = turned[tuple(slice(None, None, -1 if sign < 0 else 1) for sign in signs)]
    result = np.ascontiguousarray(turned.transpose(2, 1, 0))
    if result.shape == tuple(like_shape):
        _check_place(from_grid, to_grid, order, signs, np.array(result.shape[::-1]), paths=(info.path, like.path))
    return result


def _says_nothing(info: VolumeInfo, like: VolumeInfo) -> bool:
    """Whether one of two headers does not say where its voxels lie, or both say the same."""
    if any(one.affine is None or _no_codes(one.header) for one in (info, like)):
        return True
    one, other = info.affine, like.affine
    if np.allclose(one, other, rtol=1e-4, atol=1e-6):
        return True
    default = [any(np.allclose(affine, known, atol=1e-6) for known in _DEFAULTS) for affine in (one, other)]
    unit = [np.allclose(np.linalg.norm(affine[:3, :3], axis=0), 1.0, atol=1e-4) for affine in (one, other)]
    return all(default) or (default[0] and not unit[1]) or (default[1] and not unit[0])


def _no_codes(header: Any) -> bool:
    return header is not None and int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0


def _grid(info: VolumeInfo) -> _Grid | None:
    affine = np.asarray(info.affine, np.float64)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (sizes == 0).any():
        return None
    directions = affine[:3, :3] / sizes
    return _Grid(directions, sizes, affine[:3, 3]) if abs(np.linalg.det(directions)) > 1e-3 else None


def _check_place(
    from_grid: _Grid, to_grid: _Grid, order: np.ndarray, signs: np.ndarray, lengths: np.ndarray, *, paths: tuple
) -> None:
    """Refuses a first voxel that does not lie where that of the other grid does, once flips are undone."""
    inverse = np.linalg.inv(to_grid.directions)
    start, wanted = inverse @ from_grid.origin, inverse @ to_grid.origin
    sizes = from_grid.sizes[order]
    # Of an axis that was flipped, the last voxel is the first one now.
    far = np.where(signs < 0, lengths - 1, 0)
    in_world = (start - far * to_grid.sizes - wanted) / to_grid.sizes
    in_voxels = start / sizes - far - wanted / to_grid.sizes
    offset = min((in_world, in_voxels), key=lambda of: np.abs(of).max())
    if np.abs(offset).max() > TOLERANCE_VOXELS:
        moved = ", ".join(f"{by:.4g} in {_AXES[k]}" for k, by in enumerate(offset) if abs(by) > TOLERANCE_VOXELS)
        raise LabelGridError(
            f"{paths[0]} lies {moved} voxels off {paths[1]}, by their affines; cut both to one grid, or copy the "
            "affine if the voxels agree"
        )
