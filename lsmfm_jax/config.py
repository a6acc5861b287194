"""The schema of every configuration: each key with its default, its unit and what is allowed.

A recipe is a Python file with `get_config(variant) -> ConfigDict` that starts from `defaults(task)` and changes
what it wants. Configurations are locked: a key that is not here cannot be set. `validate` is called before any
device work. This module imports no JAX, so that a wrong configuration is reported at once.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

TASKS = ("pretrain", "segment", "classify", "deblur")
PERCENTILES = ("0.1", "1", "5", "50", "95", "99", "99.5", "99.9", "100")


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key, the value and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the schema.

    Attributes:
        default: the value a recipe starts from; its type is the key's type (an int is taken for a float).
        meaning: what it does, with its unit.
        choices: the allowed values, or None.
        low: smallest allowed number (for tuples: of each element), or None.
        high: largest allowed number (likewise), or None.
    """

    default: Any
    meaning: str
    choices: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None


Schema = dict[str, "Key | Schema"]

_DATA: Schema = {
    "stores": Key((), "patch stores to read, paths"),
    "split": Key("", "JSON file of a split made earlier; empty: make one"),
    "split_by": Key("volume", "what may not be on both sides of the split", choices=("volume", "file")),
    "validation_frac": Key(0.1, "share of the volumes (or files) kept for validation", low=0.0, high=0.9),
    "patch_size": Key((96, 96, 96), "voxels Z, Y, X read from a patch: larger ones are cropped", low=8),
    "input_size": Key((64, 64, 64), "voxels Z, Y, X the network sees, after trilinear resizing", low=8),
    "lower_percentile": Key("1", "percentile of the patch that becomes 0", choices=PERCENTILES),
    "upper_percentile": Key("99", "percentile of the patch that becomes 1", choices=PERCENTILES),
    "workers": Key(0, "reader processes; 0: threads of the main process", low=0),
    "prefetch": Key(4, "batches read ahead", low=1),
    "max_bad_frac": Key(0.01, "share of damaged patches at which the run stops", low=0.0, high=1.0),
}

_AUGMENT: Schema = {
    "probability": Key(0.2, "chance of each augmentation, per sample and step", low=0.0, high=1.0),
    "rotation_rad": Key(0.1, "largest affine rotation about each axis, radians", low=0.0, high=3.2),
    "scale_frac": Key(0.1, "largest affine scaling, fraction", low=0.0, high=0.9),
    "noise_std": Key(0.02, "standard deviation of Gaussian noise, in scaled intensity", low=0.0),
    "smooth_sigma": Key((0.25, 1.5), "range of Gaussian smoothing, voxels per axis", low=0.0),
    "intensity_scale_frac": Key(0.2, "largest intensity scaling, fraction", low=0.0),
    "intensity_shift": Key(0.2, "largest intensity shift, in scaled intensity", low=0.0),
    "independent_flips": Key(False, "flip each axis by itself rather than all three together"),
}

_MODEL: Schema = {
    "name": Key("unet", "backbone", choices=("unet", "swin_unetr")),
    "out_channels": Key(128, "width of the dense features and of the embeddings", low=1),
    "dtype": Key("bfloat16", "compute type; parameters stay float32", choices=("float32", "bfloat16")),
    "unet": {
        "channels": Key((32, 64, 128, 256, 512), "widths, shallow to deep", low=1),
        "strides": Key((2, 2, 2, 1), "stride between two widths", choices=None, low=1, high=2),
        "num_res_units": Key(2, "convolutions in a residual unit", low=1),
        "norm": Key("batch", "normalisation", choices=("batch", "instance")),
    },
    "swin_unetr": {
        "feature_size": Key(36, "width of the first stage, a multiple of 12", low=12),
        "depths": Key((2, 2, 2, 2), "transformer blocks in each stage", low=1),
        "num_heads": Key((3, 6, 12, 24), "attention heads in each stage", low=1),
        "window": Key(7, "attention window, tokens along each axis", low=2),
        "merging": Key(
            "corrected",
            "patch merging: all eight slices, or two of them twice as the published checkpoints have it",
            choices=("corrected", "duplicated"),
        ),
    },
}

