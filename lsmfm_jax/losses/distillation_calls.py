"""The calls of the kernels of distillation: which part of each array a program sees, and what a call costs."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array

from lsmfm_jax.losses.distillation_kernel import forward_body, tail_body, values_body
from lsmfm_jax.losses.linear_tail import Tail
from lsmfm_jax.losses.voxel_blocks import STATISTICS, VOXELS, blocks, padded, tiles


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How many channels a program holds at a time, and by how many warps of 32 threads.

    Chosen from the compiler's word on registers (ptxas, compute capability 9.0) so that nothing is spilled.
    """

    tile: int
    warps: int


# All channels of a UNet.
NO_TAIL = Tiling(128, 8)
# Products of 16-bit numbers run on the matrix units; two or three programs fit on a multiprocessor.
NARROW = Tiling(64, 4)
# What stays in registers for a whole plane is the tail's gradient; wide tiles read the plane less often.
NARROW_TAIL = Tiling(128, 8)
# Exact products of float32 run without the matrix units, on many registers.
WIDE = Tiling(16, 8)


def forward(
    student: Array,
    student_tail: Tail | None,
    teacher: Array,
    teacher_tail: Tail | None,
    mask: Array,
    *,
    temperatures: tuple[float, float],
    interpret: bool = False,
) -> tuple[Array, Array, Array]:
    """Sums over each block's masked voxels, and what the backward pass needs of each voxel.

    Args:
        student: trunk values, `B Z Y X F`, float32 or a 16-bit type.
        student_tail: kernel and bias, or None.
        teacher: as the student.
        teacher_tail: as the student's.
        mask: `B Z Y X`.
        temperatures: of student and teacher.
        interpret: run by JAX's own operations, on any device.

    Returns:
        Divergence and entropy, `B Z 2 N`; the teacher's probabilities, `B Z N D`; statistics, `B Z 5 Y X`, undefined
        where the mask is False.
    """
    operands = _operands(student, student_tail, teacher, teacher_tail, mask)
    channels, planes, count = _channels(student, student_tail), mask.shape[:2], blocks(mask.shape[2:])
    results = ((2, count), (count, channels), (STATISTICS, *mask.shape[2:]))
    tiling = _tiling(student, student_tail, teacher_tail)
    body = functools.partial(
        forward_body,
        tails=_tails(student_tail, teacher_tail),
        channels=channels,
        temperatures=temperatures,
        tile=tiling.tile,
    )
    # In the first pass, in the second, and the teacher's in the third; once where all channels are one tile.
    times = (2, 3) if channels > tiling.tile else (1, 1)
    return _call(
        body,
        "distillation_forward",
        operands,
        [jax.ShapeDtypeStruct((*planes, *result), jnp.float32) for result in results],
        first=count,
        warps=tiling.warps,
        products=sum(
            time * _product_operations(values, tail, mask)
            for time, values, tail in zip(times, (student, teacher), (student_tail, teacher_tail), strict=True)
        ),
        interpret=interpret,
    )


def backward(
    student: Array,
    student_tail: Tail | None,
    teacher: Array,
    teacher_tail: Tail | None,
    mask: Array,
    statistics: Array,
    factor: Array,
    *,
    temperatures: tuple[float, float],
    interpret: bool = False,
) -> tuple[Array, ...]:
    """Gradients of `factor`, a number for each sample, times the divergence.

    Returns:
        Gradient in the student's values, `B Z Y X F`; with a tail also in its kernel, `B Z F D`, and bias, `B Z D`,
        the parts of each plane, float32.
    """
    operands = [*_operands(student, student_tail, teacher, teacher_tail, mask), statistics, factor]
    channels = _channels(student, student_tail)
    tiling = _tiling(student, student_tail, teacher_tail)
    settings = {"tails": _tails(student_tail, teacher_tail), "channels": channels, "temperature": temperatures[0]}
    each = [_product_operations(*pair, mask) for pair in ((student, student_tail), (teacher, teacher_tail))]
    values = _call(
        functools.partial(values_body, **settings, tile=tiling.tile),
        "distillation_backward_values",
        operands,
        [jax.ShapeDtypeStruct(student.shape, student.dtype)],
        first=blocks(mask.shape[2:]),
        warps=tiling.warps,
        products=2 * each[0] + each[1],
        interpret=interpret,
    )
    if student_tail is None:
        return tuple(values)
    tiling = NARROW_TAIL if tiling == NARROW else tiling
    count = tiles(channels, tiling.tile)[1]
    shapes = (student_tail[0].shape, student_tail[1].shape)
    tail = _call(
        functools.partial(tail_body, **settings, tile=tiling.tile),
        "distillation_backward_tail",
        operands,
        [jax.ShapeDtypeStruct((*mask.shape[:2], *shape), jnp.float32) for shape in shapes],
        first=count,
        warps=tiling.warps,
        products=2 * each[0] + each[1],
        reads=count,
        interpret=interpret,
    )
    return *values, *tail


