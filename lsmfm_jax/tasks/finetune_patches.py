"""The labelled patches of a finetuning run: found, split, read, and recorded as the run's own."""

import collections
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from lsmfm_jax.config import ConfigError, defaults, flatten
from lsmfm_jax.data.labelled import (
    VALIDATION_FOLDERS,
    LabelledDataError,
    LabelledFile,
    Sides,
    choose_sides,
    find_labelled,
    rows_of,
    with_classes,
)
from lsmfm_jax.data.labelled_batches import (
    Blur,
    LabelledPatch,
    read_classification,
    read_deblurring,
    read_segmentation,
)
from lsmfm_jax.data.labelled_store import find_stored, is_store
from lsmfm_jax.train.checkpoint import write_json_atomically

Say = Callable[[str], None]


class Patches(NamedTuple):
    """The patches of both sides in memory, and the names of their classes (none but for classification)."""

    train: list[LabelledPatch]
    validation: list[LabelledPatch]
    classes: tuple[str, ...]


def read_patches(config: ConfigDict, folder: pathlib.Path, *, say: Say = print) -> Patches:
    """Finds, splits and reads the patches of a run, and records which they are in its `split.json`.

    A folder that has a split must get the same patches again, so a baseline sees those that the run saw.

    Args:
        config: of task `segment`, `classify` or `deblur`.
        folder: run folder.
        say: prints a line.

    Raises:
        ConfigError: no folder of patches.
        LabelledDataError: patches that cannot be used, or others than the run began with.
        VolumeError: a file cannot be read as one 3D volume.
    """
    sides = _sides(config, say=say)
    _record_split(sides, folder)
    patches = _read(config, sides)
    _tell(config, patches, say=say)
    return patches


def run_configuration(folder: pathlib.Path) -> ConfigDict:
    """The configuration that a run was trained with; keys that it does not have are at their defaults.

    Raises:
        ConfigError: the folder has none, or of another task than finetuning.
    """
    file = folder / "config.json"
    try:
        values = dict(flatten(json.loads(file.read_text())))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: no config.json there; name the --workdir of a run of lsmfm finetune") from None
    except ValueError as error:
        raise ConfigError(f"{file}: damaged: {error}; restore it from a copy") from error
    config = defaults(values.get("task", ""))
    if "folder" not in config.data:
        raise ConfigError(f"{folder}: a run of task {config.task!r}; name a run of lsmfm finetune")
    for path, _ in list(flatten(config)):
        if path in values:
            place, _, name = path.rpartition(".")
            parent = config
            for key in filter(None, place.split(".")):
                parent = parent[key]
            parent[name] = tuple(values[path]) if isinstance(values[path], list) else values[path]
    return config


def _sides(config: ConfigDict, *, say: Say) -> Sides:
    data = config.data
    if not data.folder:
        raise ConfigError("data.folder: ''; name the folder or the store of labelled patches")
    root = pathlib.Path(data.folder)
    found: Sequence[LabelledFile] | Sides
    if (root / "train").is_dir():
        held_out = [root / name for name in VALIDATION_FOLDERS if (root / name).is_dir()]
        validation = _find(config, held_out[0]) if held_out else []
        found = Sides(tuple(_find(config, root / "train")), tuple(validation))
    else:
        found = _find(config, root)
    sides = choose_sides(
        found,
        validation_frac=data.validation_frac,
        seed=config.seed,
        by_file=data.split_by == "file",
        train_names=data.train_names,
        validation_names=data.validation_names,
        few_shot=data.few_shot,
    )
    if config.task == "classify" and (root / "test").is_dir():
        known = {file.class_name for file in sides.train}
        strange = sorted({file.class_name for file in _find(config, root / "test")} - known)
        if strange:
            say(f"{root / 'test'} has classes without a training patch, never to be predicted: {', '.join(strange)}")
    return sides


