"""Prediction of one volume of any size into an OME-Zarr, in bounded memory, resumable, by one process or many."""

import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lsmfm_jax.predict.blocks import make_grid, make_layers
from lsmfm_jax.predict.brain_settings import BrainSettings, images_of, narrow_dtype
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.memory import give_back
from lsmfm_jax.predict.network import Predictor
from lsmfm_jax.predict.output import describe, make_geometry
from lsmfm_jax.predict.part import Part
from lsmfm_jax.predict.plan import BASE_BYTES, Plan, bytes_text, make_plan
from lsmfm_jax.predict.progress import Progress
from lsmfm_jax.predict.shards import (
    FOLDER,
    Record,
    check_settings,
    has_record,
    known_statistics,
    read_record,
    sample_checksum,
    write_record,
)
from lsmfm_jax.predict.statistics import VolumeStatistics
from lsmfm_jax.predict.tissue import TissueMask
from lsmfm_jax.scale import survey_bytes
from lsmfm_jax.volumes.lazy import LazyVolume, box_text
from lsmfm_jax.volumes.voxel_sizes import other_size

SUFFIX = ".zarr"


def plan_brain(predictor: Predictor, volume: LazyVolume, settings: BrainSettings) -> Plan:
    """How a volume would be cut; see `make_plan`.

    Raises:
        PredictionError: a run that gives no map, a box outside of the volume, or too little memory.
    """
    if predictor.task == "classify":
        raise PredictionError(
            f"{predictor.origin}: a run of task 'classify' gives classes of patches and no map of a volume; cut "
            "patches, and predict on their folder"
        )
    dtype = narrow_dtype(volume.dtype)
    images = images_of(predictor.task, settings.outputs, dtype.name)
    box = settings.inside(volume.shape)
    z, y, x = (one.stop - one.start for one in box)
    measuring, levels = survey_bytes(predictor.scale, volume.shape, volume.voxel_size_um)
    if measuring and BASE_BYTES + measuring > settings.max_ram_bytes:
        raise PredictionError(
            f"--max-ram {bytes_text(settings.max_ram_bytes)}: measuring the background of this volume (scale "
            f"{predictor.scale.name!r}) needs {bytes_text(BASE_BYTES + measuring)}; allow that much, or take a coarser "
            "--level of the volume"
        )
    return make_plan(
        (z, y, x),
        window=predictor.window,
        itemsize=volume.dtype.itemsize,
        chunk_rows=int(volume.chunk[0]),
        output_bytes=sum(np.dtype(image.dtype).itemsize for image in images),
        network_bytes=2 * predictor.temporary_bytes(settings.batch_size) + levels,
        max_ram_bytes=settings.max_ram_bytes,
        parts=settings.part[1],
        shard=settings.shard,
        origin=(box[0].start, box[1].start, box[2].start),
        volume_shape=volume.shape,
    )


def plan_lines(predictor: Predictor, plan: Plan, volume: LazyVolume, settings: BrainSettings) -> list[str]:
    """The plan for people, and what speaks against it."""
    grid = make_grid(volume.shape, window=plan.window, overlap_frac=settings.overlap_frac)
    tasks = [plan.in_volume(task) for task in plan.tasks()]
    computed = sum(len(layer.windows) for task in tasks for layer in make_layers(grid, task, None))
    whole = tuple(slice(0, size) for size in plan.shape)
    distinct = sum(len(layer.windows) for layer in make_layers(grid, plan.in_volume(whole), None))
    size = volume.voxel_size_um
    um = "unknown" if size is None else " x ".join(f"{side:g}" for side in size) + f" um, {volume.voxel_size_source}"
    shards = len(plan.shards())
    told = other_size(size, volume.voxel_size_source, predictor.record.get("voxel_sizes_um", []))
    part = "" if settings.box is None else f"; of it the box {box_text(settings.inside(volume.shape))}"
    return [
        f"input: {_sides(volume.shape)} voxels (ZYX) of {volume.dtype}, voxel size {um}{part}",
        f"output: shards of {_sides(plan.shard)} voxels, {shards} in all, in chunks of {_sides(plan.chunk)}",
        f"work: {computed} windows of {_sides(plan.window)}, {computed / distinct - 1:.0%} of them twice because tasks "
        f"meet; tasks of up to {_sides(plan.task)} voxels, {len(tasks)} in all",
        f"memory: about {bytes_text(plan.needed_bytes)} of the {bytes_text(settings.max_ram_bytes)} of --max-ram",
        *([f"{volume.path}: {told}"] if told else []),
    ]


def _sides(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))


