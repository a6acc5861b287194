"""What is labelled in generated tissue: nuclei, plaques, vessels, sparse neurons and glia."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree

from lsmfm_jax.phantom import shapes

# A voxel belongs to the mask where the structure fills at least this much of it: below a half, so that tubes
# about as thin as a voxel stay in one piece.
MASK_LEVEL = 0.35


class Structure(NamedTuple):
    """A labelled structure: dye concentration (0 to about 1), its mask, and how many objects were placed."""

    label: Float[np.ndarray, "z y x"]
    mask: Bool[np.ndarray, "z y x"]
    objects: int


class _Canvas:
    """A concentration field and a solid field (0 to 1, for the mask), stamped together."""

    def __init__(self, size: tuple[int, int, int], voxel_um: np.ndarray):
        self.label = np.zeros(size, np.float32)
        self.solid = np.zeros(size, np.float32)
        self.voxel_um = voxel_um
        self.extent_um = np.array(size) * voxel_um

    def stamp(self, centres, matrices, amplitudes, *, in_mask: bool = True) -> None:
        """Add ellipsoids to the concentration, and, unless `in_mask` is False, to the mask."""
        shapes.stamp(self.label, centres, matrices, amplitudes, voxel_um=self.voxel_um)
        if in_mask:
            shapes.stamp(self.solid, centres, matrices, np.ones(len(centres)), voxel_um=self.voxel_um)

    def tube(self, points, radii, brightness, *, in_mask: bool = True) -> None:
        """Add a tube; one thinner than a voxel is widened to be drawn and dimmed to keep its dye."""
        drawn = np.maximum(radii, 0.55 * np.prod(self.voxel_um) ** (1 / 3))
        amplitude = np.broadcast_to(brightness, radii.shape) * (radii / drawn) ** 1.3
        self.stamp(points, shapes.spheres(drawn), amplitude, in_mask=in_mask)

    def finish(self, objects: int) -> Structure:
        """The structure drawn so far."""
        return Structure(self.label, self.solid >= MASK_LEVEL, objects)


def nuclei(size: tuple[int, int, int], voxel_um: np.ndarray, rng: np.random.Generator) -> Structure:
    """Many small ellipsoids, packed in layers and bands of uneven density, with uneven brightness."""
    canvas = _Canvas(size, voxel_um)
    radius = rng.uniform(3.6, 5.6)
    centres = shapes.place(
        canvas.extent_um,
        density_per_mm3=rng.uniform(0.7e5, 2.0e5),
        spacing_um=1.9 * radius,
        margin_um=6.0,
        rng=rng,
    )
    crowding = shapes.smooth_noise(size, 60 / voxel_um, rng) + 0.3 * shapes.smooth_noise(size, 18 / voxel_um, rng)
    nearest = np.clip(np.rint(centres / voxel_um).astype(int), 0, np.array(size) - 1)
    centres = centres[rng.uniform(size=len(centres)) < 1 / (1 + np.exp(-2.5 * (crowding[tuple(nearest.T)] + 0.5)))]
    count = len(centres)
    radii = radius * np.exp(rng.normal(scale=[[0.16]], size=(count, 3))) * rng.uniform(0.8, 1.15, size=(count, 1))
    amplitudes = np.clip(np.exp(rng.normal(-0.55, 0.42, size=count)), 0.12, 1.4)
    canvas.stamp(centres, shapes.ellipsoids(radii, shapes.random_rotations(count, rng)), amplitudes)
    chromatin = shapes.smooth_noise(size, np.maximum(2.4 / voxel_um, 1.0), rng)
    canvas.label *= np.clip(1 + 0.22 * chromatin, 0.3, 1.7)
    return canvas.finish(count)


def plaques(size: tuple[int, int, int], voxel_um: np.ndarray, rng: np.random.Generator) -> Structure:
    """A few dense deposits: a bright irregular core of many lobes in a dim, ragged halo."""
    canvas = _Canvas(size, voxel_um)
    centres = shapes.place(
        canvas.extent_um, density_per_mm3=rng.uniform(120, 420), spacing_um=35.0, margin_um=10.0, rng=rng
    )
    if len(centres) == 0:
        centres = rng.uniform(0.2, 0.8, size=(1, 3)) * canvas.extent_um
    for centre in centres:
        radius = float(np.clip(np.exp(rng.normal(np.log(9.5), 0.4)), 5, 24))
        brightness = rng.uniform(0.45, 1.1)
        lobes = int(rng.integers(6, 15))
        around = centre + rng.normal(scale=0.42 * radius, size=(lobes, 3))
        sizes = radius * rng.uniform(0.3, 0.62, size=(lobes, 3))
        canvas.stamp(
            around,
            shapes.ellipsoids(sizes, shapes.random_rotations(lobes, rng)),
            brightness * rng.uniform(0.5, 1.0, size=lobes),
        )
        canvas.stamp(
            centre[None],
            shapes.spheres(np.array([1.5 * radius])),
            np.array([0.16 * brightness]),
            in_mask=False,
        )
    ragged = shapes.smooth_noise(size, np.maximum(5 / voxel_um, 1.0), rng)
    canvas.label *= np.clip(1 + 0.3 * ragged, 0.2, 1.8)
    return canvas.finish(len(centres))


def vessels(size: tuple[int, int, int], voxel_um: np.ndarray, rng: np.random.Generator) -> Structure:
    """A vascular tree: a trunk or two that taper and branch into a winding mesh of capillaries."""
    canvas = _Canvas(size, voxel_um)
    extent = canvas.extent_um
    lumen = np.zeros(size, np.float32)
    trunk_points = []
    for index in range(rng.integers(1, 4)):
        axis = rng.integers(3)
        start = rng.uniform(0.1, 0.9, size=3) * extent
        start[axis] = -15.0
        heading = rng.normal(scale=0.45, size=3)
        heading[axis] = 1.0
        radius = float(np.exp(rng.uniform(np.log(4), np.log(16)))) if index == 0 else rng.uniform(3, 5)
        points, radii = shapes.tree(
            start,
            heading,
            length_um=1.5 * extent[axis],
            radius_um=radius,
            wander=0.022,
            depth=3,
            rng=rng,
            taper=0.4,
        )
        canvas.tube(points, radii, rng.uniform(0.6, 1.0))
        inner = shapes.spheres(np.maximum(radii - 2.5, 0.2))
        shapes.stamp(lumen, points, inner, np.ones(len(radii)), voxel_um=voxel_um)
        trunk_points.append(points)
    # The dye lines the wall: large vessels look hollow, more so in some stainings than in others.
    canvas.label *= 1 - rng.uniform(0.1, 0.6) * lumen
    for points in _capillaries(extent, np.concatenate(trunk_points), rng):
        waves = np.cumsum(rng.normal(scale=0.03, size=len(points)))
        radii = rng.uniform(1.8, 3.2) * np.exp(np.clip(waves - waves.mean(), -0.25, 0.25))
        canvas.tube(points, radii, rng.uniform(0.2, 0.6))
    patchy = shapes.smooth_noise(size, 30 / voxel_um, rng)
    canvas.label *= np.clip(1 + 0.12 * patchy, 0.3, 1.8)
    return canvas.finish(len(trunk_points))


def _capillaries(extent: np.ndarray, trunks: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Winding curves through the points of a bed, each passing several of them, some starting at a trunk.

    Every curve goes to the nearest point not yet left twice, turning as little as it must, and is rounded
    by a spline: long smooth vessels that meet at points, rather than a lattice of straight struts.
    """
    nodes = shapes.place(extent, density_per_mm3=rng.uniform(0.6e4, 1.5e4), spacing_um=34.0, margin_um=30.0, rng=rng)
    if len(nodes) < 8:
        return []
    _, neighbours = cKDTree(nodes).query(nodes, k=8)
    _, nearest_trunk = cKDTree(trunks).query(nodes)
    visits = np.zeros(len(nodes), int)
    curves = []
    for first in rng.permutation(len(nodes)):
        if visits[first] >= 2:
            continue
        path = (
            [trunks[nearest_trunk[first]]] if np.linalg.norm(trunks[nearest_trunk[first]] - nodes[first]) < 60 else []
        )
        at, heading = int(first), rng.normal(size=3)
        for _ in range(rng.integers(3, 8)):
            path.append(nodes[at])
            visits[at] += 1
            options = [int(j) for j in neighbours[at][1:] if visits[j] < 2]
            if not options:
                break
            ahead = [(nodes[j] - nodes[at]) @ heading / np.linalg.norm(nodes[j] - nodes[at]) for j in options]
            heading, at = nodes[options[int(np.argmax(ahead))]] - nodes[at], options[int(np.argmax(ahead))]
            heading = heading / np.linalg.norm(heading)
        if len(path) >= 3:
            curves.append(shapes.wind(np.array(path), step_um=1.1, slack_um=3.5, rng=rng))
    return curves