def _find(config: ConfigDict, folder: pathlib.Path) -> list[LabelledFile]:
    data = config.data
    needs = {"segment": "_label", "classify": "", "deblur": "_blurred"}[config.task]
    if config.task == "deblur" and config.blur.source == "made":
        needs = ""
    find = find_stored if is_store(folder) else find_labelled
    found = find(folder, needs=needs, prefix=data.prefix, channels=data.channels, volume_pattern=data.volume_pattern)
    if config.task != "classify":
        return found
    return with_classes(found, source=data.class_from, table=data.csv, classes=data.classes)


def _read(config: ConfigDict, sides: Sides) -> Patches:
    percentiles = (float(config.data.lower_percentile), float(config.data.upper_percentile))
    classes: tuple[str, ...] = ()
    if config.task == "segment":

        def read(file: LabelledFile) -> LabelledPatch:
            return read_segmentation(file, percentiles=percentiles)
    elif config.task == "classify":
        classes = _classes(sides)

        def read(file: LabelledFile) -> LabelledPatch:
            return read_classification(file, classes=classes, percentiles=percentiles)
    else:
        made = config.blur
        blur = None
        if made.source == "made":
            blur = Blur(tuple(made.sigma_voxels), tuple(made.sigma_um), made.noise_counts, config.seed)

        def read(file: LabelledFile) -> LabelledPatch:
            return read_deblurring(file, blur=blur, percentiles=percentiles)

    return Patches([read(file) for file in sides.train], [read(file) for file in sides.validation], classes)


def _classes(sides: Sides) -> tuple[str, ...]:
    """The classes of the training patches, sorted."""
    known = sorted({file.class_name for file in sides.train})
    if len(known) < 2:
        raise LabelledDataError(
            f"the training patches are all of one class, {', '.join(known)}: there is nothing to tell apart. Add "
            "patches of another class, or look at data.class_from, data.classes and the split"
        )
    strange = [file for file in sides.validation if file.class_name not in known]
    if strange:
        raise LabelledDataError(
            f"{len(strange)} validation patches are of classes that no training patch has, such as {strange[0].name} "
            f"of {strange[0].class_name}; training has {', '.join(known)}. Split anew (seed, data.validation_frac), or "
            "leave the class out with data.classes"
        )
    return tuple(known)


def _tell(config: ConfigDict, patches: Patches, *, say: Say) -> None:
    say(f"{len(patches.train)} patches to train, {len(patches.validation)} to validate")
    if not patches.validation:
        say("no validation: the last state of the run is its result, and patience does not apply")
    size = tuple(config.data.patch_size)
    every = [*patches.train, *patches.validation]
    small = [p.name for p in every if any(have < want for have, want in zip(p.image.shape, size, strict=True))]
    if small:
        say(f"{len(small)} patches are smaller than {size} voxels and mirrored at their edges: {', '.join(small[:5])}")
    if config.task == "segment":
        shares = [float(np.mean(patch.target)) for patch in patches.train]
        say(f"foreground of the training patches: {', '.join(f'{100 * share:.2f} %' for share in shares[:12])}")
        if not any(shares):
            raise LabelledDataError("the masks of all training patches are empty: there is nothing to learn from")
    if patches.classes:
        counts = collections.Counter(patch.label for patch in patches.train)
        say("classes: " + ", ".join(f"{name} ({counts[k]})" for k, name in enumerate(patches.classes)))


def _record_split(sides: Sides, folder: pathlib.Path) -> None:
    """Writes `split.json`; a run that is continued must have the patches it began with."""
    split = {
        side: [{"name": row.id, "volume": row.volume, "sha256": row.sha256} for row in rows_of(files)]
        for side, files in sides._asdict().items()
    }
    names = {record["sha256"]: record["name"] for record in split["train"]}
    twice = [f"{names[r['sha256']]} and {r['name']}" for r in split["validation"] if r["sha256"] in names]
    if twice:
        raise LabelledDataError(f"one file both trains and validates: {twice[0]}; keep it on one side")
    file = folder / "split.json"
    if file.exists() and json.loads(file.read_text()) != split:
        raise LabelledDataError(
            f"{file}: the run began with other patches than are in data.folder now; restore them, or use another "
            "--workdir"
        )
    if jax.process_index() == 0:
        write_json_atomically(file, split)
