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
from lsmfm_jax.losses.voxel_blocks import STATISTICS, VOXELS, Layout, blocks, padded, tiles

# An array or its shape, and what a program sees of it; see `_call`.
Placed = tuple[str, Any]


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
# Masks hide cubes of 4, 8 or 16: a square meets fewer of them than a row does, and more blocks are skipped.
SQUARE = (8, 8)
# Memory comes in pieces of 32 bytes, 16 voxels of a channel. For wide values that counts for more.
FLAT = (4, 16)


def forward(
    student: Array,
    student_tail: Tail | None,
    teacher: Array,
    teacher_tail: Tail | None,
    mask: Array,
    *,
    temperatures: tuple[float, float],
    channels_first: bool = False,
    interpret: bool = False,
) -> tuple[Array, Array, Array]:
    """Sums over each block's masked voxels, and what the backward pass needs of each voxel.

    Args:
        student: trunk values, `B Z Y X F` or `B F Z Y X`, float32 or a 16-bit type.
        student_tail: kernel and bias, or None.
        teacher: as the student.
        teacher_tail: as the student's.
        mask: `B Z Y X`.
        temperatures: of student and teacher.
        channels_first: what values are.
        interpret: run by JAX's own operations, on any device.

    Returns:
        Divergence and entropy, `B Z 2 N`; the teacher's probabilities, `B Z N D`; statistics, `B Z 5 Y X`, undefined
        in blocks without masked voxels.
    """
    operands = _operands(student, student_tail, teacher, teacher_tail, mask, channels_first=channels_first)
    layout = _layout(channels_first, student_tail)
    channels, count = _channels(student, student_tail, layout), blocks(mask.shape[2:], layout.edges)
    results = ((2, count), (count, channels), (STATISTICS, *mask.shape[2:]))
    tiling = _tiling(student, student_tail, teacher_tail)
    body = functools.partial(
        forward_body,
        tails=_tails(student_tail, teacher_tail),
        channels=channels,
        layout=layout,
        temperatures=temperatures,
        tile=tiling.tile,
    )
    # In the first pass, in the second, and the teacher's in the third; once where all channels are one tile.
    times = (2, 3) if channels > tiling.tile else (1, 1)
    return _call(
        body,
        "distillation_forward",
        operands,
        [("plane", jax.ShapeDtypeStruct((*mask.shape[:2], *result), jnp.float32)) for result in results],
        first=count,
        warps=tiling.warps,
        products=sum(
            time * _product_operations(tail, mask, layout)
            for time, tail in zip(times, (student_tail, teacher_tail), strict=True)
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
    channels_first: bool = False,
    interpret: bool = False,
) -> tuple[Array, ...]:
    """Gradients of `factor`, a number for each sample, times the divergence.

    Returns:
        Gradient in the student's values, as they are; with a tail also in its kernel, `B Z F D`, and bias, `B Z D`,
        the parts of each plane, float32.
    """
    operands = _operands(student, student_tail, teacher, teacher_tail, mask, channels_first=channels_first)
    operands += [("plane", statistics), ("whole", factor)]
    layout = _layout(channels_first, student_tail)
    channels = _channels(student, student_tail, layout)
    tiling = _tiling(student, student_tail, teacher_tail)
    settings = {
        "tails": _tails(student_tail, teacher_tail),
        "channels": channels,
        "layout": layout,
        "temperature": temperatures[0],
    }
    each = [_product_operations(tail, mask, layout) for tail in (student_tail, teacher_tail)]
    values = _call(
        functools.partial(values_body, **settings, tile=tiling.tile),
        "distillation_backward_values",
        operands,
        [(_kind(channels_first), jax.ShapeDtypeStruct(student.shape, student.dtype))],
        first=blocks(mask.shape[2:], layout.edges),
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
        [("plane", jax.ShapeDtypeStruct((*mask.shape[:2], *shape), jnp.float32)) for shape in shapes],
        first=count,
        warps=tiling.warps,
        products=2 * each[0] + each[1],
        reads=count,
        interpret=interpret,
    )
    return *values, *tail


def _operands(
    student: Array,
    student_tail: Tail | None,
    teacher: Array,
    teacher_tail: Tail | None,
    mask: Array,
    *,
    channels_first: bool,
) -> list[Placed]:
    operands: list[Placed] = []
    for values, tail in ((student, student_tail), (teacher, teacher_tail)):
        operands.append((_kind(channels_first), values))
        if tail is not None:
            # The product runs in the values' type, as in the plain form.
            operands += [("whole", tail[0].astype(values.dtype)), ("whole", tail[1])]
    return [*operands, ("plane", mask.astype(jnp.int8))]


def _kind(channels_first: bool) -> str:
    return "first" if channels_first else "last"


def _layout(channels_first: bool, tail: Tail | None) -> Layout:
    return Layout(channels_first, FLAT if channels_first and tail is None else SQUARE)


def _channels(values: Array, tail: Tail | None, layout: Layout) -> int:
    return values.shape[1 if layout.channels_first else -1] if tail is None else tail[0].shape[-1]


def _tiling(values: Array, *tails: Tail | None) -> Tiling:
    if tails == (None, None):
        return NO_TAIL
    return WIDE if values.dtype == jnp.float32 else NARROW


def _tails(*tails: Tail | None) -> tuple[bool, ...]:
    return tuple(tail is not None for tail in tails)


def _product_operations(tail: Tail | None, mask: Array, layout: Layout) -> int:
    """Operations of making all dense features of a network once, padding included."""
    if tail is None:
        return 0
    voxels = math.prod(mask.shape[:2]) * blocks(mask.shape[2:], layout.edges) * VOXELS
    return 2 * voxels * math.prod(map(padded, tail[0].shape))


def _call(
    body: Any,
    name: str,
    operands: Sequence[Placed],
    results: Sequence[Placed],
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
        operands: with what a program sees of each: values (channels "first" or "last") and arrays of planes (`B Z ...`)
            its own plane, others the "whole".
        results: shapes, the same way.
        first: programs of a plane.
        warps: of a program.
        products: operations of matrix products, if no block is skipped; for benchmarks/kernels.py.
        reads: how often the operands are read.
        interpret: run by JAX's own operations.
    """
    batch, depth = next(array.shape[:2] for kind, array in operands if kind == "plane")
    read = sum(array.size * array.dtype.itemsize for _, array in operands) * reads
    written = sum(math.prod(result.shape) * result.dtype.itemsize for _, result in results)
    return pl.pallas_call(
        body,
        grid=(first, depth, batch),
        in_specs=[_spec(*operand) for operand in operands],
        out_specs=[_spec(*result) for result in results],
        out_shape=[shape for _, shape in results],
        compiler_params=plt.CompilerParams(num_warps=warps, num_stages=2),
        interpret=interpret,
        name=name,
        # The compiled program shows them; of all that is read and written, masked or not.
        metadata={"operations": str(products), "bytes": str(read + written)},
    )(*(array for _, array in operands))


def _spec(kind: str, array: Any) -> pl.BlockSpec:
    shape = array.shape
    if kind == "whole":
        return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))
    if kind == "first":
        return pl.BlockSpec((None, shape[1], None, *shape[3:]), lambda _, z, b: (b, 0, z, 0, 0))
    return pl.BlockSpec((None, None, *shape[2:]), lambda _, z, b: (b, z, *(0,) * (len(shape) - 2)))
