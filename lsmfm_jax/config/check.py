"""Configurations checked against the schema: types, ranges, choices, and keys that must fit together.

A recipe is a Python file with `get_config(variant) -> ConfigDict` that starts from `defaults(task)` and changes
what it wants. Configurations are locked: a key that is not in the schema cannot be set. `validate` is called before any
device work. This module imports no JAX, so that a wrong configuration is reported at once.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lsmfm_jax.config.schema import COMMON, SSIM_WINDOW, TASKS, model_schema
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.keys import LARGEST, Key, Schema
from lsmfm_jax.models import BACKBONES, Architecture, configured_architecture

_NUMBERS = {2: "two numbers", 3: "three numbers Z, Y, X", 4: "four numbers"}


class ConfigError(LsmfmError, ValueError):
    """A configuration that cannot be run; the message names the key, the value and what is allowed."""


def schema(task: str) -> Schema:
    """The keys of a task.

    Raises:
        ConfigError: the task is unknown.
    """
    if task not in TASKS:
        raise ConfigError(f"task: {task!r} is unknown; allowed: {', '.join(TASKS)}")
    which = Key(task, "what is trained", choices=(task,))
    return {"task": which, **COMMON, "model": model_schema(task), **TASKS[task]}


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
    section = path.rpartition(".")[0]
    there = [key for key in allowed if key.rpartition(".")[0] == section]
    if not (section and there):
        there = sorted({first + ("." if rest else "") for first, _, rest in (key.partition(".") for key in allowed)})
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
    if kind is tuple:
        _check_tuple(path, value, key)
    for element in value if kind is tuple else (value,):
        if type(element) in (int, float):
            _check_number(path, element, value, key)


def _check_tuple(path: str, value: tuple[Any, ...], key: Key) -> None:
    if key.length is not None and len(value) != key.length:
        raise ConfigError(f"{path}: {value!r}; {_NUMBERS[key.length]} are needed, such as {key.default!r}")
    if key.default and not value:
        raise ConfigError(f"{path}: {value!r} is empty; at least one value is needed, such as {key.default!r}")
    kind = type(key.default[0]) if key.default else key.of
    for element in value:
        if type(element) is not kind and not (kind is float and type(element) is int):
            example = repr(key.default) if key.default else f"a tuple of {kind.__name__}"
            raise ConfigError(f"{path}: {element!r} in {value!r}; allowed: values like {example}")


def _check_number(path: str, number: float, value: Any, key: Key) -> None:
    """Refuses a number that is NaN or out of range; integers of any length compare exactly."""
    if isinstance(number, float) and math.isnan(number):
        raise ConfigError(f"{path}: {value!r} is not a number; {_range(key)}")
    low = -LARGEST if key.low is None else key.low
    high = LARGEST if key.high is None else key.high
    if number < low:
        raise ConfigError(f"{path}: {_shortened(value)}; at least {low:g} is needed")
    if number > high:
        raise ConfigError(f"{path}: {_shortened(value)}; at most {high:.10g} is allowed")


def _range(key: Key) -> str:
    low = -LARGEST if key.low is None else key.low
    high = LARGEST if key.high is None else key.high
    return f"from {low:g} to {high:.10g} is allowed"


def _shortened(value: Any) -> str:
    # An integer of some thousand digits cannot even be written out.
    if isinstance(value, int) and abs(value) > 10**30:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, tuple):
        return f"({', '.join(_shortened(element) for element in value)}{',' if len(value) == 1 else ''})"
    return repr(value)


def _check_combinations(config: ConfigDict) -> None:
    _check_sizes(config)
    train = config.train
    for path, pattern in _patterns(config):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{path}: {pattern!r} is no regular expression: {error}") from error
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
    low, high = config.augment.get("smooth_sigma", (0.0, 0.0))
    if low > high:
        raise ConfigError(f"augment.smooth_sigma: {(low, high)}; the smaller sigma comes first")
    axes = [name for name in ("data", "fsdp", "depth") if config.mesh[name] == -1]
    if len(axes) > 1 or any(config.mesh[name] == 0 for name in config.mesh):
        raise ConfigError(f"mesh: {dict(config.mesh)}; one axis at most may be -1, the others are at least 1")
    if config.task == "pretrain":
        _check_pretraining(config)
    elif config.encoder.lora_rank:
        _check_low_rank(config)
    if "class_from" in config.data and (config.data.class_from == "csv") != bool(config.data.csv):
        raise ConfigError(
            f"data.csv: {config.data.csv!r} with data.class_from {config.data.class_from}; name the table, and set "
            "class_from to csv"
        )
    if config.get("reinit_top") and not config.init_from:
        raise ConfigError("reinit_top: True without init_from; from scratch every block is drawn anew")
    if "mask" in config:
        _check_mask(config)
    if config.task == "inpaint" and config.loss.l1 + config.loss.ssim <= 0:
        raise ConfigError("loss.l1, loss.ssim: both are 0; nothing would be minimised: raise one of them")
    if "ssim" in config.loss and min(config.data.patch_size) < SSIM_WINDOW:
        raise ConfigError(f"data.patch_size: {config.data.patch_size}; SSIM needs at least {SSIM_WINDOW} voxels")


def _check_low_rank(config: ConfigDict) -> None:
    rank, name = config.encoder.lora_rank, config.model.name
    if BACKBONES[name].low_rank is None:
        able = ", ".join(other for other, backbone in BACKBONES.items() if backbone.low_rank is not None)
        raise ConfigError(
            f"encoder.lora_rank: {rank} with model.name {name!r}, whose encoder has no linear layers; possible with "
            f"{able}: use a recipe of it, or set encoder.lora_rank to 0"
        )
    if not config.init_from:
        raise ConfigError(
            f"encoder.lora_rank: {rank} without init_from; it adapts a pretrained encoder, which stays frozen: name "
            "one in init_from, or set encoder.lora_rank to 0"
        )
    if config.encoder.frozen:
        raise ConfigError(
            f"encoder.lora_rank: {rank} with encoder.frozen; low-rank adaptation freezes the encoder's own weights by "
            "itself: set encoder.frozen to False, or encoder.lora_rank to 0"
        )


def _patterns(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Path and text of every key that is a regular expression."""
    for pattern in config.init_allow:
        yield "init_allow", pattern
    if config.data.get("volume_pattern"):
        yield "data.volume_pattern", config.data.volume_pattern