def neurons(size: tuple[int, int, int], voxel_um: np.ndarray, rng: np.random.Generator) -> Structure:
    """One to a handful of whole neurons with tapering dendrites, and thin beaded axons passing by."""
    canvas = _Canvas(size, voxel_um)
    extent = canvas.extent_um
    count = int(rng.integers(1, 4)) + int(rng.poisson(1.5))
    upward = rng.normal(size=3)
    for _ in range(count):
        soma = rng.uniform(0.02, 0.98, size=3) * extent
        radius, brightness = rng.uniform(5, 8.5), rng.uniform(0.3, 1.0)
        stretch = radius * np.array([[1.0, rng.uniform(0.75, 1.0), rng.uniform(1.1, 1.5)]])
        canvas.stamp(soma[None], shapes.ellipsoids(stretch, shapes.random_rotations(1, rng)), np.array([brightness]))
        headings = [upward + rng.normal(scale=0.25, size=3), *rng.normal(size=(rng.integers(3, 6), 3))]
        for index, heading in enumerate(headings):
            points, radii = shapes.tree(
                soma,
                heading,
                length_um=rng.uniform(90, 170) if index == 0 else rng.uniform(40, 90),
                radius_um=rng.uniform(2.0, 3.2) if index == 0 else rng.uniform(1.1, 1.9),
                wander=0.05 if index == 0 else 0.09,
                depth=3 if index == 0 else 2,
                rng=rng,
            )
            canvas.tube(points, radii, brightness)
    for _ in range(rng.poisson(4)):
        start = rng.uniform(size=3) * extent
        points = shapes.walk(
            start, rng.normal(size=3), length_um=rng.uniform(60, 220), step_um=0.7, wander=0.06, rng=rng
        )
        beads = 1 + 0.9 * (np.sin(np.arange(len(points)) * 0.7 / rng.uniform(0.9, 1.6)) > 0.8)
        canvas.tube(points, 0.55 * beads, rng.uniform(0.2, 0.5))
    return canvas.finish(count)


