"""Configuration files: `RECIPE[:variant]` with `get_config(variant)`, and overrides `--config.a.b=value`."""

import difflib
import json
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from lsmfm_jax.config.check import ConfigError, flatten, schema, unknown_key_message, validate
from lsmfm_jax.config.recipes import find_recipe
from lsmfm_jax.config.schema import TASKS


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a configuration file, applies overrides and validates the result.

    Args:
        spec: name of a recipe of the package, or path of a Python file that defines
            `get_config(variant: str = "")`; with `:variant` behind it or not.
        overrides: arguments such as `--config.train.batch_size=8`; tuples as `"--config.a.b=(1, 2)"`. The last one of
            a key counts.

    Returns:
        A locked configuration.

    Raises:
        ConfigError: the file is missing or wrong, a key is unknown, a value has the wrong type or is not allowed.
    """
    recipe, colon, variant = spec.partition(":")
    flag = f"--config={find_recipe(recipe)}{colon}{variant}"
    config = _parse([flag], spec)
    known = [key for key, _ in flatten(config)]
    last = {}
    for override in overrides:
        name, equals, _ = override.removeprefix("--config.").partition("=")
        if not override.startswith("--config.") or not equals:
            near = difflib.get_close_matches(override.partition("=")[0], [f"--config.{key}" for key in known], n=1)
            hint = f"; did you mean {near[0]}=...?" if near else ""
            raise ConfigError(f"{override}: not understood; write --config.key=value{hint}")
        if name not in known:
            raise ConfigError(unknown_key_message(name, known))
        # Of a tuple that is given twice the library would make one of both.
        last[name] = override
    config = _parse([flag, *last.values()], spec)
    validate(config)
    return config


def _parse(arguments: list[str], spec: str) -> ConfigDict:
    values = flags.FlagValues()
    arguments = ["lsmfm", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True, sys_argv=arguments)
    try:
        values(arguments)
    except Exception as error:  # a recipe is a person's code and may raise anything
        cause = _innermost(error)
        if isinstance(cause, ConfigError):
            raise ConfigError(f"--config={spec}: {cause}") from error
        if isinstance(error, flags.Error) and "parsing config file" not in str(error):
            raise ConfigError(str(error).removeprefix("flag --config.")) from error
        frames = [] if isinstance(cause, SyntaxError) else traceback.extract_tb(cause.__traceback__)
        line = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        raise ConfigError(f"--config={spec}: {type(cause).__name__}: {' '.join(str(cause).split())}{line}") from error
    config = values.config
    config.lock()
    return config


def _innermost(error: BaseException) -> BaseException:
    """The error that a recipe raised itself; the library wraps it into a text with its whole traceback."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def unknown_variant(variant: str, allowed: Sequence[str]) -> ConfigError:
    """The error of a recipe that has no such variant."""
    return ConfigError(
        f"variant {variant!r} is unknown; allowed: {', '.join(name for name in allowed if name)}, or none"
    )


def as_json(config: ConfigDict) -> dict[str, Any]:
    """A configuration as plain JSON values (tuples become lists)."""
    return json.loads(config.to_json_best_effort())


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each key whose value differs: `train.batch_size: 16 -> 8`.

    A key that `old` lacks, because it was written before there was one, counts as being at its default.
    """
    before, after = dict(flatten(old)), dict(flatten(new))
    if old.get("task") in TASKS:
        added = {path: key.default for path, key in flatten(schema(old["task"])) if path in after}
        before = added | before
    return [
        f"{key}: {before.get(key, 'absent')!r} -> {after.get(key, 'absent')!r}"
        for key in sorted(before.keys() | after.keys())
        if _as_list(before.get(key, "absent")) != _as_list(after.get(key, "absent"))
    ]


def _as_list(value: Any) -> Any:
    """Tuples as lists, which is what JSON makes of them."""
    return list(value) if isinstance(value, tuple) else value
