"""Which files to predict on, and the truth that lies beside them."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from lsmfm_jax.data.mask_folders import masks_in
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.store.layouts import SUFFIXES, stem
from lsmfm_jax.tasks.declaration import FinetuneTask
from lsmfm_jax.tasks.finetune_tasks import finetune_task
from lsmfm_jax.volumes.names import NO_IMAGES

BLURRED = "_blurred"


class PredictionError(LsmfmError, ValueError):
    """A prediction cannot be made or written; the message names the file, the reason and what to do."""


class Case(NamedTuple):
    """One file to predict on.

    Attributes:
        name: of what is written for it; the file's name without suffix, and without `_blurred`.
        path: the image.
        truth: the label or the sharp volume, if there is one.
    """

    name: str
    path: pathlib.Path
    truth: pathlib.Path | None


def find_cases(
    inputs: Sequence[pathlib.Path], *, task: str, label_dir: pathlib.Path | None = None
) -> tuple[list[Case], list[pathlib.Path]]:
    """The files that were named and those in folders that were named, sorted within each folder.

    In a folder, labels, masks and earlier predictions are left out; where the task's images end in `_blurred`,
    `<name>` is the truth of such a file, else `<name>_blurred` is left out. The truth is `<name>` with the task's
    ending beside the file, or the file of that name in `label_dir`.

    Returns:
        The cases, and the files of the folders that were left out.

    Raises:
        PredictionError: a path that is not there, a folder without an image, two files of one name, or a file
            without its label in `label_dir`.
        MaskFolderError: `label_dir` has no labels.
    """
    declared = finetune_task(task)
    files: list[pathlib.Path] = []
    left_out: list[pathlib.Path] = []
    for path in inputs:
        if path.is_dir():
            images, others = _images_in(path, declared)
            files += images
            left_out += others
        elif path.is_file():
            files.append(path)
        else:
            raise PredictionError(f"{path}: no such file or folder; name image files or folders of them")
    labels = None
    if label_dir is not None:
        labels = _sharp_volumes(label_dir) if declared.truth_ending == "" else masks_in(label_dir)[0]
    cases: dict[str, Case] = {}
    for path in files:
        name = stem(path).removesuffix(declared.image_ending)
        if name in cases:
            raise PredictionError(
                f"{cases[name].path} and {path} would both write {name}_*: predict on them one by one, into two folders"
            )
        cases[name] = Case(name, path, _truth(path, name, declared, labels, label_dir))
    return list(cases.values()), left_out


def file_beside(folder: pathlib.Path, name: str, ending: str) -> pathlib.Path | None:
    """Give the volume `<name><ending>` of a folder, in any format and whatever the case of its endings, or None."""
    exact = [folder / f"{name}{ending}{suffix}" for suffix in SUFFIXES]
    found = next((path for path in exact if path.is_file()), None)
    if found is not None:
        return found
    for path in sorted(folder.iterdir()):
        own = stem(path)
        fits = own != path.name and own.startswith(name) and own[len(name) :].lower() == ending.lower()
        if fits and path.is_file():
            return path
    return None


def _images_in(folder: pathlib.Path, task: FinetuneTask) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    files = sorted(p for p in folder.iterdir() if p.name.lower().endswith(SUFFIXES) and p.name[0] != ".")
    names = {stem(path) for path in files}

    def is_image(path: pathlib.Path) -> bool:
        name = stem(path)
        if name.lower().endswith(NO_IMAGES):
            return False
        if task.image_ending:
            return f"{name}{task.image_ending}" not in names
        return not name.endswith(BLURRED)

    images = [path for path in files if is_image(path)]
    if not images:
        raise PredictionError(
            f"{folder}: none of its {len(files)} volumes is an image; images end in {', '.join(SUFFIXES)}, and not in "
            f"{', '.join(NO_IMAGES)}"
        )
    return images, [path for path in files if path not in images]


def _sharp_volumes(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    if not folder.is_dir():
        raise PredictionError(f"--label-dir {folder}: not a folder; name the one that holds the sharp volumes")
    files = sorted(path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES))
    return {stem(path): path for path in files if not stem(path).endswith((BLURRED, *NO_IMAGES))}


def _truth(
    path: pathlib.Path,
    name: str,
    task: FinetuneTask,
    labels: dict[str, pathlib.Path] | None,
    label_dir: pathlib.Path | None,
) -> pathlib.Path | None:
    if labels is not None:
        if name not in labels:
            raise PredictionError(
                f"{path}: no label of {name!r} in {label_dir}; add it, or leave the image or --label-dir out"
            )
        return labels[name]
    if task.truth_ending is None:
        return None
    # The sharp volume of `<name>_blurred` is `<name>`; a file that is not called blurred has none.
    wanted = f"{name}{task.truth_ending}"
    if stem(path) == wanted:
        return None
    return file_beside(path.parent, name, task.truth_ending)
