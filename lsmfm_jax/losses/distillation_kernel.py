"""Distillation on NVIDIA cards: logits, softmax and divergence of a block of voxels in one kernel, nothing in between.

What `pretrain.distillation` does slab by slab through memory, these kernels (Pallas, by Triton) do for 64 voxels at a
time in registers. A block without masked voxels is skipped, and not read. Softmax needs three passes over the channels:
norm and maximum, sums of exponentials, the teacher's probabilities. Features are made anew in each, in tiles of 64
channels or so; where all channels are one tile they are kept. No sum is shared between blocks, so that a result has the
same bits each time: each block, or plane, writes its part and XLA adds the parts.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array

from lsmfm_jax.losses.voxel_blocks import (
    VOXELS,
    Block,
    Layout,
    Network,
    blocks,
    filled,
    inverse_norm,
    padded,
    product,
    row_sums,
    tiles,
)

Refs = tuple[Any, ...]


def _split(refs: Refs, tails: tuple[bool, bool]) -> tuple[Refs, Refs, Refs]:
    """The references of student and teacher, with their tails, and the others."""
    first = 3 if tails[0] else 1
    second = first + (3 if tails[1] else 1)
    return refs[:first], refs[first:second], refs[second:]


def forward_body(
    *refs: Any, tails: tuple[bool, bool], channels: int, temperatures: tuple[float, float], tile: int, layout: Layout
) -> None:
    """Sums and statistics of a block of voxels."""
    student_refs, teacher_refs, (mask, sums, probability, statistics) = _split(refs, tails)
    number = pl.program_id(0)
    block = Block(mask, number, layout)

    @pl.when(jnp.logical_not(block.wanted))
    def _() -> None:
        sums[0, number] = 0.0
        sums[1, number] = 0.0
        size, count = tiles(channels, tile)
        for i in range(count):
            column = i * size + jnp.arange(size)
            plt.store(probability.at[number, column], jnp.zeros(size, jnp.float32), mask=column < channels)

    @pl.when(block.wanted)
    def _() -> None:
        student, teacher = (Network(one, block, channels, tile) for one in (student_refs, teacher_refs))

        def measure(start: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            found = []
            for network, (square, top) in zip((student, teacher), (carry[:2], carry[2:]), strict=True):
                features = network.tile(start)
                high = jnp.max(network.real(start, features, -jnp.inf), axis=1, keepdims=True)
                found += [square + row_sums(features * features), jnp.maximum(top, high)]
            return tuple(found)

        lowest = float(jnp.finfo(jnp.float32).min)
        sizes = student.scan(measure, (filled(), filled(lowest), filled(), filled(lowest)))
        (by_student, top_student), (by_teacher, top_teacher) = (
            (inverse_norm(square) / temperature, top)
            for square, top, temperature in zip(sizes[::2], sizes[1::2], temperatures, strict=True)
        )
        top_student, top_teacher = top_student * by_student, top_teacher * by_teacher

        def exponentials(start: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            z_student = student.tile(start) * by_student - top_student
            z_teacher = teacher.tile(start) * by_teacher - top_teacher
            e_student = student.real(start, jnp.exp(z_student), 0.0)
            e_teacher = teacher.real(start, jnp.exp(z_teacher), 0.0)
            new = (
                e_student,
                e_teacher,
                e_student * z_student,
                e_teacher * z_teacher,
                e_teacher * (z_teacher - z_student),
            )
            return tuple(one + row_sums(more) for one, more in zip(carry, new, strict=True))

        totals = student.scan(exponentials, (filled(),) * 5)
        total_student, total_teacher, mean_student, mean_teacher, gap = totals
        log_student, log_teacher = jnp.log(total_student), jnp.log(total_teacher)
        weight = block.weight[:, None]
        sums[0, number] = jnp.sum(weight * (gap / total_teacher - log_teacher + log_student))
        sums[1, number] = jnp.sum(weight * (log_teacher - mean_teacher / total_teacher))

        share = weight / total_teacher

        def probabilities(start: Any, carry: Any) -> Any:
            e_teacher = jnp.exp(teacher.tile(start) * by_teacher - top_teacher)
            column = teacher.columns(start)
            plt.store(probability.at[number, column], jnp.sum(e_teacher * share, axis=0), mask=column < channels)
            return carry

        teacher.scan(probabilities, 0)
        # The student's mean logit under its own distribution less that under the teacher's.
        difference = mean_student / total_student - (mean_teacher - gap) / total_teacher
        lse_student, lse_teacher = top_student + log_student, top_teacher + log_teacher
        block.write_statistics(statistics, [by_student, by_teacher, lse_student, lse_teacher, difference])


def _gradient_tile(
    student: Network, teacher: Network, start: Any, statistics: list[Array], temperature: float
) -> Array:
    """Gradient of the divergence in a tile of the student's dense features, zero at voxels that are not masked.

    With z the student's logits and p, q both distributions, the gradient in z is p - q; that in the features
    loses the part along the features themselves, which their norm takes away.
    """
    by_student, by_teacher, lse_student, lse_teacher, difference = statistics
    logits = student.tile(start) * by_student
    gap = jnp.exp(logits - lse_student) - jnp.exp(teacher.tile(start) * by_teacher - lse_teacher)
    # Features have the norm one before the temperature divides them.
    gradient = by_student * (gap - logits * (temperature**2 * difference))
    return student.real(start, gradient * student.block.weight[:, None], 0.0)


def values_body(
    *refs: Any, tails: tuple[bool, bool], channels: int, temperature: float, tile: int, layout: Layout
) -> None:
    """Gradient in the student's values, a block of voxels."""
    student_refs, teacher_refs, (mask, statistics, factor, gradient) = _split(refs, tails)
    block, scale = Block(mask, pl.program_id(0), layout), factor[pl.program_id(2)]
    width = padded(block.width(gradient)) if tails[0] else tiles(channels, tile)[0]

    @pl.when(jnp.logical_not(block.wanted))
    def _() -> None:
        for start in range(0, block.width(gradient), width):
            block.write(gradient, start + jnp.arange(width), jnp.zeros((VOXELS, width), jnp.float32))

    @pl.when(block.wanted)
    def _() -> None:
        student, teacher = (Network(one, block, channels, tile) for one in (student_refs, teacher_refs))
        known = block.statistics(statistics)

        def write(start: Any, carry: Any) -> Any:
            new = _gradient_tile(student, teacher, start, known, temperature)
            block.write(gradient, student.columns(start), new * scale)
            return carry

        def add(start: Any, total: Array) -> Array:
            new = _gradient_tile(student, teacher, start, known, temperature)
            kernel = student.kernel(start)
            return total + product(new.astype(kernel.dtype), kernel.T)

        if tails[0]:
            total = student.scan(add, jnp.zeros((VOXELS, width), jnp.float32))
            block.write(gradient, jnp.arange(width), total * scale)
        else:
            student.scan(write, 0)


