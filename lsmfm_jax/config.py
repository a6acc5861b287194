"""The schema of every configuration: each key with its default, its unit and what is allowed.

A recipe is a Python file with `get_config(variant) -> ConfigDict` that starts from `defaults(task)` and changes
what it wants. Configurations are locked: a key that is not here cannot be set. `validate` is called before any
device work. This module imports no JAX, so that a wrong configuration is reported at once.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lsmfm_jax.config_schema import COMMON, TASKS, Key, Schema

SSIM_WINDOW = 11  # voxels, of losses.deblur.ssim


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key, the value and what is allowed."""


def schema(task: str) -> Schema:
    """The keys of a task.

    Raises:
        ConfigError: the task is unknown.
    """
    if task not in TASKS:
        raise ConfigError(f"task: {task!r} is unknown; allowed: {', '.join(TASKS)}")
    return {"task": Key(task, "what is trained", choices=(task,)), **COMMON, **TASKS[task]}


def defaults(task: str) -> ConfigDict:
    """A locked configuration of a task with every key at its default."""
    config = ConfigDict(_default_values(schema(task)))
    config.lock()
    return config


def _default_values(keys: Schema) -> dict[str, Any]:
    return {name: key.default if isinstance(key, Key) else _default_values(key) for name, key in keys.items()}


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
    if config.task == "classify" and (config.data.class_from == "csv") != bool(config.data.csv):
        raise ConfigError(
            f"data.csv: {config.data.csv!r} with data.class_from {config.data.class_from}; name the table, and set "
            "class_from to csv"
        )
    if config.task in ("segment", "deblur") and config.reinit_top and not config.init_from:
        raise ConfigError("reinit_top: True without init_from; from scratch every block is drawn anew")
    if config.task == "deblur" and min(config.data.patch_size) < SSIM_WINDOW:
        raise ConfigError(f"data.patch_size: {config.data.patch_size}; SSIM needs at least {SSIM_WINDOW} voxels")


def _check_sizes(config: ConfigDict) -> None:
    model = config.model
    paths = [path for path in ("patch_size", "input_size") if path in config.data]
    for path in paths:
        if len(config.data[path]) != 3:
            raise ConfigError(f"data.{path}: {config.data[path]}; three numbers Z, Y, X are needed")
    if model.name == "unet" and len(model.unet.strides) != len(model.unet.channels) - 1:
        raise ConfigError(
            f"model.unet.strides: {model.unet.strides}; one less than model.unet.channels "
            f"{model.unet.channels} is needed"
        )
    if model.name == "resnet18" and len(model.resnet18.widths) != 4:
        raise ConfigError(f"model.resnet18.widths: {model.resnet18.widths}; four numbers are needed")
    swin = model.swin_unetr
    if model.name == "swin_unetr":
        if swin.feature_size % 12:
            raise ConfigError(f"model.swin_unetr.feature_size: {swin.feature_size}; a multiple of 12 is needed")
        for path in ("depths", "num_heads"):
            if len(swin[path]) != 4:
                raise ConfigError(f"model.swin_unetr.{path}: {swin[path]}; four numbers are needed")
    if (
        config.task == "pretrain" or not config.init_from
    ):  # else the architecture is that of the weights, which the task checks
        check_divisible(f"data.{paths[-1]}", config.data[paths[-1]], name=model.name, strides=model.unet.strides)


def check_divisible(key: str, sizes: Sequence[int], *, name: str, strides: Sequence[int]) -> None:
    """Refuses volumes that a backbone cannot take.

    Args:
        key: where the sizes are from, for the message.
        sizes: voxels Z, Y, X.
        name: of the backbone.
        strides: of the UNet; unused for the other.

    Raises:
        ConfigError: a size is no multiple of what the backbone shrinks volumes by.
    """
    if name == "resnet18":
        return
    factor, reason = 32, "the SwinUNETR's downsampling"
    if name == "unet":
        factor, reason = math.prod(strides), "the product of model.unet.strides"
    for size in sizes:
        if size % factor:
            raise ConfigError(f"{key}: {tuple(sizes)}; each must be a multiple of {factor}, {reason}")


def _check_pretraining(config: ConfigDict) -> None:
    for block in config.mask.block_sizes:
        for size in config.data.input_size:
            if size % block:
                raise ConfigError(f"mask.block_sizes: {block} does not divide data.input_size {config.data.input_size}")
    group = config.loss.contrast_group
    if group and config.train.batch_size % group:
        raise ConfigError(
            f"loss.contrast_group: {group} does not divide train.batch_size {config.train.batch_size}; "
            "choose a divisor, or 0 for the global batch"
        )
    if config.loss.distill + config.loss.reconstruct <= 0:
        raise ConfigError("loss.distill, loss.reconstruct: both are 0; nothing would train the dense features")
