"""How large the objects of a mask are, and whether they are tubes or blobs.

Lengths are in mean voxels: the cube root of a voxel's volume. Where voxels are as deep as wide, or their size is not
known, that is a voxel. Each figure of several objects is a median in which an object counts by its voxels: specks that
an annotator left behind then say little, however many there are.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import ndimage

from lsmfm_jax.data.labels import IGNORED, Target
from lsmfm_jax.metrics.instances import components

Size = tuple[float, float, float]
# An object is a tube if it is this many times as long as wide, by its principal axes,
LONG = 4.0
# or if it would fill this many balls of its own width, as a network of vessels does whose axes are equally long.
BALLS = 40.0
# Slices are annotated, not a volume, where fewer of the annotated voxels than this have an annotated neighbour behind.
_NEIGHBOURS = 0.75


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
    """The connected foreground of one mask.

    Attributes:
        voxels: of each object.
        diameter: of the ball (in single annotated slices: of the disc) of the same volume, mean voxels.
        width: where the object is widest, by the distance to its surface, mean voxels; within half a voxel.
        tube: whether it is long for its width, or a network.
    """

    voxels: Int[np.ndarray, " n"]
    diameter: Float[np.ndarray, " n"]
    width: Float[np.ndarray, " n"]
    tube: Bool[np.ndarray, " n"]


def mean_voxel_um(voxel_size_um: Sequence[float]) -> float:
    """Cube root of the volume of a voxel, micrometres."""
    return math.prod(voxel_size_um) ** (1 / 3)


def measure_objects(target: Target, voxel_size_um: Size | None = None) -> Objects:
    """Size and shape of each object of a mask.

    Args:
        target: 1 is foreground, 0 background, `IGNORED` not annotated. Where only single slices are annotated, each
            object is measured within its slice.
        voxel_size_um: ZYX; None: cubes.
    """
    sides = np.ones(3) if voxel_size_um is None else np.array(voxel_size_um) / mean_voxel_um(voxel_size_um)
    axis = _axis_of_slices(target)
    if axis is None:
        return _measured(target, sides, flat=False)
    slices = np.moveaxis(target, axis, 0)
    order = [axis, *(other for other in range(3) if other != axis)]
    annotated = [one[None] for one in slices if (one != IGNORED).any()]
    return joined([_measured(one, sides[order], flat=True) for one in annotated])


def joined(parts: Sequence[Objects]) -> Objects:
    """The objects of several masks."""
    names = [field.name for field in dataclasses.fields(Objects)]
    return Objects(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def typical(values: Float[np.ndarray, " n"], voxels: Int[np.ndarray, " n"]) -> float:
    """The median of a figure of objects, each counted by its voxels; 0 without an object."""
    if not len(values):
        return 0.0
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(voxels[order]), voxels.sum() / 2)])


def _axis_of_slices(target: Target) -> int | None:
    """The axis across which single slices are annotated; None where a volume is."""
    annotated = target != IGNORED
    if annotated.all():
        return None
    shares = []
    for axis in range(3):
        moved = np.moveaxis(annotated, axis, 0)
        shares.append((moved[1:] & moved[:-1]).sum() / max(int(annotated.sum()), 1))
    least = int(np.argmin(shares))
    return least if shares[least] < _NEIGHBOURS else None


def _measured(target: Target, sides: Float[np.ndarray, "3"], *, flat: bool) -> Objects:
    labels = components(target == 1)
    count = int(labels.max())
    numbers = np.arange(1, count + 1)
    voxels = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    if not count:
        none = np.zeros(0)
        return Objects(voxels.astype(np.int64), none, none, none.astype(bool))
    width = _widths(target, labels, numbers, sides)
    if flat:
        area = voxels * sides[1] * sides[2]
        diameter, balls = np.sqrt(4 * area / np.pi), area / (np.pi / 4 * width**2)
    else:
        diameter, balls = np.cbrt(6 * voxels / np.pi), voxels / (np.pi / 6 * width**3)
    tube = (_elongation(labels, voxels, sides) >= LONG) | (balls >= BALLS)
    return Objects(voxels.astype(np.int64), diameter, width, tube)


def _widths(
    target: Target, labels: Int[np.ndarray, "z y x"], numbers: Int[np.ndarray, " n"], sides: Float[np.ndarray, "3"]
) -> Float[np.ndarray, " n"]:
    if (target != 1).any():
        distance = ndimage.distance_transform_edt(target == 1, sampling=sides)
    else:  # one object that fills everything
        across = [side * size for side, size in zip(sides, target.shape, strict=True) if size > 1]
        distance = np.full(target.shape, min(across, default=1.0) / 2)
    largest = ndimage.maximum(distance, labels, numbers)
    # From voxel to voxel: of an odd number of voxels twice the distance is one too many, of an even one it is right.
    return np.maximum(2.0 * np.atleast_1d(largest) - 0.5, 1.0)


def _elongation(
    labels: Int[np.ndarray, "z y x"], voxels: Shaped[np.ndarray, " n"], sides: Float[np.ndarray, "3"]
) -> Float[np.ndarray, " n"]:
    """Length of the longest principal axis over that of the next."""
    places = np.nonzero(labels)
    of = labels[places] - 1
    place = [axis * side for axis, side in zip(places, sides, strict=True)]
    mean = [np.bincount(of, axis, len(voxels)) / voxels for axis in place]
    moments = np.empty((len(voxels), 3, 3))
    for a in range(3):
        for b in range(3):
            moments[:, a, b] = np.bincount(of, place[a] * place[b], len(voxels)) / voxels - mean[a] * mean[b]
        # What a voxel spreads by itself.
        moments[:, a, a] += sides[a] ** 2 / 12
    spread = np.maximum(np.linalg.eigvalsh(moments), 1e-12)
    return np.sqrt(spread[:, 2] / spread[:, 1])
