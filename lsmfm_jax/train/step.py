"""One optimiser step: gradients over micro-batches, update, teacher, and a guard against non-finite values."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lsmfm_jax.train.optim import Rule, freeze
from lsmfm_jax.train.state import TrainState
from lsmfm_jax.train.task import Local, PyTree, Rows, Task

Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[TrainState, Metrics]]


def build_train_step(
    task: Task,
    optimiser: optax.GradientTransformation,
    *,
    seed: int,
    rules: Sequence[Rule] = (),
    accumulate_steps: int = 1,
    teacher_decay: float = 0.0,
    teacher_updates_per_step: int = 1,
) -> Step:
    """A pure `step(state, batch, place=...) -> (state, metrics)`; `place` puts prepared rows on the mesh.

    Every draw is keyed by (seed, step, position in the global batch). The loss that joins samples sees the whole
    batch whatever the number of micro-batches: their embeddings are computed first, and the gradient of the
    joint loss in them is replayed through each micro-batch. This is exact for networks without batch statistics;
    with batch norm, statistics are those of a micro-batch.

    A step whose loss, gradient or new state is not finite leaves parameters, statistics, moments and teacher as they
    were, on every device alike; it is counted in the state. Parameters that are frozen by the `rules` of the
    optimiser have no gradient. Everything that depends on time (schedule, thaw, draws, the task's own warm-up)
    follows the one step of the state, which counts skipped steps too.
    """
    task = _with_frozen(task, rules)
    optimiser = optax.with_extra_args_support(optimiser)
    decay = teacher_decay**teacher_updates_per_step

    def step(
        state: TrainState, batch: Rows, *, place: Callable[[Rows], Rows] = lambda rows: rows
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        rows = place(task.prepare(batch, key, state.step))
        gradient = _gradient_at_once if accumulate_steps == 1 else _gradient_in_parts(accumulate_steps)
        loss, grads, batch_stats, sums = gradient(task, state, rows)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params, step=state.step)
        params = optax.apply_updates(state.params, updates)
        teacher = state.teacher
        if task.teacher_of is not None:
            student = task.teacher_of(params, batch_stats)
            teacher = optax.incremental_update(student, state.teacher, 1.0 - decay)
        grad_norm = optax.global_norm(grads)
        new = (params, batch_stats, teacher, opt_state)
        # Loss and gradient may be finite and the new state not: a rate or a moment that overflows, statistics.
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & all_finite(new)
        old = (state.params, state.batch_stats, state.teacher, state.opt_state)
        params, batch_stats, teacher, opt_state = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
        bad = (~good).astype(jnp.int32)
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            teacher=teacher,
            opt_state=opt_state,
            bad_in_row=jnp.where(good, 0, state.bad_in_row + 1),
            bad_total=state.bad_total + bad,
        )
        metrics = {"loss": loss, "grad_norm": grad_norm, "bad": bad, "bad_in_row": new_state.bad_in_row}
        return new_state, metrics | task.finish(sums)

    return step


def all_finite(tree: PyTree) -> jax.Array:
    """Whether no floating-point leaf of a tree has a NaN or an infinity; over all devices where leaves are split."""
    failed = [~jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    count = sum((one.astype(jnp.float32) for one in failed), jnp.zeros(()))
    # The root changes no answer. XLA copies cheap operations to wherever their result is used: without it the sum over
    # all leaves would be copied to the choice between old and new of each of them, and compiling the SwinUNETR's step
    # would take many minutes and gigabytes. It computes a root once.
    return jnp.sqrt(count) == 0


def _with_frozen(task: Task, rules: Sequence[Rule]) -> Task:
    """The task whose loss gives the parameters that are frozen by the rules no gradient."""

    def frozen(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(params: PyTree, *arguments: Any) -> Any:
            return function(freeze(params, rules, arguments[-1]), *arguments)

        return call

    return dataclasses.replace(task, local=frozen(task.local), joint=frozen(task.joint) if task.joint else None)


def _gradient_at_once(task: Task, state: TrainState, rows: Rows) -> tuple[jax.Array, PyTree, PyTree, Metrics]:
    def total(params: PyTree) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
        local = task.local(params, state.batch_stats, state.teacher, rows, state.step)
        if task.joint is None:
            return local.loss, (local.batch_stats, local.sums)
        loss, sums = task.joint(params, local.joint, rows, state.step)
        return local.loss + loss, (local.batch_stats, local.sums | sums)

    (loss, (batch_stats, sums)), grads = jax.value_and_grad(total, has_aux=True)(state.params)
    return loss, grads, batch_stats, sums


def _gradient_in_parts(
    parts: int,
) -> Callable[[Task, TrainState, Rows], tuple[jax.Array, PyTree, PyTree, Metrics]]:
    def gradient(task: Task, state: TrainState, rows: Rows) -> tuple[jax.Array, PyTree, PyTree, Metrics]:
        # Micro-batch i takes rows i, i + parts, ...: each device keeps the rows it holds.
        micro = jax.tree.map(
            lambda leaf: jnp.swapaxes(leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:]), 0, 1),
            rows,
        )

        def local(params: PyTree, batch_stats: PyTree, part: Rows) -> Local:
            return task.local(params, batch_stats, state.teacher, part, state.step)

        joint_loss, joint_sums, joint_grads, cotangents = _joint_first(task, state, micro, local, rows)

        def one(carry: Any, inputs: Any) -> tuple[Any, None]:
            loss, grads, batch_stats, sums = carry
            part, cotangent = inputs

            def part_loss(params: PyTree) -> tuple[jax.Array, Local]:
                out = local(params, batch_stats, part)
                if cotangent is None:
                    return out.loss, out
                replayed = jax.tree.map(jnp.vdot, out.joint, cotangent)
                return out.loss + sum(jax.tree.leaves(replayed)), out

            (_, out), part_grads = jax.value_and_grad(part_loss, has_aux=True)(state.params)
            add = lambda tree, other: jax.tree.map(jnp.add, tree, other)  # noqa: E731
            return (loss + out.loss, add(grads, part_grads), out.batch_stats, add(sums, out.sums)), None

        first = jax.tree.map(lambda leaf: leaf[0], micro)
        shapes = jax.eval_shape(lambda: local(state.params, state.batch_stats, first))
        zero_sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes.sums)
        start = (jnp.zeros(()), joint_grads, state.batch_stats, zero_sums)
        (loss, grads, batch_stats, sums), _ = jax.lax.scan(one, start, (micro, cotangents))
        return loss + joint_loss, grads, batch_stats, sums | joint_sums

    return gradient


def _joint_first(
    task: Task, state: TrainState, micro: Rows, local: Callable[..., Local], rows: Rows
) -> tuple[jax.Array, Metrics, PyTree, PyTree]:
    """The joint loss over all micro-batches, with its gradients in the parameters and in the embeddings."""
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    if task.joint is None:
        return jnp.zeros(()), {}, zeros, None

    def embed(batch_stats: PyTree, part: Rows) -> tuple[PyTree, PyTree]:
        out = local(state.params, batch_stats, part)
        return out.batch_stats, out.joint

    _, embedded = jax.lax.scan(embed, state.batch_stats, micro)
    whole = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), embedded)
    (loss, sums), (grads, whole_grads) = jax.value_and_grad(
        lambda params, joint: task.joint(params, joint, rows, state.step), argnums=(0, 1), has_aux=True
    )(state.params, whole)
    parts = jax.tree.leaves(micro)[0].shape[0]
    cotangents = jax.tree.map(
        lambda leaf: jnp.swapaxes(leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:]), 0, 1),
        whole_grads,
    )
    return loss, sums, grads, cotangents
