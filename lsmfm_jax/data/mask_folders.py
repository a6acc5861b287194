"""The masks or label images of two folders, found, paired by name and read."""

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from lsmfm_jax.data.layouts import SUFFIXES, stem
from lsmfm_jax.data.volumes import read_single

KINDS = ("auto", "mask", "labels")
# Name endings that say "this file is a mask of the patch named before"; longer ones first.
MASK_ENDINGS = ("_cp_masks", "_prediction", "_labels", "_masks", "_label", "_pred", "_mask", "_seg")

Volume = Num[np.ndarray, "z y x"]


class MaskFolderError(ValueError):
    """Two folders cannot be compared: which file, why, and what to do about it."""


class MaskPair(NamedTuple):
    """The prediction and the label of one patch."""

    patch: str
    prediction: pathlib.Path
    label: pathlib.Path


def masks_in(folder: str | pathlib.Path) -> tuple[dict[str, pathlib.Path], list[pathlib.Path]]:
    """The masks of a folder by the name of their patch, and the files left out because they are none.

    Raises:
        MaskFolderError: no such folder, no volume in it, or two masks for one patch.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise MaskFolderError(f"{folder} is not a folder: give the folder that holds the files to compare")
    files = sorted(p for p in folder.iterdir() if p.name.lower().endswith(SUFFIXES) and p.name[0] != ".")
    if not files:
        raise MaskFolderError(f"{folder} holds no volume: put files there that end in {', '.join(SUFFIXES)}")
    marked = [path for path in files if _patch_of(path) != stem(path)]
    masks: dict[str, pathlib.Path] = {}
    for path in marked or files:
        patch = _patch_of(path)
        if patch in masks:
            raise MaskFolderError(
                f"{masks[patch]} and {path} are both masks of {patch!r}: keep one of them in the folder"
            )
        masks[patch] = path
    return masks, [path for path in files if path not in masks.values()]


def _patch_of(path: pathlib.Path) -> str:
    """The name of a file without its suffix and what says that it is a mask."""
    name = stem(path)
    ending = next((e for e in MASK_ENDINGS if name.lower().endswith(e) and len(name) > len(e)), "")
    return name[: len(name) - len(ending)]


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
            f"{'; '.join(problems)}. A pair has the same name but for {endings} and the suffix: rename them"
        )
    return [MaskPair(patch, predictions[patch], labels[patch]) for patch in sorted(labels)]


def read_pair(pair: MaskPair) -> tuple[Volume, Volume]:
    """Read a prediction and its label.

    Raises:
        MaskFolderError: if their shapes differ.
        VolumeError: if a file cannot be read as one volume.
    """
    prediction, truth = (_read(path) for path in (pair.prediction, pair.label))
    if prediction.shape != truth.shape:
        raise MaskFolderError(
            f"{pair.prediction} has the shape {prediction.shape}, {pair.label} {truth.shape} (ZYX): "
            "predict on the patch as it was labelled; TIFF and .npy arrays are taken as Z, Y, X"
        )
    return prediction, truth


def _read(path: pathlib.Path) -> Volume:
    return read_single(path, allow_constant=True)[0]


def kind_of(paths: Sequence[pathlib.Path], wanted: str) -> str:
    """Say whether files are masks or label images: one answer, as a label image may hold a single label."""
    if wanted != "auto":
        return wanted
    return "labels" if any(_has_labels(_read(path)) for path in paths) else "mask"


def _has_labels(volume: Volume) -> bool:
    foreground = volume[volume > 0]
    if foreground.size == 0 or (foreground == foreground[0]).all():
        return False
    return bool((np.rint(foreground) == foreground).all())


def volume_of(patch: str, *, pattern: str | None = None) -> str:
    """The volume that a patch is from, by its name.

    Without a pattern `<class>_patch_<n>_vol<m>...` gives `<class>/vol<m>`, `patchvolume_<id>_<n>` gives
    `<id>`, anything else its name without a closing number.

    Raises:
        MaskFolderError: a pattern that is no regular expression, or does not match.
    """
    if pattern is None:
        if flat := re.match(r"(.+)_patch_\d+_(vol[^_]+)", patch):
            return f"{flat[1]}/{flat[2]}"
        if selma := re.match(r"patchvolume_(\w+?)_\d+$", patch):
            return selma[1]
        return re.sub(r"[_-]?\d+$", "", patch) or patch
    try:
        match = re.search(pattern, patch)
    except re.error as error:
        raise MaskFolderError(f"volume pattern {pattern!r} is not a regular expression: {error}") from None
    if match is None:
        raise MaskFolderError(f"volume pattern {pattern!r} does not match the patch {patch!r}")
    return match[1] if match.re.groups else match[0]
