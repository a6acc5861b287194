"""Judging masks, label images or points of any tool against labels."""

from lsmfm_jax.evaluate.folders import evaluate_folders
from lsmfm_jax.evaluate.pair import are_volumes
from lsmfm_jax.evaluate.settings import NAMES
from lsmfm_jax.evaluate.table import EMPTY, ROLLED, format_table
from lsmfm_jax.evaluate.volumes import evaluate_volumes

__all__ = ["EMPTY", "NAMES", "ROLLED", "are_volumes", "evaluate_folders", "evaluate_volumes", "format_table"]
