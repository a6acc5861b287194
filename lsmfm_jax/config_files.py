"""Configuration files: `FILE.py[:variant]` with `get_config(variant)`, and overrides `--config.a.b=value`."""

import difflib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from lsmfm_jax.config import ConfigError, flatten, unknown_key_message, validate


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a configuration file, applies overrides and validates the result.

    Args:
        spec: path of a Python file that defines `get_config(variant: str = "")`, with `:variant` behind it or not.
        overrides: arguments such as `--config.train.batch_size=8`; tuples as `"--config.a.b=(1, 2)"`.

    Returns:
        A locked configuration.

    Raises:
        ConfigError: the file is missing or wrong, a key is unknown, a value has the wrong type or is not allowed.
    """
    path = pathlib.Path(spec.partition(":")[0])
    if not path.is_file():
        near = sorted(str(other) for other in pathlib.Path("configs").glob("*.py"))
        raise ConfigError(f"--config: {path} is not a file; recipes here: {', '.join(near) or 'none'}")
    config = _parse([f"--config={spec}"], spec)
    known = [key for key, _ in flatten(config)]
    for override in overrides:
        name, equals, _ = override.removeprefix("--config.").partition("=")
        if not override.startswith("--config.") or not equals:
            near = difflib.get_close_matches(override.partition("=")[0], [f"--config.{key}" for key in known], n=1)
            hint = f"; did you mean {near[0]}=...?" if near else ""
            raise ConfigError(f"{override}: not understood; write --config.key=value{hint}")
        if name not in known:
            raise ConfigError(unknown_key_message(name, known))
    config = _parse([f"--config={spec}", *overrides], spec)
    validate(config)
    return config


def _parse(arguments: list[str], spec: str) -> ConfigDict:
    values = flags.FlagValues()
    arguments = ["lsmfm", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True, sys_argv=arguments)
    try:
        values(arguments)
    except flags.Error as error:
        raise ConfigError(str(error).removeprefix("flag --config.")) from error
    except (SyntaxError, AttributeError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"--config={spec}: {type(error).__name__}: {error}") from error
    config = values.config
    config.lock()
    return config


def unknown_variant(variant: str, allowed: Sequence[str]) -> ConfigError:
    """The error of a recipe that has no such variant."""
    return ConfigError(f"variant {variant!r} is unknown; allowed: {', '.join(allowed)}")


def as_json(config: ConfigDict) -> dict[str, Any]:
    """A configuration as plain JSON values (tuples become lists)."""
    return json.loads(config.to_json_best_effort())


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each key whose value differs: `train.batch_size: 16 -> 8`."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return [
        f"{key}: {before.get(key, 'absent')!r} -> {after.get(key, 'absent')!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, "absent") != after.get(key, "absent")
    ]
