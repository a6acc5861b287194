"""The tissue around a labelled structure: texture, fibre tracts, unlabelled vessels, dirt, its surface."""

import numpy as np
from jaxtyping import Float

from lsmfm_jax.phantom import shapes


def surroundings(
    size: tuple[int, int, int],
    voxel_um: np.ndarray,
    *,
    texture: float,
    kind: str,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "z y x"], Float[np.ndarray, "z y x"]]:
    """Relative autofluorescence of the tissue around a structure, and where tissue is (1 inside, 0 outside).

    Texture at several scales, fibre tracts as bright bands (plaques sit beside strong ones), unlabelled
    vessels as dark holes, and in some patches the surface of the tissue.
    """
    tissue = np.ones(size, np.float32)
    for scale_um, share in ((70.0, 0.7), (22.0, 0.5), (7.0, 0.6), (3.5, 0.6)):
        tissue *= np.exp(texture * share * shapes.smooth_noise(size, np.maximum(scale_um / voxel_um, 1.0), rng))
    grid = np.meshgrid(*[np.arange(n) * v for n, v in zip(size, voxel_um, strict=True)], indexing="ij", sparse=True)
    extent = np.array(size) * voxel_um
    if rng.uniform() < (0.7 if kind == "plaques" else 0.2):
        normal = rng.normal(size=3)
        normal /= np.linalg.norm(normal)
        shift = sum(g * n for g, n in zip(grid, normal, strict=True)) - float(rng.uniform(size=3) * extent @ normal)
        shift = shift + 0.05 * extent.mean() * shapes.smooth_noise(size, 60 / voxel_um, rng)
        width = rng.uniform(0.06, 0.25) * extent.mean()
        tissue *= (1 + rng.uniform(0.2, 0.6) * np.exp(-0.5 * (shift / width) ** 2)).astype(np.float32)
    holes = np.zeros(size, np.float32)
    for _ in range(rng.poisson(1.2)):
        start = rng.uniform(-0.1, 1.1, size=3) * extent
        points = shapes.walk(start, rng.normal(size=3), length_um=200.0, step_um=3.0, wander=0.03, rng=rng)
        shapes.stamp(
            holes,
            points,
            shapes.spheres(np.full(len(points), rng.uniform(3, 7))),
            np.ones(len(points)),
            voxel_um=voxel_um,
        )
    tissue *= 1 - 0.5 * holes
    # Specks of dirt and clotted dye, far brighter than anything meant to be stained.
    specks = rng.poisson(0.7)
    shapes.stamp(
        tissue,
        rng.uniform(size=(specks, 3)) * extent,
        shapes.spheres(rng.uniform(1.0, 2.2, size=specks)),
        rng.uniform(5, 60, size=specks),
        voxel_um=voxel_um,
    )
    inside = np.ones(size, np.float32)
    if rng.uniform() < 0.08:
        axis = rng.integers(3)
        surface = rng.uniform(0.1, 0.35) * extent[axis] + 6 * shapes.smooth_noise(size, 45 / voxel_um, rng)
        reach = grid[axis] if rng.integers(2) else extent[axis] - grid[axis]
        inside = (1 / (1 + np.exp(-np.clip((reach - surface) / 2.0, -30, 30)))).astype(np.float32)
    return tissue * (0.04 + 0.96 * inside), inside