_OPTIM: Schema = {
    "learning_rate": Key(1e-4, "AdamW rate at its highest", low=0.0),
    "schedule": Key("constant", "rate over time after the warm-up", choices=("constant", "cosine")),
    "warmup_steps": Key(0, "optimiser steps of linear warm-up from 0", low=0),
    "final_frac": Key(0.0, "share of the rate at the end of the cosine", low=0.0, high=1.0),
    "weight_decay": Key(0.01, "decoupled weight decay", low=0.0),
    "b1": Key(0.9, "decay of the first moment", low=0.0, high=1.0),
    "b2": Key(0.999, "decay of the second moment", low=0.0, high=1.0),
    "eps": Key(1e-8, "added to the root of the second moment", low=0.0),
    "clip_norm": Key(0.0, "largest global gradient norm; 0: no clipping", low=0.0),
}

_TRAIN: Schema = {
    "batch_size": Key(16, "samples in one optimiser step, over all devices", low=1),
    "accumulate_steps": Key(1, "micro-batches in one optimiser step", low=1),
    "epochs": Key(500, "most passes over the training patches", low=1),
    "patience_epochs": Key(200, "epochs without a better validation before stopping; 0: never", low=0),
    "log_every_steps": Key(10, "steps between two lines of metrics", low=1),
    "validate_every_epochs": Key(1, "epochs between two validations", low=1),
    "pictures_every_epochs": Key(10, "epochs between two sets of pictures; 0: only at the end", low=0),
    "pictures_count": Key(4, "patches drawn", low=1, high=16),
    "checkpoint_every_epochs": Key(5, "epochs between two checkpoints", low=1),
    "keep_checkpoints": Key(3, "latest checkpoints kept, beside the best", low=1),
    "keep_period_steps": Key(0, "also keep every checkpoint at a multiple of this; 0: none", low=0),
    "max_bad_steps": Key(10, "non-finite steps in a row at which the run stops", low=1),
    "spike_factor": Key(3.0, "a loss beyond this many running means is logged with its samples; 0: off", low=0.0),
    "on_disk_full": Key("continue", "when a checkpoint cannot be written", choices=("continue", "stop")),
    "tensorboard": Key(True, "write TensorBoard files"),
    "wandb_project": Key("", "Weights & Biases project; empty: off"),
}

_MESH: Schema = {
    "data": Key(-1, "devices along the batch; -1: all that are left", low=-1),
    "fsdp": Key(1, "devices over which parameters and moments are split", low=-1),
    "depth": Key(1, "devices over which the Z axis of volumes is split", low=-1),
}

