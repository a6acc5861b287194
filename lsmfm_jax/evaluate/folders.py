"""Judging a folder of masks or label images, from any tool, against a folder of labels.

`evaluate_folders` matches files by name, scores every patch, and writes a table: a row per patch, then for
each method the mean with its intervals over patches and over volumes. For scale, two methods that need no
image stand beside the predictions: an empty mask, and the truth moved by 24 voxels.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Num

from lsmfm_jax.data.label_checks import check_labels
from lsmfm_jax.data.labels import IGNORED, LabelValues, target_of
from lsmfm_jax.data.mask_folders import (
    MaskFolderError,
    MaskPair,
    has_named_masks,
    kind_of,
    masks_in,
    pair_masks,
    read_mask,
    read_pair,
    volume_of,
)
from lsmfm_jax.evaluate.points import places_in, places_of, point_files, score_points
from lsmfm_jax.evaluate.settings import NAMES, Settings
from lsmfm_jax.evaluate.table import (
    EMPTY,
    ROLLED,
    ROLLED_VOXELS,
    Evaluation,
    PatchScores,
    check_out,
    summarise,
    write_csv,
)
from lsmfm_jax.metrics.segmentation import segmentation_scores

Volume = Num[np.ndarray, "z y x"]
Mask = Bool[np.ndarray, "z y x"]


def evaluate_folders(
    pred_dir: str | pathlib.Path,
    label_dir: str | pathlib.Path,
    out_csv: str | pathlib.Path,
    *,
    values: LabelValues | None = None,
    pattern: str | None = None,
    volume_pattern: str | None = None,
    method: str = "prediction",
    **how: Any,
) -> Evaluation:
    """Judge the masks or label images of a folder against the labels of another, and write a CSV.

    Files may be NIfTI, TIFF or .npy, the two sides of a pair in different formats; arrays are Z, Y, X, NIfTI being
    transposed on reading, and brought to the label's orientation where both have an affine. A pair has the same name
    once endings such as `_label`, `_mask` and `_pred` are off. Where a folder has files with such an ending, the
    others in it are taken for images and left out.

    A folder of CSVs with the columns z, y, x (voxels) or z_um, y_um, x_um and without masks is one of points, on
    either side; then the detection scores are all there is.

    Args:
        pred_dir: what to judge: masks, probabilities, label images or points.
        label_dir: the truth: masks, label images or points.
        out_csv: the table to write; an earlier table is replaced, anything else is not.
        values: what the values of the labels mean: which are foreground (the labels are masks then, unless
            `label_kind` says otherwise), and which are of voxels that count in no metric; None: all above 0 is
            foreground.
        pattern: regular expression with a group that is the patch, for file names of other tools; where it does not
            match, the usual endings count.
        volume_pattern: regular expression whose first group, or match, in a patch's name is its volume; None for the
            rules of `volume_of`.
        method: how to call the predictions in the table.
        **how: the attributes of `Settings`.

    Raises:
        MaskFolderError: an unknown setting, an unreadable or empty folder, files without a partner, two files for one
            patch, a pair of different shapes, or something else under the name of the table.
        LabelError: label values without a meaning, or what is no label.
        LabelGridError: a prediction that does not lie on its label, by their affines.
        SpreadsheetError: a table of points that cannot be read.
        VolumeError: a file that cannot be read as one volume.
    """
    settings = Settings(**how)
    check_out(out_csv)
    values = values or LabelValues(names=NAMES)
    sides = [_side(folder, pattern) for folder in (pred_dir, label_dir)]
    pairs = pair_masks(sides[0].files, sides[1].files, pred_dir=pred_dir, label_dir=label_dir)
    kinds = _kinds(pairs, sides, settings, values)
    score = _point_scorer if "points" in kinds.values() else _volume_scorer
    rows = []
    for pair in pairs:
        names = {"patch": pair.patch, "volume": volume_of(pair.patch, pattern=volume_pattern), "method": method}
        rows += score(pair, kinds, settings, values, names)
    notes = _notes({pred_dir: sides[0].left_out, label_dir: sides[1].left_out})
    return finish(rows, notes, kinds=kinds, settings=settings, values=values, out_csv=out_csv)


def finish(
    rows: list[PatchScores],
    notes: list[str],
    *,
    kinds: dict[str, str],
    settings: Settings,
    values: LabelValues,
    out_csv: str | pathlib.Path,
) -> Evaluation:
    """Sums the rows up and writes the table."""
    shown = settings.shown() | {f"{name}_labels": tuple(of) for name, of in values.record().items() if of}
    texts = kinds | {name: _setting_text(value) for name, value in shown.items()}
    result = Evaluation(rows, summarise(rows, seed=settings.seed), texts, notes)
    write_csv(result, out_csv)
    return result


class _Side(NamedTuple):
    """The files of one side by patch, those left out, and whether they are tables of points."""

    files: dict[str, pathlib.Path]
    left_out: list[pathlib.Path]
    points: bool


def _side(folder: str | pathlib.Path, pattern: str | None) -> _Side:
    points = point_files(folder) if pathlib.Path(folder).is_dir() else {}
    if points and not has_named_masks(folder, pattern=pattern):
        return _Side(points, [], True)
    return _Side(*masks_in(folder, pattern=pattern), False)


def _kinds(
    pairs: Sequence[MaskPair], sides: Sequence[_Side], settings: Settings, values: LabelValues
) -> dict[str, str]:
    """What either side is: mask, labels or points."""
    label_kind = "mask" if values.foreground and settings.label_kind == "auto" else settings.label_kind
    predictions, labels = [pair.prediction for pair in pairs], [pair.label for pair in pairs]
    ignore = (*values.ignore, *values.background)
    return {
        "predictions": "points" if sides[0].points else kind_of(predictions, settings.kind),
        "labels": "points" if sides[1].points else kind_of(labels, label_kind, ignore=ignore),
    }


def _volume_scorer(
    pair: MaskPair, kinds: dict[str, str], settings: Settings, values: LabelValues, names: dict[str, str]
) -> list[PatchScores]:
    limits = {
        name: getattr(settings, name)
        for name in ("threshold", "connectivity", "minimum_voxels", "match_dice", "spacing_um")
    }
    score = functools.partial(
        segmentation_scores, truth_is_labels=kinds["labels"] == "labels", **limits, **settings.match
    )
    scores = [functools.partial(score, prediction_is_labels=kind == "labels") for kind in kinds.values()]
    prediction, labels = read_pair(pair)
    _check_threshold(prediction, settings, kinds, source=pair.prediction)
    truth, annotated = _truth_of(labels, settings, values, kind=kinds["labels"], source=str(pair.label))
    return score_with_scale(prediction, truth, *scores, annotated=annotated, **names)


def _point_scorer(
    pair: MaskPair, kinds: dict[str, str], settings: Settings, values: LabelValues, names: dict[str, str]
) -> list[PatchScores]:
    if kinds["predictions"] == "points":
        predicted = places_of(pair.prediction, settings)
    else:
        volume = read_mask(pair.prediction)
        _check_threshold(volume, settings, kinds, source=pair.prediction)
        predicted = places_in(volume, settings, labels=kinds["predictions"] == "labels")
    if kinds["labels"] == "points":
        return score_points(predicted, places_of(pair.label, settings), settings, **names)
    labels = read_mask(pair.label)
    truth, annotated = _truth_of(labels, settings, values, kind=kinds["labels"], source=str(pair.label))
    if annotated is not None:
        truth = np.where(annotated, truth, np.zeros((), truth.dtype))
    halved = dataclasses.replace(settings, threshold=0.5)  # of a truth, not of a prediction
    true = places_in(truth, halved, labels=kinds["labels"] == "labels")
    return score_points(predicted, true, settings, annotated=annotated, **names)


def _check_threshold(prediction: Volume, settings: Settings, kinds: dict[str, str], *, source: pathlib.Path) -> None:
    check_threshold(float(prediction.max(initial=0)), settings, kinds, source=source)


def check_threshold(largest: float, settings: Settings, kinds: dict[str, str], *, source: str | pathlib.Path) -> None:
    """Refuses a threshold above 1 for probabilities, of which nothing would be left; `largest` is theirs."""
    if kinds["predictions"] == "mask" and settings.threshold > 1.0 and 0.0 < largest <= 1.0:
        raise MaskFolderError(
            f"threshold is {settings.threshold:g}, but {source} reaches {largest:g} at most: give a number above 0, up "
            "to 1"
        )


def _truth_of(
    labels: Volume, settings: Settings, values: LabelValues, *, kind: str, source: str
) -> tuple[Volume, Mask | None]:
    """The foreground of a label file, with its instances where it has some, and where it is annotated (None: all)."""
    if settings.label_kind == "auto":
        check_labels(labels, values, source=source)
    truth, annotated = truth_of(labels, values, kind=kind, source=source)
    if annotated is not None and not annotated.any():
        raise nothing_annotated(values, source=source)
    return truth, annotated


def nothing_annotated(values: LabelValues, *, source: str) -> MaskFolderError:
    """What to say of a label file in which nothing can be judged."""
    return MaskFolderError(
        f"{source}: every voxel has a value of {values.names.ignore} {values.ignore}: nothing in it can be judged"
    )


def truth_of(labels: Volume, values: LabelValues, *, kind: str, source: str) -> tuple[Volume, Mask | None]:
    """What a part of a label file says: its foreground, or its instances, and where it is annotated (None: all)."""
    if not values.named:
        return labels, None
    target = target_of(labels, values, source=source)
    truth = (target == 1).astype(np.uint8)
    truth = truth if kind == "mask" else np.where(target == 1, labels, np.zeros((), labels.dtype))
    return truth, target != IGNORED if values.ignore else None


def _setting_text(value: float | tuple[float, ...] | None) -> str:
    if value is None:
        return "unknown"
    return " ".join(f"{part:g}" for part in (value if isinstance(value, tuple) else (value,)))


def _notes(left_out: dict[str | pathlib.Path, list[pathlib.Path]]) -> list[str]:
    return [
        f"{len(paths)} files of {folder} left out, not named as masks: {', '.join(p.name for p in paths)}"
        for folder, paths in left_out.items()
        if paths
    ]


def score_with_scale(
    prediction: Volume,
    truth: Volume,
    score: Callable[..., dict[str, float]],
    score_truth: Callable[..., dict[str, float]],
    *,
    annotated: Mask | None = None,
    patch: str,
    volume: str,
    method: str,
) -> list[PatchScores]:
    """Score a prediction, and for scale an empty one and the truth rolled along X.

    Args:
        prediction: of one patch.
        truth: of one patch.
        score: metrics of a volume of the prediction's kind against the truth.
        score_truth: metrics of a volume of the truth's kind against the truth.
        annotated: where voxels count; None for everywhere.
        patch: its name.
        volume: that it is from.
        method: name of the prediction's row.
    """
    rolled = np.roll(truth, ROLLED_VOXELS, axis=2)
    return [
        PatchScores(method, patch, volume, score(prediction, truth, annotated=annotated)),
        PatchScores(EMPTY, patch, volume, score_truth(np.zeros_like(truth), truth, annotated=annotated)),
        PatchScores(ROLLED, patch, volume, score_truth(rolled, truth, annotated=annotated)),
    ]