def _check_sizes(config: ConfigDict) -> None:
    model = config.model
    paths = [path for path in ("patch_size", "input_size") if path in config.data]
    architecture = configured_architecture(model.to_dict())
    problem = BACKBONES[model.name].problem(architecture)
    if problem:
        raise ConfigError(f"model.{model.name}.{problem}")
    # With weights to start from, the architecture is theirs, which the task checks.
    if config.task == "pretrain" or not config.init_from:
        check_divisible(f"data.{paths[-1]}", config.data[paths[-1]], architecture=architecture)


def check_step_count(key: str, epochs: int, steps_per_epoch: int) -> None:
    """Refuses a number of epochs whose steps cannot be counted in 32 bits, as they are on the devices.

    Raises:
        ConfigError: it is too large for the steps that an epoch has.
    """
    if epochs * steps_per_epoch >= 2**31:
        raise ConfigError(
            f"{key}: {epochs} epochs of {steps_per_epoch} steps are more than 2^31 steps; "
            f"at most {(2**31 - 1) // steps_per_epoch} is possible"
        )


def check_divisible(key: str, sizes: Sequence[int], *, architecture: Architecture) -> None:
    """Refuses volumes that a backbone cannot take.

    Args:
        key: where the sizes are from, for the message.
        sizes: voxels Z, Y, X.
        architecture: `name` of the backbone and its attributes.

    Raises:
        ConfigError: a size is no multiple of what the backbone shrinks volumes by.
    """
    factor, reason = BACKBONES[architecture["name"]].divisor(architecture)
    for size in sizes:
        if size % factor:
            raise ConfigError(f"{key}: {tuple(sizes)}; each must be a multiple of {factor}, {reason}")


def _check_mask(config: ConfigDict) -> None:
    """Refuses cubes that do not tile what the network sees, or that leave none of it visible."""
    name = "input_size" if "input_size" in config.data else "patch_size"
    sizes = config.data[name]
    for block in config.mask.block_sizes:
        if any(size % block for size in sizes):
            raise ConfigError(f"mask.block_sizes: {block} does not divide data.{name} {sizes}")
        count = math.prod(size // block for size in sizes)
        if config.task == "inpaint" and max(1, round(config.mask.ratio * count)) >= count:
            raise ConfigError(
                f"mask.block_sizes: {block} with mask.ratio {config.mask.ratio:g} hides all of data.{name} {sizes}; "
                "take smaller cubes or a smaller ratio"
            )


def _check_pretraining(config: ConfigDict) -> None:
    group = config.loss.contrast_group
    if group and config.train.batch_size % group:
        raise ConfigError(
            f"loss.contrast_group: {group} does not divide train.batch_size {config.train.batch_size}; "
            "choose a divisor, or 0 for the global batch"
        )
    if config.loss.distill + config.loss.reconstruct <= 0:
        raise ConfigError("loss.distill, loss.reconstruct: both are 0; nothing would train the dense features")