_PRETRAIN: Schema = {
    "mask": {
        "block_sizes": Key((4, 8), "edges of the masked cubes, voxels; one is drawn for each sample", low=1),
        "ratio": Key(0.3, "share of the blocks masked", low=0.0, high=1.0),
        "warmup_ratio": Key(0.05, "the same during the warm-up", low=0.0, high=1.0),
    },
    "warmup_epochs": Key(20, "epochs of the low mask ratio, with the text tower frozen", low=0),
    "teacher": {
        "decay": Key(0.996, "of the exponential moving average", low=0.0, high=1.0),
        "updates_per_step": Key(1, "times the average is taken in one optimiser step", low=1),
        "average_statistics": Key(True, "average the batch-norm statistics too"),
    },
    "text": {
        "enabled": Key(True, "train with captions; off: image only, no text tower is built"),
        "source": Key("tiny", "Hugging Face BERT directory or name; tiny: a small random one"),
        "top_k_layers": Key(4, "transformer layers, from the top, that train after the warm-up", low=0),
        "train": Key(True, "train the top layers, embeddings, layer norms and pooler after the warm-up"),
        "project_in_warmup": Key(True, "train the text projection during the warm-up too"),
        "pooling": Key("real", "tokens in the mean: real ones, or all with padding", choices=("real", "all")),
        "max_tokens": Key(128, "longest caption, tokens", low=8, high=512),
    },
    "loss": {
        "distill": Key(0.29, "weight of the distillation", low=0.0),
        "reconstruct": Key(0.20, "weight of the masked reconstruction", low=0.0),
        "align": Key(0.06, "weight of the image-text alignment", low=0.0),
        "contrast": Key(0.36, "weight of the image-text contrast", low=0.0),
        "student_temperature": Key(0.1, "softmax temperature of the student's features", low=1e-3),
        "teacher_temperature": Key(0.1, "softmax temperature of the teacher's features", low=1e-3),
        "contrast_temperature": Key(0.1, "initial temperature of the contrast", low=1e-3),
        "positives": Key("caption", "pairs that count as matching", choices=("caption", "sample")),
        "contrast_group": Key(0, "samples contrasted with each other; 0: the global batch", low=0),
    },
    "report": {
        "distill": Key(0.30, "weight in the validation loss", low=0.0),
        "reconstruct": Key(0.30, "weight in the validation loss", low=0.0),
        "align": Key(0.10, "weight in the validation loss", low=0.0),
        "contrast": Key(0.30, "weight in the validation loss", low=0.0),
    },
}

_COMMON: Schema = {
    "seed": Key(100, "of every draw", low=0),
    "data": _DATA,
    "augment": _AUGMENT,
    "model": _MODEL,
    "optim": _OPTIM,
    "train": _TRAIN,
    "mesh": _MESH,
    "init_from": Key("", "run folder or imported checkpoint to start from; empty: scratch"),
    "init_allow": Key((), "regular expressions of leaves that may be missing or of another shape there"),
}


def schema(task: str) -> Schema:
    """The keys of a task.

    Raises:
        ConfigError: the task is unknown.
    """
    if task not in TASKS:
        raise ConfigError(f"task: {task!r} is unknown; allowed: {', '.join(TASKS)}")
    own = _PRETRAIN if task == "pretrain" else {}
    return {"task": Key(task, "what is trained", choices=(task,)), **_COMMON, **own}


def defaults(task: str) -> ConfigDict:
    """A locked configuration of a task with every key at its default."""
    config = ConfigDict(_default_values(schema(task)))
    config.lock()
    return config


def _default_values(keys: Schema) -> dict[str, Any]:
    return {
        name: key.default if isinstance(key, Key) else _default_values(key) for name, key in keys.items()
    }