def predict_brain(
    predictor: Predictor,
    volume: LazyVolume,
    out: pathlib.Path,
    *,
    settings: BrainSettings,
    tissue: TissueMask | None = None,
    merging: dict[str, Any] | None = None,
    levels_from: pathlib.Path | None = None,
    overwrite: bool = False,
    prepare_only: bool = False,
    print_line: Callable[[str], None] = print,
) -> Record:
    """Predicts a volume, or one part of it, into a new or unfinished result.

    Shards that are complete are left alone, so the same command continues after any end of the one before.

    Args:
        predictor: of a segmentation or a deblurring.
        volume: to predict, all of it or `settings.box`; it is measured as a whole, and windows see what is around
            the box.
        out: folder of the result, an OME-Zarr.
        settings: how.
        tissue: where in the whole volume to predict; None: everywhere.
        merging: recorded for `merge`.
        levels_from: an earlier result of the same volume, that was measured then and is not measured again.
        overwrite: remove a result that is there.
        prepare_only: measure the volume and make the result, so that parts that start together need not.
        print_line: prints a line.

    Raises:
        PredictionError: the folder holds something else, or a result of other settings, or `levels_from` is of
            another volume.
    """
    plan = plan_brain(predictor, volume, settings)
    if overwrite and has_record(out):
        shutil.rmtree(out)
    images = images_of(predictor.task, settings.outputs, narrow_dtype(volume.dtype).name)
    described = _described(predictor, volume, settings, tissue)
    if not has_record(out):
        _check_folder(out)
        for line in plan_lines(predictor, plan, volume, settings):
            print_line(line)
        # Before anything is made, as it may be refused.
        known = None if levels_from is None else known_statistics(levels_from, described)
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        source = _source(volume, plan)
        geometry = make_geometry(plan.shape, volume.voxel_size_um, tuple(start for start, _ in source["box"]))
        describe(out, images, geometry=geometry, shard=plan.shard, chunk=plan.chunk)
        write_record(
            out, Record(described, source, plan, known or _measured(predictor, volume, print_line), merging or {})
        )
    record = read_record(out)
    check_settings(out, record.settings, described)
    if record.plan.needed_bytes > settings.max_ram_bytes:
        raise PredictionError(
            f"--max-ram {bytes_text(settings.max_ram_bytes)}: {out} was planned with more and needs "
            f"{bytes_text(record.plan.needed_bytes)}; allow that much, or start anew with --overwrite"
        )
    if not prepare_only:
        Part(predictor, volume, out, settings, tissue, record, images, print_line).run()
    return record


def _measured(predictor: Predictor, volume: LazyVolume, print_line: Callable[[str], None]) -> VolumeStatistics:
    progress = Progress("measuring", int(np.prod(volume.shape)), print_line=print_line)
    statistics = predictor.measure(volume, progress=progress.add)
    progress.end()
    give_back()
    return statistics


def _check_folder(out: pathlib.Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / FOLDER).is_dir())):
        raise PredictionError(f"{out}: there already, and not made by lsmfm predict; name a new --out")
    if out.suffix != SUFFIX:
        raise PredictionError(f"--out {out}: a name that ends in .ome.zarr is needed for a volume")


def _described(
    predictor: Predictor, volume: LazyVolume, settings: BrainSettings, tissue: TissueMask | None
) -> dict[str, Any]:
    return {
        "weights": predictor.fingerprint,
        "task": predictor.task,
        "window": list(predictor.window),
        "flips": settings.flips,
        "overlap": settings.overlap_frac,
        "threshold": settings.threshold if predictor.task == "segment" else None,
        "batch": settings.batch_size,
        "outputs": sorted(settings.outputs) if predictor.task == "segment" else None,
        "scale": predictor.scale.record(),
        "skip_blank": settings.skip_blank,
        "blank_below": settings.blank_below,
        "shard": None if settings.shard is None else list(settings.shard),
        "mask": None if tissue is None else tissue.checksum(),
        "input_shape": list(volume.shape),
        "input_type": str(volume.dtype),
        "input_channel": volume.channel,
        "input_level": volume.level,
        "input_origin": list(volume.origin),
        "input_content": sample_checksum(volume),
        # None, as in results that were made before there were these keys.
        "box": None if settings.box is None else box_text(settings.inside(volume.shape)),
        "xla": None if predictor.xla == "default" else predictor.xla,
    }


def _source(volume: LazyVolume, plan: Plan) -> dict[str, Any]:
    size = volume.voxel_size_um
    return {
        # Absolute, since merging may start elsewhere; URLs stay as they are.
        "path": volume.path if "://" in volume.path else str(pathlib.Path(volume.path).absolute()),
        "channel": volume.channel if volume.channels > 1 else None,
        "level": volume.level,
        "box": [
            [start + first, start + first + side]
            for start, first, side in zip(volume.origin, plan.origin, plan.shape, strict=True)
        ],
        "voxel_size_um": None if size is None else list(size),
        "voxel_size_source": volume.voxel_size_source,
    }
