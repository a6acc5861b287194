"""The labelled patches of a finetuning run: found, split, read, and recorded as the run's own."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from lsmfm_jax.config import ConfigError, recorded_config
from lsmfm_jax.data.labelled import (
    LabelledDataError,
    LabelledFile,
    find_labelled,
    rows_of,
    side_folders,
    with_classes,
)
from lsmfm_jax.data.labelled_sides import Sides, choose_sides
from lsmfm_jax.data.labelled_store import find_stored, is_store
from lsmfm_jax.data.splits import describe_sides
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import DamagedFile, read_json, replace_json
from lsmfm_jax.tasks.declaration import Patches, PrintLine
from lsmfm_jax.tasks.finetune_tasks import finetune_task
from lsmfm_jax.tasks.label_summary import describe_labels
from lsmfm_jax.volumes.names import VOLUME_RULE, earlier_volume_of


def read_patches(config: ConfigDict, folder: pathlib.Path, *, print_line: PrintLine = print) -> Patches:
    """Finds, splits and reads the patches of a run, and records which they are in its `split.json`.

    A folder that has a split must get the same patches again, so a baseline sees those that the run saw.

    Args:
        config: of a finetuning task.
        folder: run folder.
        print_line: prints a line.

    Raises:
        ConfigError: no folder of patches.
        LabelledDataError: patches that cannot be used, or others than the run began with.
        VolumeError: a file cannot be read as one 3D volume.
    """
    sides = _sides_of_run(config, folder, print_line=print_line)
    if not config.data.volume_pattern and not is_store(pathlib.Path(config.data.folder)):
        print_line(VOLUME_RULE)
    for line in describe_sides(*([file.volume for file in side] for side in sides)):
        print_line(line)
    _record_split(sides, folder)
    patches = _read(config, sides)
    _describe(config, patches, print_line=print_line)
    return patches


def annotated_patches(config: ConfigDict, *, print_line: PrintLine = print) -> Patches:
    """All patches that a segmentation run would draw its sides from, in counts; records nothing.

    They stand on the training side, but for those that folders or names give to the validation.

    Args:
        config: of task `segment`.
        print_line: prints a line.

    Raises:
        LabelledDataError: patches that cannot be used, or masks without any foreground.
        VolumeError: a file cannot be read as one 3D volume.
    """
    undrawn = config.copy_and_resolve_references()
    undrawn.data.validation_frac = 0.0
    # Read for their counts and masks; on which scale they can be seen is for the caller to say.
    undrawn.data.scale = "percentile"
    patches = _read(undrawn, _sides(undrawn, print_line=print_line))
    describe_labels(config, patches, print_line)
    return patches


def run_configuration(folder: pathlib.Path) -> ConfigDict:
    """The configuration that a run was trained with; keys that it does not have are at their defaults.

    Raises:
        ConfigError: the folder has none, or of another task than finetuning.
    """
    config = recorded_config(folder)
    if "folder" not in config.data:
        raise ConfigError(f"{folder}: a run of task {config.task!r}; name a run of lsmfm finetune")
    return config


def _sides_of_run(config: ConfigDict, folder: pathlib.Path, *, print_line: PrintLine) -> Sides:
    """Draws the sides by today's rule for volumes; a run that began under the earlier rule keeps that."""
    recorded = folder / "split.json"
    try:
        sides = _sides(config, print_line=print_line)
        if not recorded.exists() or _recorded_split(recorded) == _split_of(sides):
            return sides
    except LsmfmError:
        if not recorded.exists():
            raise
        sides = None
    with contextlib.suppress(LsmfmError):
        earlier = _sides(config, print_line=lambda line: None, earlier=True)
        if _recorded_split(recorded) == _split_of(earlier):
            return earlier
    return sides or _sides(config, print_line=print_line)


def _sides(config: ConfigDict, *, print_line: PrintLine, earlier: bool = False) -> Sides:
    data = config.data
    if not data.folder:
        raise ConfigError("data.folder: ''; name the folder or the store of labelled patches")
    root = pathlib.Path(data.folder)
    found: Sequence[LabelledFile] | Sides
    if given := side_folders(root):
        validation = _find(config, given[1], earlier=earlier) if given[1] else []
        found = Sides(tuple(_find(config, given[0], earlier=earlier)), tuple(validation))
    else:
        found = _find(config, root, earlier=earlier)
    sides = choose_sides(
        found,
        validation_frac=data.validation_frac,
        seed=config.seed,
        by_file=data.split_by == "file",
        train_names=data.train_names,
        validation_names=data.validation_names,
        few_shot=data.few_shot,
    )
    if finetune_task(config.task).has_classes and (root / "test").is_dir():
        known = {file.class_name for file in sides.train}
        unknown = sorted({file.class_name for file in _find(config, root / "test")} - known)
        if unknown:
            print_line(
                f"{root / 'test'} has classes without a training patch, never to be predicted: {', '.join(unknown)}"
            )
    return sides