def flatten(tree: Mapping[str, Any] | ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every leaf of a schema or a configuration."""
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{path}.")
        else:
            yield path, value


def unknown_key_message(path: str, allowed: list[str]) -> str:
    """Says that a key is unknown, with the nearest known ones."""
    near = difflib.get_close_matches(path, allowed, n=3, cutoff=0.5)
    where = path.rpartition(".")[0]
    there = [key for key in allowed if key.rpartition(".")[0] == where] or allowed
    hint = f"did you mean {' or '.join(near)}?" if near else f"allowed here: {', '.join(there)}"
    return f"{path}: no such key; {hint}"


def validate(config: ConfigDict) -> None:
    """Refuses a configuration that cannot be run, before any device work.

    Raises:
        ConfigError: an unknown or missing key, a value of the wrong type or out of range, or an impossible
            combination; the message names the key, the value and what is allowed.
    """
    keys = dict(flatten(schema(config.get("task", ""))))
    values = dict(flatten(config))
    for path in values:
        if path not in keys:
            raise ConfigError(unknown_key_message(path, sorted(keys)))
    for path, key in keys.items():
        if path not in values:
            raise ConfigError(f"{path}: missing; it is {key.meaning} (default {key.default!r})")
        _check_value(path, values[path], key)
    _check_combinations(config)


def _check_value(path: str, value: Any, key: Key) -> None:
    kind = type(key.default)
    fits = type(value) in (int, float) if kind is float else type(value) is kind
    if not fits:
        raise ConfigError(
            f"{path}: {value!r} is {type(value).__name__}; a {kind.__name__} is needed, such as {key.default!r}"
        )
    if key.choices is not None and value not in key.choices:
        raise ConfigError(f"{path}: {value!r}; allowed: {', '.join(map(str, key.choices))}")
    elements = value if kind is tuple else (value,)
    kinds = {type(element) for element in key.default} if kind is tuple and key.default else set()
    for element in elements:
        if kinds and not (type(element) in kinds or (kinds == {float} and type(element) is int)):
            raise ConfigError(f"{path}: {element!r} in {value!r}; allowed: values like {key.default!r}")
        if key.low is not None and element < key.low:
            raise ConfigError(f"{path}: {value!r}; at least {key.low:g} is needed")
        if key.high is not None and element > key.high:
            raise ConfigError(f"{path}: {value!r}; at most {key.high:g} is allowed")


def _check_combinations(config: ConfigDict) -> None:
    _check_sizes(config)
    train = config.train
    if train.batch_size % train.accumulate_steps:
        raise ConfigError(
            f"train.accumulate_steps: {train.accumulate_steps} does not divide train.batch_size "
            f"{train.batch_size}; choose a divisor"
        )
    if float(config.data.lower_percentile) >= float(config.data.upper_percentile):
        raise ConfigError(
            f"data.lower_percentile: {config.data.lower_percentile} must be below data.upper_percentile "
            f"{config.data.upper_percentile}"
        )
    axes = [name for name in ("data", "fsdp", "depth") if config.mesh[name] == -1]
    if len(axes) > 1 or any(config.mesh[name] == 0 for name in config.mesh):
        raise ConfigError(f"mesh: {dict(config.mesh)}; one axis at most may be -1, the others are at least 1")
    if config.task == "pretrain":
        _check_pretraining(config)


def _check_sizes(config: ConfigDict) -> None:
    model = config.model
    for path in ("patch_size", "input_size"):
        if len(config.data[path]) != 3:
            raise ConfigError(f"data.{path}: {config.data[path]}; three numbers Z, Y, X are needed")
    if model.name == "unet":
        if len(model.unet.strides) != len(model.unet.channels) - 1:
            raise ConfigError(
                f"model.unet.strides: {model.unet.strides}; one less than model.unet.channels "
                f"{model.unet.channels} is needed"
            )
        factor = 1
        for stride in model.unet.strides:
            factor *= stride
        reason = "the product of model.unet.strides"
    else:
        factor, reason = 32, "the SwinUNETR's downsampling"
        swin = model.swin_unetr
        if swin.feature_size % 12:
            raise ConfigError(f"model.swin_unetr.feature_size: {swin.feature_size}; a multiple of 12 is needed")
        for path in ("depths", "num_heads"):
            if len(swin[path]) != 4:
                raise ConfigError(f"model.swin_unetr.{path}: {swin[path]}; four numbers are needed")
    for size in config.data.input_size:
        if size % factor:
            raise ConfigError(
                f"data.input_size: {config.data.input_size}; each must be a multiple of {factor}, {reason}"
            )


def _check_pretraining(config: ConfigDict) -> None:
    for block in config.mask.block_sizes:
        for size in config.data.input_size:
            if size % block:
                raise ConfigError(
                    f"mask.block_sizes: {block} does not divide data.input_size {config.data.input_size}"
                )
    group = config.loss.contrast_group
    if group and config.train.batch_size % group:
        raise ConfigError(
            f"loss.contrast_group: {group} does not divide train.batch_size {config.train.batch_size}; "
            "choose a divisor, or 0 for the global batch"
        )
    if config.loss.distill + config.loss.reconstruct <= 0:
        raise ConfigError("loss.distill, loss.reconstruct: both are 0; nothing would train the dense features")
