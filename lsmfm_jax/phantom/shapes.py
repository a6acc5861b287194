"""Geometry for generated tissue: stamping ellipsoids, placing cells, growing curves, smooth random fields."""

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from scipy.spatial import cKDTree

# Voxels handled at once when stamping: bounds the temporary arrays to a few tens of megabytes.
STAMP_CHUNK_VOXELS = 1_500_000


def random_rotations(count: int, rng: np.random.Generator) -> Float[np.ndarray, "p 3 3"]:
    """Uniform random rotation matrices, from normalised quaternions."""
    w, x, y, z = _unit(rng.normal(size=(count, 4))).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def ellipsoids(radii_um: Float[np.ndarray, "p 3"], rotations: Float[np.ndarray, "p 3 3"]) -> Float[np.ndarray, "p 3 3"]:
    """Matrices that map an offset in micrometres to a vector of length 1 on the ellipsoid's surface."""
    return rotations / radii_um[:, :, None]


def spheres(radii_um: Float[np.ndarray, " p"]) -> Float[np.ndarray, "p 3 3"]:
    """The matrices of `ellipsoids` for spheres."""
    return np.eye(3)[None] / radii_um[:, None, None]


def stamp(
    field: Float[np.ndarray, "z y x"],
    centres_um: Float[np.ndarray, "p 3"],
    shapes: Float[np.ndarray, "p 3 3"],
    amplitudes: Float[np.ndarray, " p"],
    *,
    voxel_um: Float[np.ndarray, " 3"],
) -> None:
    """Raise `field` (in place) to the amplitude of every ellipsoid it meets, with edges one voxel wide.

    Centres are in micrometres from the first voxel's centre, Z Y X; they may lie outside the field.
    Overlaps take the larger value, so a tube is many small steps along a line without a bright seam.
    """
    extents_um = np.linalg.norm(np.linalg.inv(shapes), axis=2)
    halves = np.ceil(extents_um / voxel_um + 1.0).astype(int)
    middle = np.rint(centres_um / voxel_um).astype(int)
    near = np.all((middle + halves >= 0) & (middle - halves < np.array(field.shape)), axis=1)
    # One window size per group of like-sized shapes: few numpy calls without much wasted window.
    sizes = np.ceil(np.log2(halves.max(axis=1)) * 2).astype(int)
    for size in np.unique(sizes[near]):
        members = np.flatnonzero(near & (sizes == size))
        half = halves[members].max(axis=0)
        per_chunk = max(1, STAMP_CHUNK_VOXELS // int(np.prod(2 * half + 1)))
        for first in range(0, len(members), per_chunk):
            chunk = members[first : first + per_chunk]
            _stamp_group(field, centres_um[chunk], shapes[chunk], amplitudes[chunk], half, voxel_um)


def _stamp_group(field, centres_um, shapes, amplitudes, half, voxel_um) -> None:
    """Stamp shapes that share one window of 2 * half + 1 voxels."""
    axes = [np.arange(-h, h + 1) for h in half]
    window = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    middle = np.rint(centres_um / voxel_um).astype(int)
    voxels = middle[:, None, :] + window[None]
    offsets = (voxels * voxel_um - centres_um[:, None, :]).astype(np.float32)
    distance = np.linalg.norm(offsets @ shapes.astype(np.float32).transpose(0, 2, 1), axis=-1)
    radius = np.abs(np.linalg.det(shapes)) ** (-1 / 3)
    edge = (radius / np.prod(voxel_um) ** (1 / 3)).astype(np.float32)[:, None]
    values = amplitudes.astype(np.float32)[:, None] * np.clip(0.5 + (1 - distance) * edge, 0, 1)
    inside = np.all((voxels >= 0) & (voxels < np.array(field.shape)), axis=-1) & (values > 0)
    flat = np.ravel_multi_index(tuple(voxels[inside].T), field.shape)
    np.maximum.at(field.reshape(-1), flat, values[inside].astype(field.dtype))


def place(
    extent_um: Float[np.ndarray, " 3"],
    *,
    density_per_mm3: float,
    spacing_um: float,
    margin_um: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "p 3"]:
    """Random points no two of which are closer than `spacing_um`, in the box grown by `margin_um`.

    `density_per_mm3` is that of the candidates; of each pair that is too close the later one goes
    (Matérn's second hard-core process), so dense settings level off as tissue does.
    """
    box = extent_um + 2 * margin_um
    count = rng.poisson(density_per_mm3 * np.prod(box) * 1e-9)
    points = rng.uniform(size=(count, 3)) * box - margin_um
    if count < 2:
        return points
    pairs = cKDTree(points).query_pairs(spacing_um, output_type="ndarray")
    keep = np.ones(count, bool)
    keep[pairs.max(axis=1)] = False
    return points[keep]


def walk(
    start_um: Float[np.ndarray, " 3"],
    direction: Float[np.ndarray, " 3"],
    *,
    length_um: float,
    step_um: float,
    wander: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "n 3"]:
    """A smooth random curve; its direction drifts by `wander` over one micrometre."""
    steps = max(2, round(length_um / step_um))
    turns = np.cumsum(rng.normal(scale=wander * np.sqrt(step_um), size=(steps, 3)), axis=0)
    directions = _unit(_unit(direction[None]) + turns)
    return start_um + np.concatenate([np.zeros((1, 3)), np.cumsum(directions * step_um, axis=0)])


def tree(
    start_um: Float[np.ndarray, " 3"],
    direction: Float[np.ndarray, " 3"],
    *,
    length_um: float,
    radius_um: float,
    wander: float,
    depth: int,
    rng: np.random.Generator,
    taper: float = 0.55,
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
    """Points and radii of a branching, tapering process: a vessel, a dendrite, an arm."""
    step = max(0.4 * radius_um, 0.5)
    points = walk(start_um, direction, length_um=length_um, step_um=step, wander=wander, rng=rng)
    radii = np.linspace(radius_um, taper * radius_um, len(points))
    if depth <= 1:
        return points, radii
    all_points, all_radii = [points], [radii]
    for _ in range(rng.integers(1, 4)):
        at = int(rng.uniform(0.25, 0.95) * (len(points) - 1))
        heading = _unit(_unit((points[at + 1] - points[at])[None]) + rng.normal(scale=0.45, size=(1, 3)))[0]
        child_points, child_radii = tree(
            points[at],
            heading,
            length_um=length_um * rng.uniform(0.45, 0.9),
            radius_um=radii[at] * 0.75,
            wander=wander,
            depth=depth - 1,
            rng=rng,
            taper=taper,
        )
        all_points.append(child_points)
        all_radii.append(child_radii)
    return np.concatenate(all_points), np.concatenate(all_radii)


def wind(
    path_um: Float[np.ndarray, "m 3"], *, step_um: float, slack_um: float, rng: np.random.Generator
) -> Float[np.ndarray, "n 3"]:
    """A smooth curve through the points of `path_um`, straying between them by about `slack_um`."""
    middles = (path_um[1:] + path_um[:-1]) / 2 + rng.normal(scale=slack_um, size=(len(path_um) - 1, 3))
    knots = np.empty((2 * len(path_um) - 1, 3))
    knots[::2], knots[1::2] = path_um, middles
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))])
    positions = np.linspace(0, along[-1], max(3, round(1.15 * along[-1] / step_um)))
    return CubicSpline(along, knots)(positions)


def smooth_noise(
    shape: tuple[int, int, int], scale_voxels: Float[np.ndarray, " 3"], rng: np.random.Generator
) -> Float[np.ndarray, "z y x"]:
    """A smooth random field of mean 0 and standard deviation about 1 whose features span `scale_voxels`."""
    matrices = [_spline_matrix(n, max(1.0, s)) for n, s in zip(shape, scale_voxels, strict=True)]
    field = rng.standard_normal([m.shape[1] for m in matrices], dtype=np.float32)
    for axis, matrix in enumerate(matrices):
        matrix = matrix / np.sqrt(np.mean(np.sum(matrix**2, axis=1)))
        field = np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field)


def _spline_matrix(size: int, scale: float) -> np.ndarray:
    """Cubic B-spline weights from knots `scale` voxels apart to `size` voxels."""
    position = np.arange(size) / scale + 1.0
    knots = np.arange(int(np.ceil((size - 1) / scale)) + 4)
    t = np.abs(position[:, None] - knots[None])
    near = 2 / 3 - t**2 + t**3 / 2
    far = np.clip(2 - t, 0, None) ** 3 / 6
    return np.where(t < 1, near, far).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1 along the last axis."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
