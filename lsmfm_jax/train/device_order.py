"""In which order devices fill a mesh: each process's together, and on a TPU along the wires between its chips.

Two things must hold. A process reads its own part of each batch, the first process the first rows, and every draw is
keyed by the position in the batch: so the rows of a process must lie together, in the order of the processes. And the
devices that share a volume (`depth`) or parameters (`fsdp`) send each other the most, so on a TPU, whose chips are
wired to their neighbours in a grid, these should be neighbours.

`jax.experimental.mesh_utils.create_device_mesh` looks after the second alone. Of slices of 16 chips and more it refuses
many meshes, and in most others it deals the rows of a process out between those of the others: see
benchmarks/mesh_hops.py.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

Path = tuple[Any, ...]


def device_grid(devices: Sequence[Any], sizes: Sequence[int]) -> np.ndarray:
    """Devices in the shape of a mesh whose last two axes send the most.

    Args:
        devices: as JAX lists them. On anything but TPUs they keep that order within each process.
        sizes: devices along `data`, `fsdp` and `depth`; their product is the number of devices.
    """
    processes: dict[int, list[Any]] = {}
    for device in devices:
        processes.setdefault(process_of(device), []).append(device)
    parts = [processes[index] for index in sorted(processes)]
    listed = _as_grid(parts, sizes)
    if not all(device.platform == "tpu" and hasattr(device, "coords") for device in devices):
        return listed
    # With one row of devices that exchange the rings are shorter, with rows and columns often the order of the list.
    return min(listed, _as_grid(_rings(parts, sizes[1] * sizes[2]), sizes), key=hops_in)


def _as_grid(parts: Sequence[Sequence[Any]], sizes: Sequence[int]) -> np.ndarray:
    ordered = np.empty(sum(map(len, parts)), dtype=object)
    ordered[:] = list(itertools.chain.from_iterable(parts))
    return ordered.reshape(tuple(sizes))


def process_of(device: Any) -> int:
    """The process that a device belongs to."""
    return device.process_index


def hops(one: Any, other: Any) -> int:
    """Wires between two chips of a TPU slice; those that join opposite edges of a large slice are left out."""
    return sum(abs(a - b) for a, b in zip(one.coords, other.coords, strict=True))


def hops_in(grid: np.ndarray) -> int:
    """Wires between neighbours along `fsdp` and `depth`, the first following on the last, over the whole mesh."""
    return sum(int(_hops_along(grid, axis).sum()) for axis in (1, 2) if grid.shape[axis] > 1)


def _hops_along(grid: np.ndarray, axis: int) -> np.ndarray:
    return np.vectorize(hops, otypes=[int])(grid, np.roll(grid, -1, axis))


def _rings(parts: list[list[Any]], group: int) -> list[Path]:
    """The devices of each process as a path over neighbours; processes whose devices exchange make a ring."""
    together = max(1, group // len(parts[0]))
    return [path for first in range(0, len(parts), together) for path in _ring(parts[first : first + together])]


def _ring(parts: list[list[Any]]) -> list[Path]:
    """A path through each part, so that from one to the next and from the last to the first it is not far."""
    choices = [_paths(part) for part in parts]
    rings = []
    for first in choices[0]:
        # The shortest way here that ends on each path of the part reached.
        reached = {first: (_length(first), [first])}
        for paths in choices[1:]:
            reached = {path: _shortest(reached, path) for path in paths}
        rings += [(length + hops(way[-1][-1], first[0]), way) for length, way in reached.values()]
    return min(rings, key=lambda ring: ring[0])[1]


def _shortest(reached: dict[Path, tuple[int, list[Path]]], path: Path) -> tuple[int, list[Path]]:
    ways = [(length + hops(way[-1][-1], path[0]), way) for length, way in reached.values()]
    length, way = min(ways, key=lambda found: found[0])
    return length + _length(path), [*way, path]


def _length(path: Path) -> int:
    return sum(hops(one, other) for one, other in itertools.pairwise(path))


def _paths(devices: list[Any]) -> list[Path]:
    """Ways through a block of chips line by line, each line the other way round than the one before."""
    axes = range(len(devices[0].coords))
    found = {}
    for order in itertools.permutations(axes):
        for steps in itertools.product((1, -1), repeat=len(order)):
            path = tuple(_line_by_line(devices, order, steps))
            found[tuple(device.id for device in path)] = path
    return list(found.values())


def _line_by_line(devices: list[Any], order: Sequence[int], steps: Sequence[int]) -> list[Any]:
    """Sorted by the axes in this order, the slowest first, each axis forwards (1) or backwards (-1) at the start."""
    places = [
        {at: place for place, at in enumerate(sorted({device.coords[axis] for device in devices})[::step])}
        for axis, step in zip(order, steps, strict=True)
    ]

    def key(device: Any) -> tuple[int, ...]:
        along, lines = [], 0
        for axis, placed in zip(order, places, strict=True):
            place = placed[device.coords[axis]]
            # Back again after each line that lies behind.
            along.append(len(placed) - 1 - place if lines % 2 else place)
            lines = lines * len(placed) + along[-1]
        # Two cores of a chip stay together.
        return (*along, getattr(device, "core_on_chip", 0))

    return sorted(devices, key=key)