def _operands(
    student: Array, student_tail: Tail | None, teacher: Array, teacher_tail: Tail | None, mask: Array
) -> list:
    operands = []
    for values, tail in ((student, student_tail), (teacher, teacher_tail)):
        operands.append(values)
        if tail is not None:
            # The product runs in the values' type, as in the plain form.
            operands += [tail[0].astype(values.dtype), tail[1]]
    return [*operands, mask.astype(jnp.int8)]


def _channels(values: Array, tail: Tail | None) -> int:
    return values.shape[-1] if tail is None else tail[0].shape[-1]


def _tiling(values: Array, *tails: Tail | None) -> Tiling:
    if tails == (None, None):
        return NO_TAIL
    return WIDE if values.dtype == jnp.float32 else NARROW


def _tails(*tails: Tail | None) -> tuple[bool, ...]:
    return tuple(tail is not None for tail in tails)


def _product_operations(values: Array, tail: Tail | None, mask: Array) -> int:
    """Operations of making all dense features of a network once, padding included."""
    if tail is None:
        return 0
    voxels = math.prod(mask.shape[:2]) * blocks(mask.shape[2:]) * VOXELS
    return 2 * voxels * padded(values.shape[-1]) * padded(tail[0].shape[-1])


def _call(
    body: Any,
    name: str,
    operands: Sequence[Array],
    results: Sequence[jax.ShapeDtypeStruct],
    *,
    first: int,
    warps: int,
    products: int,
    reads: int = 1,
    interpret: bool,
) -> tuple[Array, ...]:
    """Runs a kernel for every plane, `first` times each.

    Args:
        body: of the kernel.
        name: of the kernel, for profiles.
        operands: those of three axes and more begin with batch and Z, and so does the last, a number for each sample.
        results: begin with batch and Z.
        first: programs of a plane.
        warps: of a program.
        products: operations of matrix products, if no block is skipped; for benchmarks/kernels.py.
        reads: how often each volume is read.
        interpret: run by JAX's own operations.
    """
    mask_shape = next(operand.shape for operand in operands if operand.dtype == jnp.int8)
    batch, depth = mask_shape[:2]

    def spec(array: Any) -> pl.BlockSpec:
        zeros = (0,) * (len(array.shape) - 2)
        if array.shape[:2] == (batch, depth) and len(array.shape) > 2:
            return pl.BlockSpec((None, None, *array.shape[2:]), lambda _, z, b: (b, z, *zeros))
        return pl.BlockSpec(array.shape, lambda *_: (0,) * len(array.shape))

    read = sum(operand.size * operand.dtype.itemsize for operand in operands) * reads
    written = sum(math.prod(result.shape) * result.dtype.itemsize for result in results)
    return pl.pallas_call(
        body,
        grid=(first, depth, batch),
        in_specs=[spec(operand) for operand in operands],
        out_specs=[spec(result) for result in results],
        out_shape=list(results),
        compiler_params=plt.CompilerParams(num_warps=warps, num_stages=2),
        interpret=interpret,
        name=name,
        # The compiled program shows them; of all that is read and written, masked or not.
        metadata={"operations": str(products), "bytes": str(read + written)},
    )(*operands)
