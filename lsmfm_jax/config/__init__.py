"""Configurations: the schema of every key, what is allowed, and recipes read from files. Imports no JAX."""

from lsmfm_jax.config.check import (
    ConfigError,
    check_divisible,
    check_step_count,
    defaults,
    flatten,
    schema,
    unknown_key_message,
    validate,
)
from lsmfm_jax.config.load import load_config, unknown_variant
from lsmfm_jax.config.recipes import list_recipes
from lsmfm_jax.config.recorded import recorded_config

__all__ = [
    "ConfigError",
    "check_divisible",
    "check_step_count",
    "defaults",
    "flatten",
    "list_recipes",
    "load_config",
    "recorded_config",
    "schema",
    "unknown_key_message",
    "unknown_variant",
    "validate",
]
