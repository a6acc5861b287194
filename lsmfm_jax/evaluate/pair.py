"""Two volumes (or one and a table of points) to be judged against each other: opened, and found out what they are."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Num

from lsmfm_jax.data.label_checks import check_labels
from lsmfm_jax.data.labels import LabelValues
from lsmfm_jax.data.mask_folders import MaskFolderError
from lsmfm_jax.evaluate.blocks import Side, Size, block_side
from lsmfm_jax.evaluate.folders import check_threshold, nothing_annotated, truth_of
from lsmfm_jax.evaluate.settings import Settings
from lsmfm_jax.predict.instances import Box, blocks
from lsmfm_jax.predict.output import INSTANCES, MASK
from lsmfm_jax.predict.shards import has_record, read_record
from lsmfm_jax.volumes.lazy import LazyVolume
from lsmfm_jax.volumes.open import is_volume, open_volume

# Below this number of values a volume may be one of classes, or a mask with a value to be ignored.
FEW_VALUES = 16


def are_volumes(prediction: str, label: str) -> bool:
    """Whether two paths are one volume (or table of points) each, and not two folders of files.

    Raises:
        MaskFolderError: one is and the other is not.
    """
    one, other = (_is_one(path) for path in (prediction, label))
    if one != other:
        volume, folder = (prediction, label) if one else (label, prediction)
        raise MaskFolderError(
            f"{volume} is one volume and {folder} a folder of files: name two volumes, or two folders of files with "
            "the same names"
        )
    return one


def _is_one(path: str) -> bool:
    return is_volume(path) or (_is_table(path) and pathlib.Path(path).is_file())


def _is_table(path: str) -> bool:
    return path.lower().endswith(".csv")


class Pair(NamedTuple):
    """What is compared; a side of points has no volume and no side.

    Attributes:
        paths: of the prediction and of the label.
        kinds: `mask`, `labels` or `points` of the `predictions` and of the `labels`.
        sides: both as volumes that are read by boxes.
        block: ZYX voxels to read at a time.
        shift: ZYX voxel of the label at which the prediction begins.
    """

    paths: tuple[str, str]
    kinds: dict[str, str]
    sides: tuple[Side | None, Side | None]
    block: Size
    shift: tuple[int, int, int]


def open_pair(prediction: str, label: str, settings: Settings, values: LabelValues) -> Pair:
    """Opens both sides and finds out what they are.

    Raises:
        MaskFolderError: two tables, two shapes or two grids, a result without what is to be judged, or values of the
            prediction that the threshold does not fit.
        LabelError: label values without a meaning, or what is no label.
        VolumeError: what cannot be read as one volume.
    """
    record = read_record(pathlib.Path(prediction)) if has_record(pathlib.Path(prediction)) else None
    inside = None if record is None else record.source["box"]
    path, kind = (prediction, settings.kind) if record is None else _image_of(prediction, settings.kind)
    predicted = None if _is_table(path) else open_volume(path, mask=True)
    true = None if _is_table(label) else open_volume(label, mask=True)
    if record is not None and true is not None and list(true.shape) == record.settings["input_shape"]:
        # A prediction of a box is judged by that box of the truth.
        z, y, x = (slice(start, stop) for start, stop in inside)
        true = open_volume(label, box=(z, y, x), mask=True)
    volumes = [volume for volume in (predicted, true) if volume is not None]
    if not volumes:
        raise MaskFolderError(f"{prediction} and {label} are both tables: put each into a folder, and name the folders")
    _check_grids(volumes)
    block = block_side(volumes[0].shape, [volume.chunk for volume in volumes])
    kinds = {"predictions": "points", "labels": "points"}
    sides: list[Side | None] = [None, None]
    if predicted is not None:
        largest = 0.0
        if kind == "auto" or settings.threshold > 1.0:
            found, largest = _survey(predicted, block)
            kind = found if kind == "auto" else kind
        kinds["predictions"] = kind
        check_threshold(largest, settings, kinds, source=path)
        sides[0] = Side(predicted, kind == "labels", settings.threshold)
    if true is not None:
        kind = "mask" if values.foreground and settings.label_kind == "auto" else settings.label_kind
        if settings.label_kind == "auto":
            found, _ = _survey(true, block, values=values, source=label)
            kind = found if kind == "auto" else kind
        kinds["labels"] = kind
        truth = _Truth(true, values, kind, label)
        sides[1] = Side(truth, kind == "labels", annotated=truth.annotated)
        if sides[0] is not None:
            sides[0] = dataclasses.replace(sides[0], annotated=truth.annotated)
    z, y, x = (start for start, _ in inside or [(0, 0)] * 3)
    return Pair((path, label), kinds, (sides[0], sides[1]), block, (z, y, x))


def _image_of(result: str, kind: str) -> tuple[str, str]:
    """What is judged of a result of `lsmfm predict`, and what it is."""
    there = [image for image in (INSTANCES, MASK) if (pathlib.Path(result) / image.group).is_dir()]
    wanted = {"mask": [MASK], "labels": [INSTANCES]}.get(kind, [INSTANCES, MASK])
    image = next((image for image in wanted if image in there), None)
    if image is None:
        raise MaskFolderError(
            f"{result}: it has no {' and no '.join(image.group for image in wanted)}; predict with --outputs mask, and "
            "complete it with lsmfm predict --merge"
        )
    return str(pathlib.Path(result) / image.group), "labels" if image is INSTANCES else "mask"


def _check_grids(volumes: Sequence[LazyVolume]) -> None:
    """Refuses two volumes that do not lie voxel on voxel, as far as their files say."""
    one, other = volumes[0], volumes[-1]
    if one.shape != other.shape:
        raise MaskFolderError(
            f"{one.path} has the shape {one.shape}, {other.path} {other.shape} (ZYX): both must be of the same voxels; "
            "for a result of lsmfm predict --box name the result itself, which knows its box"
        )
    affines = [volume.affine for volume in volumes if volume.affine is not None]
    if len(affines) == 2 and not np.allclose(*affines, rtol=1e-4, atol=1e-4):
        raise MaskFolderError(
            f"{one.path} and {other.path} differ in their affines; put each into a folder and name the folders, where "
            "flips are undone, or copy the affine if the voxels agree"
        )


def _survey(
    volume: LazyVolume, block: Size, *, values: LabelValues | None = None, source: str = ""
) -> tuple[str, float]:
    """Whether a volume is a mask or a label image, and its largest value; with `values` its labels are checked."""
    # Values that are not looked at, as where files are read whole.
    left_out = () if values is None else (*values.ignore, *values.background)
    first, several, whole, largest = None, False, True, 0.0
    seen: set[float] = set()
    for box in blocks(volume.shape, block):
        tile = volume.read(box)
        if not tile.any():
            continue
        largest = max(largest, float(tile.max()))
        if values is not None:
            check_labels(tile, values, source=source)
            if len(seen) <= FEW_VALUES:
                seen.update(np.unique(tile).tolist()[: FEW_VALUES + 1])
        above = tile[tile > 0]
        above = above[~np.isin(above, left_out)] if left_out else above
        if above.size:
            first = above[0] if first is None else first
            several = several or bool((above != first).any())
            whole = whole and bool(above.dtype.kind in "iu" or (np.rint(above) == above).all())
    if values is not None and 0 < len(seen) <= FEW_VALUES:
        # Once more for all blocks together: a value to be ignored may stand in a block of its own.
        check_labels(np.array(sorted(seen), volume.dtype).reshape(1, 1, -1), values, source=source)
    return ("labels" if several and whole else "mask"), largest


class _Truth:
    """What the values of a label volume mean, by boxes; the last box is kept, as it is asked for twice."""

    def __init__(self, volume: LazyVolume, values: LabelValues, kind: str, source: str) -> None:
        self.shape, self._volume, self._of = (
            volume.shape,
            volume,
            functools.partial(truth_of, values=values, kind=kind, source=source),
        )
        self._ignores, self._last = bool(values.ignore), None
        self.nothing = nothing_annotated(values, source=source)

    def read(self, box: Box) -> Num[np.ndarray, "z y x"]:
        """The truth in a box."""
        return self._parts(box)[0]

    def annotated(self, box: Box) -> Bool[np.ndarray, "z y x"] | None:
        """Where in a box voxels count; None: everywhere."""
        return self._parts(box)[1] if self._ignores else None

    def _parts(self, box: Box) -> Any:
        if self._last is None or self._last[0] != box:
            self._last = (box, self._of(self._volume.read(box)))
        return self._last[1]