def glia(size: tuple[int, int, int], voxel_um: np.ndarray, rng: np.random.Generator) -> Structure:
    """Evenly spaced microglia: small bright bodies, each with several short, twisting, branched arms."""
    canvas = _Canvas(size, voxel_um)
    centres = shapes.place(
        canvas.extent_um, density_per_mm3=rng.uniform(0.5e4, 1.4e4), spacing_um=38.0, margin_um=22.0, rng=rng
    )
    for centre in centres:
        brightness = float(np.clip(np.exp(rng.normal(-0.5, 0.45)), 0.15, 1.3))
        radii = rng.uniform(3.6, 5.6) * np.array([[1.0, rng.uniform(0.7, 1.0), rng.uniform(1.2, 2.2)]])
        canvas.stamp(centre[None], shapes.ellipsoids(radii, shapes.random_rotations(1, rng)), np.array([brightness]))
        for heading in rng.normal(size=(rng.integers(4, 8), 3)):
            points, arm = shapes.tree(
                centre,
                heading,
                length_um=rng.uniform(10, 20),
                radius_um=rng.uniform(1.2, 2.0),
                wander=0.13,
                depth=2,
                rng=rng,
            )
            # Annotators outline the body and the stems of its arms; the fine ends are beyond the resolution.
            stem = arm > 1.0
            canvas.tube(points[stem], arm[stem], 0.8 * brightness)
            canvas.tube(points[~stem], arm[~stem], 0.8 * brightness, in_mask=False)
    return canvas.finish(len(centres))


KINDS: dict[str, Callable[[tuple[int, int, int], np.ndarray, np.random.Generator], Structure]] = {
    "nuclei": nuclei,
    "plaques": plaques,
    "vessels": vessels,
    "neurons": neurons,
    "glia": glia,
}
