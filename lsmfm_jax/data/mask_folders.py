"""The masks or label images of two folders, found, paired by name and read."""

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from lsmfm_jax.data.label_grid import on_grid_of
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.volumes.names import MASK_ENDINGS, SUFFIXES, stem, without_ending
from lsmfm_jax.volumes.names import volume_of as volume_of
from lsmfm_jax.volumes.read import read_single

KINDS = ("auto", "mask", "labels")

Volume = Num[np.ndarray, "z y x"]


class MaskFolderError(LsmfmError, ValueError):
    """Two folders cannot be compared: which file, why, and what to do about it."""


class MaskPair(NamedTuple):
    """The prediction and the label of one patch."""

    patch: str
    prediction: pathlib.Path
    label: pathlib.Path


def masks_in(
    folder: str | pathlib.Path, *, pattern: str | None = None
) -> tuple[dict[str, pathlib.Path], list[pathlib.Path]]:
    """The masks of a folder by the name of their patch, and the files left out because they are none.

    Args:
        folder: where they are.
        pattern: regular expression with a group that is the patch, searched in a file's name without and then with
            its suffix; names that it does not match are read by their ending.

    Raises:
        MaskFolderError: no such folder, no volume in it, two masks for one patch, or a pattern without a group.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise MaskFolderError(f"{folder} is not a folder: give the folder that holds the files to compare")
    files = sorted(p for p in folder.iterdir() if p.name.lower().endswith(SUFFIXES) and p.name[0] != ".")
    if not files:
        raise MaskFolderError(f"{folder} holds no volume: put files there that end in {', '.join(SUFFIXES)}")
    marked = _marked(files, pattern)
    masks: dict[str, pathlib.Path] = {}
    for path in marked or files:
        patch = _by_pattern(path, pattern) or _patch_of(path)
        if patch in masks:
            raise MaskFolderError(
                f"{masks[patch]} and {path} are both masks of {patch!r}: keep one of them in the folder"
            )
        masks[patch] = path
    return masks, [path for path in files if path not in masks.values()]


def has_named_masks(folder: str | pathlib.Path, *, pattern: str | None = None) -> bool:
    """Whether a folder has volumes whose names say that they are masks."""
    files = [path for path in pathlib.Path(folder).iterdir() if path.name.lower().endswith(SUFFIXES)]
    return bool(_marked(files, pattern))


def _marked(files: Sequence[pathlib.Path], pattern: str | None) -> list[pathlib.Path]:
    return [path for path in files if _by_pattern(path, pattern) or _patch_of(path) != stem(path)]


def _by_pattern(path: pathlib.Path, pattern: str | None) -> str:
    """The patch that a pattern finds in the name of a file, or an empty text."""
    if pattern is None:
        return ""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise MaskFolderError(f"--pattern {pattern!r} is not a regular expression: {error}") from None
    if not expression.groups:
        raise MaskFolderError(
            f"--pattern {pattern!r} has no group: put the part that is the patch in brackets: (.+)_seg"
        )
    found = expression.search(stem(path)) or expression.search(path.name)
    return (found[1] or "") if found else ""


def _patch_of(path: pathlib.Path) -> str:
    """The name of a file without its suffix and what says that it is a mask."""
    return without_ending(stem(path))


def pair_masks(
    predictions: dict[str, pathlib.Path],
    labels: dict[str, pathlib.Path],
    *,
    pred_dir: str | pathlib.Path,
    label_dir: str | pathlib.Path,
) -> list[MaskPair]:
    """Pairs by patch name; what has no partner is an error that names it."""
    problems = [
        f"{len(alone)} of {folder} have no {partner}: {', '.join(alone)}"
        for alone, folder, partner in (
            ([path.name for patch, path in predictions.items() if patch not in labels], pred_dir, "label"),
            (
                [path.name for patch, path in labels.items() if patch not in predictions],
                label_dir,
                "prediction",
            ),
        )
        if alone
    ]
    if problems:
        endings = ", ".join(MASK_ENDINGS)
        raise MaskFolderError(
            f"{'; '.join(problems)}. A pair has the same name but for {endings} and the suffix: rename them, "
            "or name the part that is the patch with --pattern"
        )
    return [MaskPair(patch, predictions[patch], labels[patch]) for patch in sorted(labels)]


def read_pair(pair: MaskPair) -> tuple[Volume, Volume]:
    """Read a prediction and its label, the prediction brought to the label's orientation.

    Raises:
        MaskFolderError: if their shapes differ.
        LabelGridError: if they do not lie on one grid, by their affines.
        VolumeError: if a file cannot be read as one volume.
    """
    prediction, info = read_single(pair.prediction, mask=True)
    truth, truth_info = read_single(pair.label, mask=True)
    prediction = on_grid_of(prediction, info, like=truth_info, like_shape=truth.shape)
    if prediction.shape != truth.shape:
        raise MaskFolderError(
            f"{pair.prediction} has the shape {prediction.shape}, {pair.label} {truth.shape} (ZYX): "
            "predict on the patch as it was labelled; TIFF and .npy arrays are taken as Z, Y, X"
        )
    return prediction, truth


def read_mask(path: pathlib.Path) -> Volume:
    """Read one mask or label image.

    Raises:
        VolumeError: if it cannot be read as one volume.
    """
    return read_single(path, mask=True)[0]


def kind_of(paths: Sequence[pathlib.Path], wanted: str, *, ignore: Sequence[int] = ()) -> str:
    """Say whether files are masks or label images: one answer, as a label image may hold a single label.

    Values to `ignore` are not looked at.
    """
    if wanted != "auto":
        return wanted
    return "labels" if any(_has_labels(read_mask(path), ignore) for path in paths) else "mask"


def _has_labels(volume: Volume, ignore: Sequence[int]) -> bool:
    foreground = volume[(volume > 0) & ~np.isin(volume, ignore)]
    if foreground.size == 0 or (foreground == foreground[0]).all():
        return False
    return bool((np.rint(foreground) == foreground).all())
