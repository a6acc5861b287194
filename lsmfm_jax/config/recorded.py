"""The configuration that a run was trained with, as its folder has it."""

import pathlib

from ml_collections import ConfigDict

from lsmfm_jax.config.check import ConfigError, defaults, flatten
from lsmfm_jax.files import DamagedFile, read_json


def recorded_config(folder: pathlib.Path) -> ConfigDict:
    """The configuration of a run; keys that it does not have, because they came later, are at their defaults.

    Raises:
        ConfigError: the folder has none, it is damaged, or its task is unknown.
    """
    file = folder / "config.json"
    if not file.exists():
        raise ConfigError(f"{folder}: no config.json there; name the --workdir of a run")
    try:
        values = dict(flatten(read_json(file)))
    except DamagedFile as error:
        raise ConfigError(f"{file}: damaged: {error.reason}; restore it from a copy") from error
    config = defaults(values.get("task", ""))
    for path, _ in list(flatten(config)):
        if path in values:
            place, _, name = path.rpartition(".")
            parent = config
            for key in filter(None, place.split(".")):
                parent = parent[key]
            parent[name] = tuple(values[path]) if isinstance(values[path], list) else values[path]
    return config
