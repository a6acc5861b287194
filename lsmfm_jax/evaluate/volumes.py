"""Judging one volume of any size against another: masks, label images, results of `lsmfm predict`, tables of points.

Both are read block by block, and the figures are those that the whole volumes have. What needs them whole (distances of
surfaces, centre lines) is computed where they fit into memory, and left out by name where they do not.
"""

import math
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from lsmfm_jax.data.labels import LabelValues
from lsmfm_jax.evaluate.blocks import (
    Rolled,
    Side,
    Totals,
    block_scores,
    count,
    find_instances,
    no_instances,
)
from lsmfm_jax.evaluate.folders import finish
from lsmfm_jax.evaluate.pair import Pair, open_pair
from lsmfm_jax.evaluate.points import places_of, score_points
from lsmfm_jax.evaluate.settings import NAMES, Settings
from lsmfm_jax.evaluate.table import EMPTY, ROLLED, ROLLED_VOXELS, Evaluation, PatchScores, check_out
from lsmfm_jax.metrics.segmentation import hausdorff_95
from lsmfm_jax.metrics.topology import cl_dice
from lsmfm_jax.predict.plan import bytes_text
from lsmfm_jax.predict.progress import Progress
from lsmfm_jax.volumes.names import stem, volume_of

# Of distances and centre lines: two masks, distances in double precision, places of the nearest voxels.
WHOLE_BYTES_A_VOXEL = 64
GIB = 2**30


def evaluate_volumes(
    prediction: str | os.PathLike[str],
    label: str | os.PathLike[str],
    out_csv: str | pathlib.Path,
    *,
    values: LabelValues | None = None,
    method: str = "prediction",
    volume_pattern: str | None = None,
    max_ram_bytes: int = 8 * GIB,
    print_line: Callable[[str], None] = print,
    **how: Any,
) -> Evaluation:
    """Judge one volume against another, block by block, and write a CSV as `evaluate_folders` does.

    Args:
        prediction: a mask, probabilities or a label image in anything that `open_volume` opens; a result of `lsmfm
            predict`, of which the instances are judged (else the mask); or a CSV of points, as in `evaluate_folders`.
        label: the truth: a mask, a label image or a CSV of points.
        out_csv: the table to write; an earlier table is replaced, anything else is not.
        values: what the values of the label mean; see `evaluate_folders`.
        method: how to call the prediction in the table.
        volume_pattern: regular expression for the volume's name in that of the label.
        max_ram_bytes: what needs the whole volumes is left out where it would take more.
        print_line: prints a line.
        **how: the attributes of `Settings`.

    Raises:
        MaskFolderError: an unknown setting, two shapes or two grids, or something else under the name of the table.
        LabelError: label values without a meaning, or what is no label.
        SpreadsheetError: a table of points that cannot be read.
        VolumeError: what cannot be read as one volume.
    """
    settings, values = Settings(**how), values or LabelValues(names=NAMES)
    check_out(out_csv)
    pair = open_pair(os.fspath(prediction), os.fspath(label), settings, values)
    patch = stem(pathlib.PurePath(pair.paths[1].rstrip("/"))).removesuffix(".zarr").removesuffix(".ome")
    names = {"patch": patch, "volume": volume_of(patch, pattern=volume_pattern)}
    with tempfile.TemporaryDirectory(prefix="lsmfm-evaluate") as scratch:
        judge = _by_points if "points" in pair.kinds.values() else _by_voxels
        rows, notes = judge(
            pair, settings, {**names, "method": method}, pathlib.Path(scratch), max_ram_bytes, print_line
        )
    return finish(rows, notes, kinds=pair.kinds, settings=settings, values=values, out_csv=out_csv)


def _by_voxels(
    pair: Pair,
    settings: Settings,
    names: dict[str, str],
    scratch: pathlib.Path,
    max_ram_bytes: int,
    print_line: Callable[[str], None],
) -> tuple[list[PatchScores], list[str]]:
    """Scores of two volumes, and of an empty one and of the truth moved along X, for scale."""
    prediction, truth = pair.sides
    assert prediction is not None and truth is not None
    # As in memory, where the truth that was moved is read as a prediction.
    rolled = Side(Rolled(truth.volume, ROLLED_VOXELS), truth.is_labels, settings.threshold, truth.annotated)
    voxels = math.prod(truth.shape)
    progress = Progress("judging", 5 * voxels, print_line=print_line)
    true = find_instances(truth, pair.block, settings, scratch=scratch, progress=progress.add)
    rows = []
    for method, side in ((names["method"], prediction), (ROLLED, rolled)):
        found = find_instances(side, pair.block, settings, scratch=scratch, progress=progress.add)
        totals = count(side, truth, (found, true), pair.block, progress=progress.add)
        if totals.voxels == 0:
            raise truth.volume.nothing
        rows.append((method, block_scores(totals, found, true, settings)))
    nothing = Totals(0, totals.true, 0, totals.voxels)
    rows.insert(1, (EMPTY, block_scores(nothing, no_instances(), true, settings)))
    progress.end()
    distance = "hausdorff_95_voxels" if settings.spacing_um is None else "hausdorff_95_um"
    needed = WHOLE_BYTES_A_VOXEL * voxels
    notes = []
    if needed <= max_ram_bytes:
        masks = {names["method"]: prediction, ROLLED: rolled, EMPTY: None}
        scores = [(method, some | _whole_scores(masks[method], truth, distance, settings)) for method, some in rows]
    else:
        scores = rows
        notes.append(
            f"cl_dice and {distance} left out: they need both volumes whole, about {bytes_text(needed)}, and --max-ram "
            f"is {bytes_text(max_ram_bytes)}"
        )
    return [PatchScores(method, names["patch"], names["volume"], some) for method, some in scores], notes


def _whole_scores(side: Side | None, truth: Side, distance: str, settings: Settings) -> dict[str, float]:
    everything = tuple(slice(0, size) for size in truth.shape)
    true = truth.read(everything)
    mask = np.zeros_like(true) if side is None else side.read(everything)
    spacing = settings.spacing_um or (1.0, 1.0, 1.0)
    return {"cl_dice": cl_dice(mask, true), distance: hausdorff_95(mask, true, spacing=spacing)}


def _by_points(
    pair: Pair,
    settings: Settings,
    names: dict[str, str],
    scratch: pathlib.Path,
    max_ram_bytes: int,
    print_line: Callable[[str], None],
) -> tuple[list[PatchScores], list[str]]:
    """Detection scores, where one side is a table of points."""
    shape = next(side.shape for side in pair.sides if side is not None)
    progress = Progress("judging", math.prod(shape), print_line=print_line)
    places = []
    for path, side in zip(pair.paths, pair.sides, strict=True):
        if side is None:
            # Points are of the whole volume; those outside of a box that was predicted say nothing of it.
            there = places_of(pathlib.Path(path), settings) - np.array(pair.shift)
            places.append(there[((there > -0.5) & (there < np.array(shape) - 0.5)).all(axis=1)])
        else:
            found = find_instances(side, pair.block, settings, scratch=scratch, progress=progress.add, connected=False)
            places.append(found.centroids)
    progress.end()
    return score_points(places[0], places[1], settings, **names), []