def _find(config: ConfigDict, folder: pathlib.Path, *, earlier: bool = False) -> list[LabelledFile]:
    data, task = config.data, finetune_task(config.task)
    find = find_stored if is_store(folder) else find_labelled
    found = find(
        folder,
        needs=task.companion(config),
        prefix=data.prefix,
        channels=data.channels,
        volume_pattern=data.volume_pattern,
    )
    if earlier and not data.volume_pattern:
        found = [file if file.stored else _as_earlier(file) for file in found]
    if not task.has_classes:
        return found
    return with_classes(found, source=data.class_from, table=data.csv, classes=data.classes)


def _as_earlier(file: LabelledFile) -> LabelledFile:
    folder, _, short = file.name.rpartition("/")
    volume = earlier_volume_of(short)
    return dataclasses.replace(file, volume=f"{folder}/{volume}" if folder else volume)


def _read(config: ConfigDict, sides: Sides) -> Patches:
    task = finetune_task(config.task)
    classes = _classes(sides) if task.has_classes else ()
    read = task.reader(config, classes)
    return Patches([read(file) for file in sides.train], [read(file) for file in sides.validation], classes)


def _classes(sides: Sides) -> tuple[str, ...]:
    """The classes of the training patches, sorted."""
    known = sorted({file.class_name for file in sides.train})
    if len(known) < 2:
        raise LabelledDataError(
            f"the training patches are all of one class, {', '.join(known)}: there is nothing to tell apart. Add "
            "patches of another class, or look at data.class_from, data.classes and the split"
        )
    unknown = [file for file in sides.validation if file.class_name not in known]
    if unknown:
        raise LabelledDataError(
            f"{len(unknown)} validation patches are of classes that no training patch has, such as {unknown[0].name} "
            f"of {unknown[0].class_name}; training has {', '.join(known)}. Split anew (seed, data.validation_frac), or "
            "leave the class out with data.classes"
        )
    return tuple(known)


def _describe(config: ConfigDict, patches: Patches, *, print_line: PrintLine) -> None:
    print_line(f"{len(patches.train)} patches to train, {len(patches.validation)} to validate")
    if not patches.validation:
        print_line("no validation: the last state of the run is its result, and patience does not apply")
    size = tuple(config.data.patch_size)
    every = [*patches.train, *patches.validation]
    small = [p.name for p in every if any(have < want for have, want in zip(p.image.shape, size, strict=True))]
    if small:
        print_line(
            f"{len(small)} patches are smaller than {size} voxels and mirrored at their edges: {', '.join(small[:5])}"
        )
    finetune_task(config.task).describe(config, patches, print_line)


def _record_split(sides: Sides, folder: pathlib.Path) -> None:
    """Writes `split.json`; a run that is continued must have the patches it began with."""
    split = _split_of(sides)
    names = {record["sha256"]: record["name"] for record in split["train"]}
    twice = [f"{names[r['sha256']]} and {r['name']}" for r in split["validation"] if r["sha256"] in names]
    if twice:
        raise LabelledDataError(f"one file both trains and validates: {twice[0]}; keep it on one side")
    file = folder / "split.json"
    if file.exists() and _recorded_split(file) != split:
        raise LabelledDataError(
            f"{file}: the run began with other patches than are in data.folder now; restore them, or use another "
            "--workdir"
        )
    if jax.process_index() == 0:
        replace_json(file, split)


def _recorded_split(file: pathlib.Path) -> Any:
    try:
        return read_json(file)
    except DamagedFile as error:
        raise LabelledDataError(
            f"{file}: damaged: {error.reason}; restore it from a copy, or use another --workdir"
        ) from None


def _split_of(sides: Sides) -> dict[str, list[dict[str, str]]]:
    return {
        side: [{"name": row.id, "volume": row.volume, "sha256": row.sha256} for row in rows_of(files)]
        for side, files in sides._asdict().items()
    }
