"""What surrounds finetuning: labelled patches, where the weights come from, groups, and what the run records."""

import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lsmfm_jax.data.labelled_batches import LabelledSource, WindowBatches, training_batches
from lsmfm_jax.tasks.classify import classification_task
from lsmfm_jax.tasks.deblur import deblurring_task, measure_target_range
from lsmfm_jax.tasks.finetune_patches import Patches, Say, read_patches
from lsmfm_jax.tasks.finetune_start import build_network, finetuning_rules, initial_parts, read_start
from lsmfm_jax.tasks.finetuning import Network, encoder_pattern
from lsmfm_jax.tasks.segment import segmentation_task
from lsmfm_jax.train.run import Setup
from lsmfm_jax.train.task import Task

# What decides which state is the best: metric, and whether more of it is better.
MONITORS = {"segment": ("dice", True), "classify": ("accuracy", True), "deblur": ("loss", False)}


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
    patches = read_patches(config, folder, say=say)
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
        record=_record(config, start.architecture, patches) | facts,
    )


def _task(
    config: ConfigDict, network: Network, patches: Patches, name: str, *, say: Say
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
        encoder=encoder_pattern(name, with_bottleneck=True, with_skips=False),
        classes=patches.classes,
        counts=[int(count) for count in counts],
    )
    head = {"kind": "pooled", "outputs": len(patches.classes), "classes": list(patches.classes)}
    return task, {"head": head, "classes": list(patches.classes)}


def _record(config: ConfigDict, architecture: dict[str, Any], patches: Patches) -> dict[str, Any]:
    return {
        "task": config.task,
        "architecture": architecture,
        "dtype": config.model.dtype,
        "scaling": {"lower": config.data.lower_percentile, "upper": config.data.upper_percentile},
        "patch_size": list(config.data.patch_size),
        "init_from": config.init_from,
        "patches": {"train": [p.name for p in patches.train], "validation": [p.name for p in patches.validation]},
    }