def tail_body(
    *refs: Any, tails: tuple[bool, bool], channels: int, temperature: float, tile: int, layout: Layout
) -> None:
    """Gradient in a tile of the student's tail, from one plane of voxels."""
    student_refs, teacher_refs, (mask, statistics, factor, kernel, bias) = _split(refs, tails)
    size, _ = tiles(channels, tile)
    start = pl.program_id(0) * size
    rows = padded(kernel.shape[0])

    def add(number: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        block = Block(mask, number, layout)

        def masked(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            student, teacher = (Network(one, block, channels, tile) for one in (student_refs, teacher_refs))
            gradient = _gradient_tile(student, teacher, start, block.statistics(statistics), temperature)
            narrow = gradient.astype(student.trunk.dtype)
            return carry[0] + product(student.trunk.T, narrow), carry[1] + jnp.sum(gradient, axis=0)

        return lax.cond(block.wanted, masked, lambda carry: carry, carry)

    begin = jnp.zeros((rows, size), jnp.float32), jnp.zeros(size, jnp.float32)
    new_kernel, new_bias = lax.fori_loop(0, blocks(mask.shape, layout.edges), add, begin)
    row, column, scale = jnp.arange(rows), start + jnp.arange(size), factor[pl.program_id(2)]
    known = (row < kernel.shape[0])[:, None] & (column < channels)[None, :]
    plt.store(kernel.at[row[:, None], column[None, :]], new_kernel * scale, mask=known)
    plt.store(bias.at[column], new_bias * scale, mask=column < channels)
