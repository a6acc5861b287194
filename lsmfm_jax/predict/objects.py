"""Facts of objects: gathered for the components of each block, added up over the blocks, written as a table."""

import csv
import importlib.util
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int, Integer, Num, Shaped, UInt64

from lsmfm_jax.files import TEMPORARY

# `first` is the smallest place of its voxels in the whole volume, counted in raster order: it numbers objects alike
# whatever the blocks. Sums of coordinates are exact; boxes end before `high`.
COMPONENT = np.dtype(
    [
        ("first", np.uint64),
        ("voxels", np.int64),
        ("sums", np.int64, 3),
        ("low", np.int32, 3),
        ("high", np.int32, 3),
        ("intensity", np.float64),
        ("brightest", np.float64),
        ("probability", np.float64),
    ]
)
# Rows at a time, where all would not fit into memory.
ROWS = 2**18
TABLE = "objects.csv"
PARQUET = "objects.parquet"


def component_facts(
    labels: Integer[np.ndarray, "z y x"],
    count: int,
    *,
    corner: tuple[int, int, int],
    shape: tuple[int, int, int],
    intensity: Num[np.ndarray, "z y x"] | None,
    probability: Num[np.ndarray, "z y x"] | None,
) -> Shaped[np.ndarray, " n"]:
    """What is known of the components of one block.

    Args:
        labels: 1 to `count`.
        count: components.
        corner: ZYX of the block in the volume.
        shape: ZYX of the volume.
        intensity: raw counts of the block, or None.
        probability: of the block, in 255ths, or None.
    """
    facts = np.zeros(count, COMPONENT)
    places = np.flatnonzero(labels)
    number = labels.reshape(-1)[places].astype(np.int64) - 1
    coordinates = np.unravel_index(places, labels.shape)
    facts["voxels"] = np.bincount(number, minlength=count)
    for axis, (along, start) in enumerate(zip(coordinates, corner, strict=True)):
        # Below 2^53, where double precision counts exactly.
        summed = np.rint(np.bincount(number, along, minlength=count)).astype(np.int64)
        facts["sums"][:, axis] = summed + start * facts["voxels"]
        low, high = np.full(count, np.iinfo(np.int32).max, np.int64), np.zeros(count, np.int64)
        np.minimum.at(low, number, along)
        np.maximum.at(high, number, along)
        facts["low"][:, axis], facts["high"][:, axis] = low + start, high + start + 1
    # The places are sorted, so the last that is written for a component, from behind, is its first.
    first = np.zeros(count, np.int64)
    first[number[::-1]] = places[::-1]
    z, y, x = (along + start for along, start in zip(np.unravel_index(first, labels.shape), corner, strict=True))
    facts["first"] = (z * shape[1] + y) * shape[2] + x
    if intensity is not None:
        values = intensity.reshape(-1)[places].astype(np.float64)
        facts["intensity"] = np.bincount(number, values, minlength=count)
        brightest = np.full(count, -np.inf)
        np.maximum.at(brightest, number, values)
        facts["brightest"] = brightest
    if probability is not None:
        facts["probability"] = np.bincount(number, probability.reshape(-1)[places] / 255.0, minlength=count)
    return facts


def join(
    facts: Shaped[np.ndarray, " n"],
    group: Int[np.ndarray, " n"],
    groups: int,
    *,
    minimum_voxels: float,
    path: pathlib.Path,
) -> tuple[np.ndarray, UInt64[np.ndarray, " n"]]:
    """Adds up the components of each object, and numbers the objects that are large enough.

    Args:
        facts: of the components.
        group: of each component.
        groups: how many there are.
        minimum_voxels: of an object that is kept.
        path: a file to make, for the objects.

    Returns:
        The facts of the objects 1 to M, in the order of their numbers, and the number of each component's object, 0
        where it is too small.
    """
    if groups == 0:
        return np.zeros(0, COMPONENT), np.zeros(0, np.uint64)
    joined = np.memmap(path, COMPONENT, mode="w+", shape=(groups,))
    joined["first"] = np.iinfo(np.uint64).max
    joined["low"] = np.iinfo(np.int32).max
    joined["brightest"] = -np.inf
    for start in range(0, len(facts), ROWS):
        some, to = facts[start : start + ROWS], group[start : start + ROWS]
        for name in ("voxels", "sums", "intensity", "probability"):
            np.add.at(joined[name], to, some[name])
        for name in ("first", "low"):
            np.minimum.at(joined[name], to, some[name])
        for name in ("high", "brightest"):
            np.maximum.at(joined[name], to, some[name])
    order = np.argsort(joined["first"], kind="stable")
    order = order[joined["voxels"][order] >= minimum_voxels]
    numbers = np.zeros(groups, np.uint64)
    numbers[order] = np.arange(1, len(order) + 1, dtype=np.uint64)
    kept = np.memmap(path.with_suffix(".kept"), COMPONENT, mode="w+", shape=(max(1, len(order)),))[: len(order)]
    for start in range(0, len(order), ROWS):
        kept[start : start + ROWS] = joined[order[start : start + ROWS]]
    return kept, numbers[group]


