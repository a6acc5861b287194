"""Where arrays live: a mesh of devices, and ordered path rules from parameters to mesh axes."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lsmfm_jax.errors import InputError
from lsmfm_jax.models import BACKBONES
from lsmfm_jax.train import device_order
from lsmfm_jax.train.optim import leaf_path

PyTree = Any

BATCH_AXES = ("data", "fsdp")
# Below this a parameter is not worth the messages that splitting it costs.
SMALLEST_SPLIT = 2**14


@dataclasses.dataclass(frozen=True)
class SplitRule:
    """How leaves whose path matches `pattern` (searched) are split over `fsdp`; the first rule wins.

    Attributes:
        pattern: regular expression.
        axes: the axis that is split, first choice first; the next is taken where the devices do not divide it,
            and a leaf with none left stays whole. No axes: never split.
    """

    pattern: str
    axes: tuple[int, ...] = ()


SPLIT_RULES = (
    # One number or a few for each channel: less than the messages would cost.
    SplitRule(r"(^|[/_])(bias|scale|slope|logit_scale|mean|var)$"),
    # Rows of tables are looked up: split along the width, every device has its part of any row.
    SplitRule(r"/embeddings/(word|position|token_type)$", (-1, 0)),
    # Low-rank factors: thin, and multiplied with each other at once.
    SplitRule(r"(^|/)lora/"),
    # Convolutions and dense layers, (..., inputs, outputs): by outputs, and where those are odd by inputs.
    SplitRule(r"(^|[/_])kernel$", (-1, -2)),
)


def make_mesh(*, data: int = -1, fsdp: int = 1, depth: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `depth`; one of them may be -1 and takes what is left.

    The rows of a process lie together, in the order of the processes; on TPUs neighbours along `fsdp` and `depth` are
    neighbours in the slice where that is possible.

    Raises:
        ValueError: the axes do not multiply to the number of devices, or a volume would be split over processes.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "depth": depth}
    known = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values():
        if len(devices) % known:
            raise InputError(f"mesh: {sizes}; {known} does not divide the number of devices, {len(devices)}")
        sizes = {name: len(devices) // known if size == -1 else size for name, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        raise InputError(
            f"mesh: {sizes} needs {math.prod(sizes.values())} devices, there are {len(devices)}; "
            "set one axis to -1 to fill up"
        )
    grid = device_order.device_grid(devices, tuple(sizes.values()))
    # A process reads whole volumes, each for devices of its own.
    if any(len(set(map(device_order.process_of, column))) > 1 for column in grid.reshape(-1, sizes["depth"])):
        raise InputError(
            f"mesh.depth: {sizes['depth']} does not divide the devices of each process ({jax.local_device_count()} "
            "here); a volume is split within one process only, so lower it"
        )
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device, whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shardings(batch: PyTree, mesh: Mesh | AbstractMesh, *, split_depth: bool = False) -> PyTree:
    """Leading axis over `data` and `fsdp`; with `split_depth` also the Z axis of volumes (rank 4 and 5) over `depth`.

    Raises:
        ValueError: a batch that the mesh does not divide.
    """
    ways, depth = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["depth"]

    def sharding(leaf: Any) -> NamedSharding:
        if leaf.shape[0] % ways:
            raise InputError(
                f"train.batch_size: {leaf.shape[0]} is not a multiple of the {ways} devices along mesh.data and "
                "mesh.fsdp; change one of them"
            )
        splits = split_depth and depth > 1 and len(leaf.shape) in (4, 5)
        if splits and leaf.shape[1] % depth:
            raise InputError(
                f"mesh.depth: {depth} does not divide the {leaf.shape[1]} voxels of volumes along Z; change it, or "
                "data.input_size (data.patch_size where volumes are not resized)"
            )
        return NamedSharding(mesh, PartitionSpec(BATCH_AXES, *(("depth",) if splits else ())))

    return jax.tree.map(sharding, batch)


def split_volumes(rows: PyTree, mesh: Mesh) -> PyTree:
    """Places rows that are ready for the network: over all axes of the mesh, Z of volumes over `depth`.

    What made them (resizing, warps, smoothing) mixes voxels along Z, and split it would gather whole volumes. So it
    works on whole volumes, on every device along `depth` alike, and each device cuts its part out of the result:
    one channel, small beside the features, and nothing is sent.
    """
    whole = jax.lax.with_sharding_constraint(rows, batch_shardings(rows, mesh))
    return jax.lax.with_sharding_constraint(whole, batch_shardings(rows, mesh, split_depth=True))


def split_of(path: str, shape: tuple[int, ...], ways: int) -> PartitionSpec:
    """How one leaf of a train state lies over `fsdp`: by the first rule that matches its path.

    Args:
        path: `/`-joined, such as `params/backbone/bottom/unit_0/conv/kernel`; a moment's path ends as its
            parameter's does, so both get the same split.
        shape: of the leaf.
        ways: devices along `fsdp`.

    Raises:
        ValueError: no rule covers a leaf that is large enough to be split.
    """
    if ways == 1 or math.prod(shape) < SMALLEST_SPLIT:
        return PartitionSpec()
    declared = (SplitRule(*rule) for backbone in BACKBONES.values() for rule in backbone.split_rules)
    for rule in (*SPLIT_RULES, *declared):
        if not re.search(rule.pattern, path):
            continue
        for axis in rule.axes:
            if -len(shape) <= axis < len(shape) and shape[axis] % ways == 0:
                chosen = axis % len(shape)
                return PartitionSpec(*(["fsdp" if i == chosen else None for i in range(len(shape))]))
        return PartitionSpec()
    raise InputError(
        f"{path}, shape {shape}: no rule says how it is split over mesh.fsdp; add one to SPLIT_RULES of "
        "lsmfm_jax/train/sharding.py or to the split_rules of its backbone, or set mesh.fsdp to 1"
    )


def state_shardings(state: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """A sharding for every leaf of a train state (of shapes): parameters, moments and teacher over `fsdp`.

    Raises:
        ValueError: a large leaf that no rule covers.
    """
    ways = mesh.shape["fsdp"]
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, split_of(leaf_path(path), tuple(leaf.shape), ways)), state
    )


def sharding_table(state: PyTree, mesh: Mesh | AbstractMesh) -> str:
    """Which leaves of a state are split, how, and what one device holds of them; equal layers share a line.

    Args:
        state: a tree of arrays or shapes.
        mesh: where it is to live; no device is touched.
    """
    shardings = jax.tree.leaves(state_shardings(state, mesh))
    groups: dict[tuple[str, str, str], list[float]] = {}
    parts: dict[str, list[float]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, leaf), sharding in zip(leaves, shardings, strict=True):
        name = leaf_path(path)
        whole = math.prod(leaf.shape) * leaf.dtype.itemsize / 2**20
        held = math.prod(sharding.shard_shape(tuple(leaf.shape))) * leaf.dtype.itemsize / 2**20
        alike = re.sub(r"_\d+(?=/|$)", "_*", re.sub(r"^opt_state/.*/(mu|nu)/", r"opt_state/../\1/", name))
        group = (alike, _dimensions(leaf.shape), _dimensions(tuple(sharding.spec)) if any(sharding.spec) else "whole")
        for totals, key in ((groups, group), (parts, name.split("/")[0])):
            counted = totals.setdefault(key, [0, 0.0, 0.0])
            counted[0], counted[1], counted[2] = counted[0] + 1, counted[1] + whole, counted[2] + held
    width = max(len(name) for name, _, _ in groups) + 2
    lines = [f"mesh: {', '.join(f'{name} {size}' for name, size in mesh.shape.items())}", ""]
    lines.append(f"{'part':{width}}{'leaves':>7}{'MiB':>10}{'MiB held by a device':>22}")
    for part, (count, whole, held) in parts.items():
        lines.append(f"{part:{width}}{count:>7}{whole:>10.2f}{held:>22.2f}")
    sums = [sum(part[i] for part in parts.values()) for i in range(3)]
    lines += [f"{'all':{width}}{sums[0]:>7}{sums[1]:>10.2f}{sums[2]:>22.2f}", ""]
    lines.append(f"{'leaf':{width}}{'count':>6}  {'shape':22}{'split':24}{'MiB':>9}{'held':>9}")
    for (name, shape, split), (count, whole, held) in groups.items():
        lines.append(f"{name:{width}}{count:>6}  {shape:22}{split:24}{whole:>9.2f}{held:>9.2f}")
    return "\n".join(lines)


def _dimensions(sizes: Sequence[object]) -> str:
    return " ".join("-" if size is None else str(size) for size in sizes) or "scalar"


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Makes global device arrays of a batch of which every process holds its own contiguous rows."""
    processes = jax.process_count()

    def put(leaf: np.ndarray) -> jax.Array:
        shape = (leaf.shape[0] * processes, *leaf.shape[1:])
        sharding = batch_shardings(jax.ShapeDtypeStruct(shape, leaf.dtype), mesh)
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    return jax.tree.map(put, batch)
