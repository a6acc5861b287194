"""Where arrays live: a mesh of devices, and ordered path rules from parameters to mesh axes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any

BATCH_AXES = ("data", "fsdp")
# Below this a parameter is not worth the messages that splitting it costs.
SMALLEST_SPLIT = 2**14


def make_mesh(
    *, data: int = -1, fsdp: int = 1, depth: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `depth`; one of them may be -1 and takes what is left.

    Raises:
        ValueError: the axes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "depth": depth}
    known = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values():
        if len(devices) % known:
            raise ValueError(f"mesh: {sizes}; {known} does not divide the {len(devices)} devices at hand")
        sizes = {name: len(devices) // known if size == -1 else size for name, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"mesh: {sizes} needs {math.prod(sizes.values())} devices, {len(devices)} are at hand; "
            "set one axis to -1 to fill up"
        )
    grid = np.array(devices).reshape(tuple(sizes.values()))
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device, whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shardings(batch: PyTree, mesh: Mesh) -> PyTree:
    """Leading axis over `data` and `fsdp`; the Z axis of volumes (rank 4 and 5) over `depth` as well.

    Raises:
        ValueError: a batch that the mesh does not divide.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]

    def sharding(leaf: Any) -> NamedSharding:
        if leaf.shape[0] % ways:
            raise ValueError(
                f"train.batch_size: {leaf.shape[0]} is not a multiple of the {ways} devices along mesh.data and "
                "mesh.fsdp; change one of them"
            )
        splits_depth = len(leaf.shape) in (4, 5) and mesh.shape["depth"] > 1
        if splits_depth and leaf.shape[1] % mesh.shape["depth"]:
            raise ValueError(
                f"data.patch_size: Z of {leaf.shape[1]} is not a multiple of mesh.depth {mesh.shape['depth']}"
            )
        return NamedSharding(mesh, PartitionSpec(BATCH_AXES, *(("depth",) if splits_depth else ())))

    return jax.tree.map(sharding, batch)


def parameter_spec(shape: tuple[int, ...], ways: int) -> PartitionSpec:
    """Splits the widest axis that `ways` divides over `fsdp`; small or odd parameters stay whole."""
    if ways == 1 or math.prod(shape) < SMALLEST_SPLIT:
        return PartitionSpec()
    candidates = [axis for axis, size in enumerate(shape) if size % ways == 0]
    if not candidates:
        return PartitionSpec()
    chosen = max(candidates, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*("fsdp" if axis == chosen else None for axis in range(len(shape))))


def state_shardings(state: PyTree, mesh: Mesh) -> PyTree:
    """A sharding for every leaf of a train state (of shapes): parameters, moments and teacher over `fsdp`.

    A moment has the shape of its parameter, so the rule by shape gives both the same split.
    """
    ways = mesh.shape["fsdp"]
    return jax.tree.map(lambda leaf: NamedSharding(mesh, parameter_spec(tuple(leaf.shape), ways)), state)


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Makes global device arrays of a batch of which every process holds its own contiguous rows."""
    processes = jax.process_count()

    def put(leaf: np.ndarray) -> jax.Array:
        shape = (leaf.shape[0] * processes, *leaf.shape[1:])
        sharding = batch_shardings(jax.ShapeDtypeStruct(shape, leaf.dtype), mesh)
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    return jax.tree.map(put, batch)
