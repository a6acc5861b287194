"""What surrounds finetuning: labelled patches, where the weights come from, groups, and what the run records."""

import collections
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from lsmfm_jax.config import ConfigError
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
    LabelledSource,
    WindowBatches,
    read_classification,
    read_deblurring,
    read_segmentation,
    training_batches,
)
from lsmfm_jax.tasks.classify import classification_task
from lsmfm_jax.tasks.deblur import deblurring_task, measure_target_range
from lsmfm_jax.tasks.finetune_start import build_network, finetuning_rules, initial_parts, read_start
from lsmfm_jax.tasks.finetuning import Network, encoder_pattern
from lsmfm_jax.tasks.segment import segmentation_task
from lsmfm_jax.train.checkpoint import write_json_atomically
from lsmfm_jax.train.run import Setup
from lsmfm_jax.train.task import Task

Say = Callable[[str], None]
# What decides which state is the best: metric, and whether more of it is better.
MONITORS = {"segment": ("dice", True), "classify": ("accuracy", True), "deblur": ("loss", False)}


class _Patches(NamedTuple):
    train: list[LabelledPatch]
    validation: list[LabelledPatch]
    classes: tuple[str, ...]


def finetuning_setup(config: ConfigDict, folder: pathlib.Path, *, say: Say = print) -> Setup:
    """Reads the patches and the weights of a finetuning run.

    Args:
        config: validated configuration of task `segment`, `classify` or `deblur`.
        folder: run folder; the split goes to `split.json`.
        say: prints a line.

    Raises:
        ConfigError: no folder of patches, or weights of another backbone.
        LabelledDataError: patches that cannot be used.
        CheckpointError: `init_from` is no run, or damaged.
    """
    start = read_start(config, folder, say=say)
    sides = _sides(config, say=say)
    _record_split(sides, folder)
    patches = _read(config, sides)
    _tell(config, patches, say=say)
    steps_per_epoch = max(1, len(patches.train) * config.data.crops_per_patch // config.train.batch_size)
    network = build_network(config, start.architecture, steps_per_epoch=steps_per_epoch)
    task, facts = _task(config, network, patches, start.architecture["name"], say=say)
    size = tuple(config.data.patch_size)
    source = LabelledSource(patches.train, patch_size=size)
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    held_out = LabelledSource(patches.validation, patch_size=size, first_sample=len(patches.train))
    monitor, higher_is_better = MONITORS[config.task]

    def batches(start_step: int) -> Any:
        settings = {"batch_size": config.train.batch_size, "seed": config.seed, "prefetch": config.data.prefetch}
        if config.task == "segment":
            settings["foreground_frac"] = config.data.foreground_frac
        return training_batches(source, start_step=start_step, **settings, **share)

    return Setup(
        task=task,
        rules=finetuning_rules(config, start.architecture["name"], network=network),
        batches=batches,
        validation=WindowBatches(held_out, batch_size=config.train.batch_size, **share),
        steps_per_epoch=steps_per_epoch,
        monitor=monitor,
        higher_is_better=higher_is_better,
        initial=initial_parts(config, start.weights, task.init, head_record=facts["head"], say=say),
        record=_record(config, start.architecture, sides) | facts,
    )


def _sides(config: ConfigDict, *, say: Say) -> Sides:
    data = config.data
    if not data.folder:
        raise ConfigError("data.folder: ''; name the folder of labelled patches")
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
    found = find_labelled(
        folder, needs=needs, prefix=data.prefix, channels=data.channels, volume_pattern=data.volume_pattern
    )
    if config.task != "classify":
        return found
    return with_classes(found, source=data.class_from, table=data.csv, classes=data.classes)


def _read(config: ConfigDict, sides: Sides) -> _Patches:
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

    return _Patches([read(file) for file in sides.train], [read(file) for file in sides.validation], classes)


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


def _tell(config: ConfigDict, patches: _Patches, *, say: Say) -> None:
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


def _task(
    config: ConfigDict, network: Network, patches: _Patches, name: str, *, say: Say
) -> tuple[Task, dict[str, Any]]:
    """The functions of the task, and what its record has beside that of others."""
    if config.task == "segment":
        return segmentation_task(config, network), {"head": {"kind": "dense", "outputs": 1}}
    if config.task == "deblur":
        bottom, top = measure_target_range(patches.train)
        say(f"target range {bottom:.3f} to {top:.3f} on the scale of the blurred input's percentiles")
        facts = {"head": {"kind": "dense", "outputs": 1}, "target_range": [bottom, top]}
        return deblurring_task(config, network, target_range=(bottom, top)), facts
    counts = np.bincount([patch.label for patch in patches.train], minlength=len(patches.classes))
    task = classification_task(
        config,
        network,
        encoder=encoder_pattern(name, with_bottleneck=True),
        classes=patches.classes,
        counts=[int(count) for count in counts],
    )
    head = {"kind": "pooled", "outputs": len(patches.classes), "classes": list(patches.classes)}
    return task, {"head": head, "classes": list(patches.classes)}


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


def _record(config: ConfigDict, architecture: dict[str, Any], sides: Sides) -> dict[str, Any]:
    return {
        "task": config.task,
        "architecture": architecture,
        "dtype": config.model.dtype,
        "scaling": {"lower": config.data.lower_percentile, "upper": config.data.upper_percentile},
        "patch_size": list(config.data.patch_size),
        "init_from": config.init_from,
        "patches": {"train": [f.name for f in sides.train], "validation": [f.name for f in sides.validation]},
    }
