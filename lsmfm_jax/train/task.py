"""What a task hands to the training loop: plain functions, and nothing the loop must know about them."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PyTree = Any
Rows = dict[str, jax.Array]


class Local(NamedTuple):
    """What one micro-batch contributes by itself.

    Attributes:
        loss: scalar; the contributions of all micro-batches add up to the loss of the batch.
        batch_stats: normalisation statistics after this micro-batch.
        sums: values that add up over micro-batches, made into metrics by `Task.finish`.
        joint: per-sample arrays on which `Task.joint` computes a loss over the whole batch, or None.
    """

    loss: jax.Array
    batch_stats: PyTree
    sums: dict[str, jax.Array]
    joint: PyTree


@dataclasses.dataclass(frozen=True)
class Task:
    """The functions of a task; all but `draw` and `summarise` are pure and run under jit.

    Attributes:
        init: `key -> (params, batch_stats)`.
        prepare: `(batch, key, step) -> rows`; scales, resizes, augments and masks the whole batch. Every row
            array has the batch as its leading axis, so that rows can be split into micro-batches.
        local: `(params, batch_stats, teacher, rows, step) -> Local`, differentiated in `params`.
        joint: `(params, joint, rows, step) -> (loss, sums)` over the whole batch, or None where samples do
            not meet.
        finish: `sums -> metrics`, scalars.
        teacher_of: `(params, batch_stats) -> teacher`, the part that is averaged over time, or None.
        prepare_validation: `batch -> rows` of a validation batch, resized and masked but not augmented; the batch
            itself where nothing is to be done.
        evaluate: `(params, batch_stats, teacher, rows) -> outputs` of one validation batch.
        summarise: `list of outputs (numpy) -> metrics` of a validation.
        picture: `(params, batch_stats, teacher, rows) -> arrays` to draw, of validation rows.
        draw: `(arrays (numpy), path) -> None`, writes a PNG.
    """

    init: Callable[[jax.Array], tuple[PyTree, PyTree]]
    prepare: Callable[[Rows, jax.Array, jax.Array], Rows]
    local: Callable[..., Local]
    finish: Callable[[dict[str, jax.Array]], dict[str, jax.Array]]
    evaluate: Callable[..., PyTree]
    summarise: Callable[[list[PyTree]], dict[str, float]]
    prepare_validation: Callable[[Rows], Rows] = lambda batch: batch
    joint: Callable[..., tuple[jax.Array, dict[str, jax.Array]]] | None = None
    teacher_of: Callable[[PyTree, PyTree], PyTree] | None = None
    picture: Callable[..., PyTree] | None = None
    draw: Callable[[PyTree, Any], None] | None = None
