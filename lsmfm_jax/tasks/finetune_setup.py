"""What surrounds finetuning: labelled patches, where the weights come from, groups, and what the run records."""

import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from lsmfm_jax.data.labelled_batches import LabelledSource, WindowBatches, training_batches
from lsmfm_jax.scale import scale_of
from lsmfm_jax.tasks.declaration import Patches, PrintLine
from lsmfm_jax.tasks.finetune_patches import read_patches
from lsmfm_jax.tasks.finetune_start import build_network, encoder_of, initial_parts, low_rank_of, read_start
from lsmfm_jax.tasks.finetune_tasks import finetune_task
from lsmfm_jax.tasks.inputs import configured_scale
from lsmfm_jax.train.low_rank import adapted, describe
from lsmfm_jax.train.run import Setup
from lsmfm_jax.train.task import Task
from lsmfm_jax.train.weights import Weights
from lsmfm_jax.volumes.voxel_sizes import distinct_sizes


def finetuning_setup(config: ConfigDict, folder: pathlib.Path, *, print_line: PrintLine = print) -> Setup:
    """Reads the patches and the weights of a finetuning run.

    Args:
        config: validated configuration of a finetuning task.
        folder: run folder; the split goes to `split.json`.
        print_line: prints a line.

    Raises:
        ConfigError: no folder of patches, or weights of another backbone.
        LabelledDataError: patches that cannot be used.
        CheckpointError: `init_from` is no run, or damaged.
    """
    declared = finetune_task(config.task)
    start = read_start(config, folder, print_line=print_line)
    _compare_scales(config, start.weights, print_line=print_line)
    patches = read_patches(config, folder, print_line=print_line)
    steps_per_epoch = max(1, len(patches.train) * config.data.crops_per_patch // config.train.batch_size)
    network = build_network(config, start.architecture, steps_per_epoch=steps_per_epoch)
    task, facts = declared.functions(config, network, patches, print_line)
    task, added = _with_low_rank(config, task, print_line=print_line)
    size = tuple(config.data.patch_size)
    source = LabelledSource(patches.train, patch_size=size)
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    held_out = LabelledSource(patches.validation, patch_size=size, first_sample=len(patches.train))

    def batches(start_step: int) -> Any:
        settings = {"batch_size": config.train.batch_size, "seed": config.seed, "prefetch": config.data.prefetch}
        return training_batches(source, start_step=start_step, **settings, **declared.sampling(config), **share)

    return Setup(
        task=task,
        rules=network.rules,
        batches=batches,
        validation=WindowBatches(held_out, batch_size=config.train.batch_size, **share),
        steps_per_epoch=steps_per_epoch,
        monitor=declared.monitor,
        higher_is_better=declared.higher_is_better,
        initial=initial_parts(config, start.weights, task.init, head_record=facts["head"], print_line=print_line),
        record=_record(config, start.architecture, patches) | facts | added,
    )


def _with_low_rank(config: ConfigDict, task: Task, *, print_line: PrintLine) -> tuple[Task, dict[str, Any]]:
    """The task with low-rank factors where they are configured, and what the run records of them."""
    low_rank = low_rank_of(config)
    if low_rank is None:
        return task, {}
    task = adapted(task, low_rank)
    params, _ = jax.eval_shape(task.init, jax.random.key(config.seed))
    print_line(describe(params, low_rank, encoder=encoder_of(config, config.model.name)))
    return task, {"lora": low_rank.record()}


def _compare_scales(config: ConfigDict, weights: Weights | None, *, print_line: PrintLine) -> None:
    """Tells where the weights saw intensities on another scale than this run will give them."""
    before = weights.record.get("scaling") if weights else None
    if before and scale_of(before).name != config.data.scale:
        print_line(
            f"{weights.origin} was trained with data.scale {scale_of(before).name!r}, and this run has "
            f"{config.data.scale!r}: the first layers have to learn anew; pretrain on the scale that you finetune on"
        )


def _record(config: ConfigDict, architecture: dict[str, Any], patches: Patches) -> dict[str, Any]:
    return {
        "task": config.task,
        "architecture": architecture,
        "dtype": config.model.dtype,
        "scaling": configured_scale(config).record(),
        "patch_size": list(config.data.patch_size),
        "voxel_sizes_um": distinct_sizes((p.voxel_size_um, p.voxel_size_source) for p in patches.train),
        "init_from": config.init_from,
        "patches": {"train": [p.name for p in patches.train], "validation": [p.name for p in patches.validation]},
    }
