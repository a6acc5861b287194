"""What is made of a result when all its shards are done: objects and their table, pyramids, files, a report."""

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lsmfm_jax.files import canonical_json, replace_file
from lsmfm_jax.predict.brain_report import Findings, write_brain_report
from lsmfm_jax.predict.brain_settings import images_of, narrow_dtype
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.instances import Box, Boxes, Components, LabelBlock, find_components, plain_components
from lsmfm_jax.predict.memory import give_back
from lsmfm_jax.predict.objects import join, write_objects
from lsmfm_jax.predict.output import (
    INSTANCES,
    MASK,
    PROBABILITY,
    Array,
    Geometry,
    build_pyramid,
    describe,
    make_geometry,
)
from lsmfm_jax.predict.progress import Progress, duration
from lsmfm_jax.predict.shards import FOLDER, Record, clear, damage, read_mark, read_record
from lsmfm_jax.predict.single_file import mask_of, write_single_file
from lsmfm_jax.predict.splitting import split_components
from lsmfm_jax.volumes.lazy import LazyVolume
from lsmfm_jax.volumes.open import open_volume
from lsmfm_jax.volumes.read import VolumeError

SUMMARY = "summary.json"
# Blocks that are labelled at a time, and shards of objects: what is needed for a voxel of them is far more than one.
BLOCK_SIDE = 128


@dataclasses.dataclass(frozen=True)
class Merging:
    """How objects are made of a mask.

    Attributes:
        no_objects: none are.
        connectivity: 6, 18 or 26.
        minimum_um3: volume of the smallest object that is kept.
        split_touching: cut touching cells apart.
        split_um: least distance of the middles of two cells.
        also: "nifti" or "tiff": the mask as a file beside the result; None: no file.
    """

    no_objects: bool = False
    connectivity: int = 26
    minimum_um3: float = 0.0
    split_touching: bool = False
    split_um: float = 5.0
    also: str | None = None

    def __post_init__(self) -> None:
        if self.minimum_um3 < 0:
            raise PredictionError(f"--minimum-um3 {self.minimum_um3}: 0 or more is needed")
        if self.split_um <= 0:
            raise PredictionError(f"--split-um {self.split_um}: more than 0 is needed")


