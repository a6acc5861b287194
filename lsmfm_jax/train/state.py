"""Everything that a training run carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from lsmfm_jax.train.task import PyTree, Task


class TrainState(struct.PyTreeNode):
    """The state of a run; parameters, statistics and teacher are float32.

    Attributes:
        step: optimiser steps taken, those that were skipped included.
        params: parameters.
        batch_stats: running normalisation statistics.
        teacher: exponential moving average of a part of the above, or an empty dict.
        opt_state: moments and counters of the optimiser.
        bad_in_row: non-finite steps in a row up to now.
        bad_total: non-finite steps since the start.
    """

    # Typed loosely: trees of shapes and of shardings have this structure too.
    step: Any
    params: PyTree
    batch_stats: PyTree
    teacher: PyTree
    opt_state: Any
    bad_in_row: Any
    bad_total: Any


def create_state(task: Task, optimiser: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first step; the teacher starts as a copy of the student."""
    params, batch_stats = task.init(key)
    return state_of(task, optimiser, params, batch_stats)


def state_of(task: Task, optimiser: optax.GradientTransformation, params: PyTree, batch_stats: PyTree) -> TrainState:
    """The state of a run that starts from given parameters."""
    teacher = task.teacher_of(params, batch_stats) if task.teacher_of else {}
    # A copy, not an alias: both are donated to the step, and one buffer cannot be donated twice.
    teacher = jax.tree.map(jnp.array, teacher)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        teacher=teacher,
        opt_state=optimiser.init(params),
        bad_in_row=jnp.zeros((), jnp.int32),
        bad_total=jnp.zeros((), jnp.int32),
    )


def parameter_count(params: PyTree) -> int:
    """Number of scalar parameters in a tree of arrays or shapes."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
