"""The kernels of `attention_triton` on several devices, each for its own part of windows, batch and heads.

The compiler cannot split a kernel, it would gather its operands. So it is told how: along these three axes, as the
query is split already. Only the bias gradient is a sum over devices.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from lsmfm_jax.models import attention_triton, attention_triton_backward

# Axes of the arrays by name: only these may be split.
SPLIT = ("w", "b", "h")
TOKENS, LINE, BIAS, REGIONS = "w b h n d", "w b h n", "h n m", "w n"


def supported(query: Float[Array, "w b h n d"], bias: Float[Array, "h n n"]) -> bool:
    """Whether the kernels compute in these types."""
    return str(query.dtype) in attention_triton.KERNEL_TYPES and bias.dtype == "float32"


def forward(
    query: Float[Array, "w b h n d"],
    key: Float[Array, "w b h n d"],
    value: Float[Array, "w b h n d"],
    bias: Float[Array, "h n n"],
    regions: Int[Array, "w n"] | None,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "w b h n d"], Float[Array, "w b h n 1"]]:
    """Output, and each query's log-sum-exp of scores; as `attention_triton.forward`."""

    def kernel(query: Array, key: Array, value: Array, bias: Array, *regions: Array) -> tuple[Array, Array]:
        return attention_triton.forward(query, key, value, bias, *(regions or (None,)), interpret=interpret)

    names = [TOKENS] * 3 + [BIAS] + [REGIONS] * (regions is not None)
    operands = (query, key, value, bias, *(() if regions is None else (regions,)))
    out, total = _split(kernel, operands, names, (TOKENS, LINE))
    return out, total[..., None]


def backward(
    query: Float[Array, "w b h n d"],
    key: Float[Array, "w b h n d"],
    value: Float[Array, "w b h n d"],
    bias: Float[Array, "h n n"],
    regions: Int[Array, "w n"] | None,
    total: Float[Array, "w b h n 1"],
    inner: Float[Array, "w b h n 1"],
    gradient: Float[Array, "w b h n d"],
    *,
    interpret: bool = False,
) -> tuple[Array, Array, Array, Float[Array, "h n n"]]:
    """Gradients of query, key, value and bias; as `attention_triton_backward.backward`."""

    def kernel(query: Array, key: Array, value: Array, bias: Array, *others: Array) -> tuple[Array, ...]:
        total, inner, gradient, *regions = others
        operands = (query, key, value, bias, *(regions or (None,)), total, inner, gradient)
        return attention_triton_backward.backward(*operands, interpret=interpret)

    names = [TOKENS] * 3 + [BIAS, LINE, LINE, TOKENS] + [REGIONS] * (regions is not None)
    operands = (query, key, value, bias, total[..., 0], inner[..., 0], gradient)
    operands += () if regions is None else (regions,)
    return _split(kernel, operands, names, (TOKENS, TOKENS, TOKENS, BIAS))


def _split(
    function: Callable[..., tuple[Array, ...]], operands: Sequence[Array], names: Sequence[str], results: Sequence[str]
) -> tuple[Array, ...]:
    """Calls a function on each device for its own part; results without windows and batch are summed over them.

    Args:
        function: of arrays, to arrays.
        operands: the query first.
        names: of their axes.
        results: names of the axes of what it returns.
    """

    def partition(mesh: Any, arguments: Sequence[Any], _: Any) -> tuple[Any, ...]:
        query = arguments[0]
        given = zip(SPLIT, query.shape, (*query.sharding.spec, None, None, None), strict=False)
        # Devices whose number does not divide an axis all compute the whole of it.
        split = {
            name: axes for name, size, axes in given if size % math.prod(mesh.shape[axis] for axis in _flat(axes)) == 0
        }
        over = tuple(axis for name in ("w", "b") for axis in _flat(split.get(name)))

        def placed(axes: str) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec(*(split.get(name) for name in axes.split())))

        def part(*operands: Array) -> tuple[Array, ...]:
            found = zip(function(*operands), results, strict=True)
            return tuple(jax.lax.psum(x, over) if over and axes == BIAS else x for x, axes in found)

        return mesh, part, tuple(map(placed, results)), tuple(map(placed, names))

    call = custom_partitioning(lambda *operands: tuple(function(*operands)))
    call.def_partition(
        partition,
        sharding_rule=f"{', '.join(names)} -> {', '.join(results)}",
        need_replication_factors=("n", "d", "m"),
    )
    return call(*operands)


def _flat(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Mesh axes of one entry of a partition."""
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