def merge(
    root: pathlib.Path,
    *,
    changes: Mapping[str, Any] | None = None,
    max_ram_bytes: int = 8 * 2**30,
    print_line: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Completes a result of which all shards are done; doing it again replaces what it made.

    Args:
        root: the result.
        changes: fields of `Merging` that are to differ from those that the result was made with.
        max_ram_bytes: the most that a file beside the result may need.
        print_line: prints a line.

    Returns:
        What `summary.json` holds.

    Raises:
        PredictionError: no result, or shards that are not done.
    """
    give_back()
    record = read_record(root)
    merging = Merging(**{**record.merging, **(changes or {})})
    marks = _marks(root, record)
    volume = _source(record, print_line)
    images = images_of(record.settings["task"], record.settings["outputs"] or (), _type_of(record))
    size = record.source["voxel_size_um"]
    origin = tuple(start for start, _ in record.source["box"])
    geometry = make_geometry(record.plan.shape, None if size is None else tuple(size), origin)
    seconds: dict[str, float] = {}
    objects, with_objects = None, record.settings["task"] == "segment" and not merging.no_objects
    if with_objects:
        images = [*images, INSTANCES]
    describe(root, images, geometry=geometry, shard=record.plan.shard, chunk=record.plan.chunk)
    with tempfile.TemporaryDirectory(dir=root / FOLDER, prefix="merging") as scratch:
        if with_objects:
            began = time.monotonic()
            objects = _Objects(root, record, merging, geometry, volume, marks, pathlib.Path(scratch), print_line).make()
            seconds["objects"] = time.monotonic() - began
        began = time.monotonic()
        voxels = sum(int(np.prod(shape)) for shape in geometry.shapes[1:]) * len(images)
        progress = Progress("pyramid", voxels, print_line=print_line)
        for image in images:
            build_pyramid(root, image, geometry, progress=progress.add)
        progress.end()
        seconds["pyramid"] = time.monotonic() - began
        if merging.also is not None:
            image = MASK if record.settings["task"] == "segment" else images[0]
            print_line(f"written: {write_single_file(root, record, image, merging.also, volume, max_ram_bytes)}")
        summary = _summary(record, merging, marks, objects, seconds)
        replace_file(root / SUMMARY, canonical_json(summary, indent=1))
        report = write_brain_report(root, record, Findings(summary, marks, images, objects, volume))
    counted = "" if objects is None else f"{len(objects)} objects; "
    print_line(f"{counted}{', '.join(f'{name} {duration(value)}' for name, value in seconds.items())}; {report}")
    return summary


def _marks(root: pathlib.Path, record: Record) -> dict[tuple[int, int, int], dict[str, Any]]:
    """The marks of all shards, whose files are read and compared."""
    marks, missing, damaged = {}, [], []
    for shard in record.plan.shards():
        mark = read_mark(root, shard)
        if mark is None:
            missing.append(shard)
            continue
        wrong = damage(root, shard, mark)
        if wrong:
            damaged.append(wrong)
        marks[shard] = mark
    if missing or damaged:
        what = damaged[0] if damaged else f"shard {'.'.join(map(str, missing[0]))}"
        raise PredictionError(
            f"{root}: {len(missing)} of {len(marks) + len(missing)} shards are not done and {len(damaged)} are "
            f"damaged, such as {what}; start the same lsmfm predict again (each --part I/N that did not end), then "
            "merge"
        )
    return marks


def _type_of(record: Record) -> str:
    return narrow_dtype(np.dtype(record.settings["input_type"])).name


def _source(record: Record, print_line: Callable[[str], None]) -> LazyVolume | None:
    source = record.source
    z, y, x = (slice(start, stop) for start, stop in source["box"])
    try:
        return open_volume(source["path"], channel=source["channel"], level=source["level"], box=(z, y, x))
    except VolumeError as error:
        print_line(f"intensities are left out, the input cannot be read: {error}")
        return None


@dataclasses.dataclass(eq=False)
class _Objects:
    """The objects of a result, their image and their table."""

    root: pathlib.Path
    record: Record
    merging: Merging
    geometry: Geometry
    volume: LazyVolume | None
    marks: dict[tuple[int, int, int], dict[str, Any]]
    scratch: pathlib.Path
    print_line: Callable[[str], None]

    def make(self) -> np.ndarray:
        plan, merging = self.record.plan, self.merging
        shape, size = plan.shape, self.geometry.voxel_size_um
        outputs = self.record.settings["outputs"]
        label = self._label(mask_of(self.root, self.record))
        # Blocks lie whole in shards, so that a shard can be written from its blocks.
        z, y, x = (BLOCK_SIDE if length % BLOCK_SIDE == 0 else length for length in plan.shard)
        progress = Progress("objects", int(np.prod(shape)), print_line=self.print_line)
        components = find_components(
            label,
            shape,
            side=(z, y, x),
            connectivity=merging.connectivity,
            scratch=self.scratch,
            is_empty=self._is_empty,
            intensity=self.volume,
            probability=Array(self.root, PROBABILITY) if PROBABILITY.name in outputs else None,
            progress=progress.add,
        )
        progress.end()
        objects, numbers = join(
            components.facts,
            components.group,
            components.groups,
            minimum_voxels=self._minimum_voxels(),
            path=self.scratch / "objects.bin",
        )
        self._write(label, components, numbers, (z, y, x))
        write_objects(
            self.root,
            objects,
            shape=shape,
            voxel_size_um=size,
            origin=tuple(start for start, _ in self.record.source["box"]),
            has_intensity=self.volume is not None,
            has_probability=PROBABILITY.name in outputs,
        )
        return objects

    def _label(self, mask: Boxes) -> LabelBlock:
        if not self.merging.split_touching:
            return plain_components(mask, connectivity=self.merging.connectivity)
        return split_components(
            mask,
            connectivity=self.merging.connectivity,
            voxel_size_um=self.geometry.voxel_size_um,
            distance_um=self.merging.split_um,
        )

    def _minimum_voxels(self) -> float:
        if self.merging.minimum_um3 == 0:
            return 1.0
        if self.geometry.voxel_size_um is None:
            raise PredictionError(
                f"--minimum-um3 {self.merging.minimum_um3:g}: the voxel size of {self.record.source['path']} is "
                "unknown; write it into the volume's metadata, or leave the option out"
            )
        # A little less, for a volume that is a whole number of voxels but for rounding.
        return self.merging.minimum_um3 / float(np.prod(self.geometry.voxel_size_um)) * (1 - 1e-9)

    def _is_empty(self, box: Box) -> bool:
        z, y, x = (one.start // side for one, side in zip(box, self.record.plan.shard, strict=True))
        return MASK.name in self.record.settings["outputs"] and self.marks[z, y, x]["foreground"] == 0

    def _write(
        self, label: LabelBlock, components: Components, numbers: np.ndarray, side: tuple[int, int, int]
    ) -> None:
        """Labels all blocks again, which gives the same labels, and writes them as numbers of objects."""
        array = Array(self.root, INSTANCES)
        shards = self.record.plan.shards()
        progress = Progress("instances", int(np.prod(self.record.plan.shape)), print_line=self.print_line)
        by_shard: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
        for corner in components.offsets:
            shard = tuple(start // length for start, length in zip(corner, self.record.plan.shard, strict=True))
            by_shard.setdefault(shard, []).append(corner)
        for shard in shards:
            clear(self.root, [INSTANCES], shard, mark=False)
            box = self.record.plan.shard_box(shard)
            values = np.zeros([one.stop - one.start for one in box], np.uint64)
            for corner in by_shard.get(shard, ()):
                ends = [min(start + length, one.stop) for start, length, one in zip(corner, side, box, strict=True)]
                z, y, x = (slice(start, end) for start, end in zip(corner, ends, strict=True))
                first, count = components.offsets[corner]
                lookup = np.concatenate([np.zeros(1, np.uint64), numbers[first : first + count]])
                inside = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip((z, y, x), box, strict=True))
                values[inside] = lookup[label((z, y, x))[0]]
            if shard in by_shard:
                array.write(box, values)
            progress.add(values.size)
        progress.end()


def _summary(
    record: Record,
    merging: Merging,
    marks: dict[tuple[int, int, int], dict[str, Any]],
    objects: np.ndarray | None,
    seconds: dict[str, float],
) -> dict[str, Any]:
    stages = {name: sum(mark["seconds"].get(name, 0.0) for mark in marks.values()) for name in ("read", "write", "all")}
    voxels = int(np.prod(record.plan.shape))
    return {
        "task": record.settings["task"],
        "input": record.source["path"],
        "shape": list(record.plan.shape),
        "voxel_size_um": record.source["voxel_size_um"],
        "shards": len(marks),
        "blank_shards": sum(bool(mark["blank"]) for mark in marks.values()),
        "foreground_frac": sum(mark["foreground"] for mark in marks.values()) / voxels,
        "objects": None if objects is None else len(objects),
        "merging": dataclasses.asdict(merging),
        "process_seconds": {
            "predicting": stages["all"],
            "of it reading": stages["read"],
            "writing": stages["write"],
            **seconds,
        },
    }
