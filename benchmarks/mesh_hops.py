"""How far apart the chips of a TPU slice lie that exchange along `fsdp` and `depth`: wires from neighbour to neighbour.

    make bench-tpu-env
    .venv-tpu/bin/python benchmarks/mesh_hops.py --json benchmarks/results/tpu-compile-only/mesh_hops.json

For each slice and mesh: chips as JAX lists them, as `make_mesh` lays them out (`ours`), and as JAX's own
`create_device_mesh` does (`jax`). `mean` and `most` count wires between neighbours, first and last included; those
that join opposite edges of a large slice do not count. `rows_in_order` is whether the rows of each process lie
together, in the order of the processes, as the loader has them. No program is compiled or run.
"""

from typing import Any

import numpy as np
import outcome
import tpu_target  # Before JAX: it sets what JAX reads when it starts.
from jax.experimental import mesh_utils

from lsmfm_jax.train.device_order import device_grid, hops

SLICES = ("v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:8x8", "v5p:2x2x1", "v5p:2x2x2", "v5p:4x4x4", "v6e:2x4", "v6e:8x8")
# Devices along fsdp and depth; data takes the others.
SHARED = ((4, 1), (1, 4), (2, 2), (8, 1), (4, 2))


def main() -> None:
    options = outcome.parser(__doc__).parse_args()
    result = outcome.facts("mesh_hops", device="TPU slices, described, not there")
    result["meshes"] = [row for name in SLICES for row in rows(name)]
    outcome.finish(result, options.json)


def rows(name: str) -> list[dict[str, Any]]:
    """A row for each mesh that a slice has the chips for."""
    devices = tpu_target.slice_devices(name)
    found = []
    for fsdp, depth in SHARED:
        sizes = (len(devices) // (fsdp * depth), fsdp, depth)
        if not sizes[0]:
            continue
        row = {"slice": name, "mesh": "data {} fsdp {} depth {}".format(*sizes)}
        row |= distances("listed", np.array(devices).reshape(sizes))
        row |= distances("ours", device_grid(devices, sizes))
        try:
            row |= distances("jax", mesh_utils.create_device_mesh(sizes, devices))
        except NotImplementedError:
            row["jax"] = "refused"
        found.append(row)
    return found


def distances(order: str, grid: np.ndarray) -> dict[str, Any]:
    """Wires between neighbours along `fsdp` and `depth`, and whether processes have their rows together."""
    found = [
        hops(*pair)
        for axis in (1, 2)
        if grid.shape[axis] > 1
        for pair in zip(grid.flat, np.roll(grid, -1, axis).flat, strict=True)
    ]
    processes = [device.process_index for device in grid[:, :, 0].flat]
    return {
        f"{order}_mean": round(float(np.mean(found)), 3),
        f"{order}_most": max(found),
        f"{order}_rows_in_order": processes == sorted(processes),
    }


if __name__ == "__main__":
    main()