def write_objects(
    root: pathlib.Path,
    objects: Shaped[np.ndarray, " n"],
    *,
    shape: tuple[int, int, int],
    voxel_size_um: tuple[float, float, float] | None,
    origin: tuple[int, int, int],
    has_intensity: bool,
    has_probability: bool,
) -> list[str]:
    """Writes a row for each object as CSV, and as Parquet where pyarrow is installed.

    Coordinates in voxels count from the result's first voxel, those in µm from the first voxel of the file that it
    was made of. What is not known is empty.

    Returns:
        The names of the files.
    """
    chunks = list(range(0, max(1, len(objects)), ROWS))

    def columns() -> Iterator[dict[str, np.ndarray]]:
        for start in chunks:
            some = np.asarray(objects[start : start + ROWS])
            yield _columns(some, start, shape, voxel_size_um, origin, has_intensity, has_probability)

    temporary = root / (TABLE + TEMPORARY)
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for number, some in enumerate(columns()):
            if number == 0:
                writer.writerow(some)
            writer.writerows(zip(*(_texts(values) for values in some.values()), strict=True))
    os.replace(temporary, root / TABLE)
    if importlib.util.find_spec("pyarrow") is None:
        return [TABLE]
    _write_parquet(root / PARQUET, columns())
    return [TABLE, PARQUET]


def _columns(
    some: np.ndarray,
    start: int,
    shape: tuple[int, int, int],
    size: tuple[float, float, float] | None,
    origin: tuple[int, int, int],
    has_intensity: bool,
    has_probability: bool,
) -> dict[str, np.ndarray]:
    voxels = some["voxels"]
    unknown = np.full(len(some), np.nan)
    centroid = some["sums"] / voxels[:, None]
    table: dict[str, Any] = {"id": np.arange(start + 1, start + len(some) + 1, dtype=np.uint64)}
    table |= {f"centroid_{name}": centroid[:, axis] for axis, name in enumerate("zyx")}
    for axis, name in enumerate("zyx"):
        table[f"centroid_{name}_um"] = unknown if size is None else (centroid[:, axis] + origin[axis]) * size[axis]
    table["voxels"] = voxels
    table["volume_um3"] = unknown if size is None else voxels * float(np.prod(size))
    for axis, name in enumerate("zyx"):
        table[f"box_{name}0"], table[f"box_{name}1"] = some["low"][:, axis], some["high"][:, axis]
    table["mean_intensity"] = some["intensity"] / voxels if has_intensity else unknown
    table["max_intensity"] = some["brightest"] if has_intensity else unknown
    table["mean_probability"] = some["probability"] / voxels if has_probability else unknown
    touches = (some["low"] == 0).any(axis=1) | (some["high"] == np.array(shape)).any(axis=1)
    table["touches_border"] = touches.astype(np.uint8)
    return table


def _texts(values: np.ndarray) -> list[str]:
    if values.dtype.kind != "f":
        return [str(value) for value in values.tolist()]
    return ["" if value != value else f"{value:.9g}" for value in values.tolist()]


def _write_parquet(path: pathlib.Path, tables: Iterator[dict[str, np.ndarray]]) -> None:
    import pyarrow
    import pyarrow.parquet

    temporary = path.with_name(path.name + TEMPORARY)
    writer = None
    for columns in tables:
        table = pyarrow.table({name: pyarrow.array(values, from_pandas=True) for name, values in columns.items()})
        writer = writer or pyarrow.parquet.ParquetWriter(temporary, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
        os.replace(temporary, path)
