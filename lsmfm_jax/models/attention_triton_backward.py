"""Gradients of attention within windows, three kernels for NVIDIA cards; see `attention_triton`.

Weights are computed anew from the log-sum-exp that the forward pass kept, in each of three kernels: one works on blocks
of queries and gives the gradient of the query; one on blocks of keys, with the scores transposed, and gives those of
key and value; one on blocks of the bias, which it sums over the windows that a program goes through. What its programs
found is added up afterwards, in a fixed order, so that the result is the same every time. Sums of a whole row of blocks
beside the query's gradient would save a kernel, but do not fit into a program's registers.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Int

from lsmfm_jax.models.attention_triton import (
    LOG2E,
    Sizes,
    bias_spec,
    cost,
    flat,
    line_spec,
    load_bias,
    load_line,
    load_tokens,
    masked_scores,
    padded,
    power_of_two,
    product,
    region_spec,
    share_of_program,
    sizes_of,
    store_tokens,
    token_spec,
)

QUERY_BLOCK = KEY_BLOCK = BIAS_BLOCK = (64, 32)
QUERY_WARPS = KEY_WARPS = BIAS_WARPS = 4


def load_statistics(total, inner, index, start, block: int, sizes: Sizes) -> tuple[Array, Array]:
    """What the forward pass kept of each query: its log-sum-exp, to the base 2, and its row sum."""
    return load_line(total, index, start, block, sizes) * LOG2E, load_line(inner, index, start, block, sizes)


def _query_kernel(query, key, value, bias, total, inner, gradient, *refs, sizes: Sizes) -> None:
    regions, gradient_query = refs if sizes.masked else (None, *refs)
    block, first, last = share_of_program(sizes, sizes.row_blocks)
    start = block * sizes.rows

    def one_window(index, nothing):
        window = index // sizes.batch
        queries, gradients = (load_tokens(x, index, start, sizes.rows, sizes) for x in (query, gradient))
        totals, inners = load_statistics(total, inner, index, start, sizes.rows, sizes)
        of_rows = load_line(regions, window, start, sizes.rows, sizes) if sizes.masked else None

        def one_block(block, of_queries):
            column = block * sizes.columns
            keys, values = (load_tokens(x, index, column, sizes.columns, sizes) for x in (key, value))
            of_columns = load_line(regions, window, column, sizes.columns, sizes) if sizes.masked else None
            scores = product(queries, keys.T)
            scores = masked_scores(scores, load_bias(bias, start, column, sizes), of_rows, of_columns)
            weights = power_of_two(scores - totals[:, None], sizes)
            of_scores = weights * (product(gradients, values.T) - inners[:, None])
            return of_queries + product(of_scores.astype(keys.dtype), keys)

        nought = jnp.zeros(queries.shape, jnp.float32)
        of_queries = jax.lax.fori_loop(0, sizes.column_blocks, one_block, nought)
        store_tokens(gradient_query, index, start, of_queries, sizes)
        return nothing

    jax.lax.fori_loop(first, last, one_window, 0)


def _bias_kernel(query, key, value, bias, total, inner, gradient, *refs, sizes: Sizes) -> None:
    regions, gradient_bias = refs if sizes.masked else (None, *refs)
    block, first, last = share_of_program(sizes, sizes.row_blocks * sizes.column_blocks)
    row = block // sizes.column_blocks * sizes.rows
    column = block % sizes.column_blocks * sizes.columns
    added = load_bias(bias, row, column, sizes)

    def one_window(index, summed):
        window = index // sizes.batch
        queries, gradients = (load_tokens(x, index, row, sizes.rows, sizes) for x in (query, gradient))
        totals, inners = load_statistics(total, inner, index, row, sizes.rows, sizes)
        keys, values = (load_tokens(x, index, column, sizes.columns, sizes) for x in (key, value))
        of_rows = load_line(regions, window, row, sizes.rows, sizes) if sizes.masked else None
        of_columns = load_line(regions, window, column, sizes.columns, sizes) if sizes.masked else None
        scores = masked_scores(product(queries, keys.T), added, of_rows, of_columns)
        weights = power_of_two(scores - totals[:, None], sizes)
        return summed + weights * (product(gradients, values.T) - inners[:, None])

    summed = jax.lax.fori_loop(first, last, one_window, jnp.zeros_like(added))
    gradient_bias[pl.ds(row, sizes.rows), pl.ds(column, sizes.columns)] = summed


def _key_kernel(query, key, value, bias, total, inner, gradient, *refs, sizes: Sizes) -> None:
    """Scores are keys by queries here, and so is the bias."""
    regions, gradient_key, gradient_value = refs if sizes.masked else (None, *refs)
    block, first, last = share_of_program(sizes, sizes.row_blocks)
    start = block * sizes.rows

    def one_window(index, nothing):
        window = index // sizes.batch
        keys, values = (load_tokens(x, index, start, sizes.rows, sizes) for x in (key, value))
        of_rows = load_line(regions, window, start, sizes.rows, sizes) if sizes.masked else None

        def one_block(block, carry):
            of_keys, of_values = carry
            column = block * sizes.columns
            queries, gradients = (load_tokens(x, index, column, sizes.columns, sizes) for x in (query, gradient))
            totals, inners = load_statistics(total, inner, index, column, sizes.columns, sizes)
            of_columns = load_line(regions, window, column, sizes.columns, sizes) if sizes.masked else None
            scores = product(keys, queries.T)
            scores = masked_scores(scores, load_bias(bias, start, column, sizes), of_rows, of_columns)
            weights = power_of_two(scores - totals[None], sizes)
            of_values = of_values + product(weights.astype(gradients.dtype), gradients)
            of_scores = weights * (product(values, gradients.T) - inners[None])
            return of_keys + product(of_scores.astype(queries.dtype), queries), of_values

        nought = jnp.zeros(keys.shape, jnp.float32)
        of_keys, of_values = jax.lax.fori_loop(0, sizes.column_blocks, one_block, (nought, nought))
        store_tokens(gradient_key, index, start, of_keys, sizes)
        store_tokens(gradient_value, index, start, of_values, sizes)
        return nothing

    jax.lax.fori_loop(first, last, one_window, 0)


def backward(
    query: Float[Array, "w b h n d"],
    key: Float[Array, "w b h n d"],
    value: Float[Array, "w b h n d"],
    bias: Float[Array, "h n n"],
    regions: Int[Array, "w n"] | None,
    total: Float[Array, "w b h n"],
    inner: Float[Array, "w b h n"],
    gradient: Float[Array, "w b h n d"],
    *,
    interpret: bool = False,
) -> tuple[Array, Array, Array, Float[Array, "h n n"]]:
    """Gradients of query, key, value and bias.

    Args:
        query: as the forward pass had it, and so are key, value, bias and regions.
        key: see there.
        value: see there.
        bias: see there.
        regions: see there.
        total: the forward pass's log-sum-exp.
        inner: sum over channels of the output times its gradient, float32.
        gradient: of the output.
        interpret: computed by JAX without a card, slowly.
    """
    operands = (query, key, value, total, inner, gradient)
    of_query = _query_gradient(operands, bias, regions, interpret=interpret)
    # The other way round rows of the bias are read as they lie in memory.
    of_key, of_value = _key_gradients(operands, bias.swapaxes(1, 2), regions, interpret=interpret)
    return of_query, of_key, of_value, _bias_gradient(operands, bias, regions, interpret=interpret)


def _given(operands: tuple, bias: Array, regions: Array | None, sizes: Sizes) -> tuple[list, list]:
    """What both kernels are given, with its specifications."""
    query, key, value, total, inner, gradient = map(flat, operands)
    tokens, line = token_spec(sizes), line_spec(sizes)
    arrays = [query, key, value, padded(bias, sizes), total, inner, gradient]
    specs = [tokens, tokens, tokens, bias_spec(sizes), line, line, tokens]
    return (arrays, specs) if regions is None else ([*arrays, regions], [*specs, region_spec(sizes)])


def _query_gradient(operands: tuple, bias: Array, regions: Array | None, *, interpret: bool) -> Array:
    query = operands[0]
    sizes = sizes_of(query, regions, block=QUERY_BLOCK, interpret=interpret)
    arrays, specs = _given(operands, bias, regions, sizes)
    heads = query.shape[2]
    of_query = pl.pallas_call(
        partial(_query_kernel, sizes=sizes),
        grid=(sizes.groups * sizes.row_blocks, heads),
        in_specs=specs,
        out_specs=token_spec(sizes),
        out_shape=jax.ShapeDtypeStruct(arrays[0].shape, query.dtype),
        compiler_params=plt.CompilerParams(num_warps=QUERY_WARPS, num_stages=2),
        **cost(sizes, heads, query.dtype.itemsize, products=3, passed=2, own=3),
        interpret=interpret,
        name="window_attention_query_gradient",
    )(*arrays)
    return of_query.reshape(query.shape)


def _key_gradients(operands: tuple, bias: Array, regions: Array | None, *, interpret: bool) -> tuple[Array, Array]:
    query = operands[0]
    sizes = sizes_of(query, regions, block=KEY_BLOCK, interpret=interpret)
    arrays, specs = _given(operands, bias, regions, sizes)
    heads = query.shape[2]
    of_key, of_value = pl.pallas_call(
        partial(_key_kernel, sizes=sizes),
        grid=(sizes.groups * sizes.row_blocks, heads),
        in_specs=specs,
        out_specs=[token_spec(sizes)] * 2,
        out_shape=[jax.ShapeDtypeStruct(arrays[0].shape, query.dtype)] * 2,
        compiler_params=plt.CompilerParams(num_warps=KEY_WARPS, num_stages=2),
        **cost(sizes, heads, query.dtype.itemsize, products=4, passed=2, own=4),
        interpret=interpret,
        name="window_attention_key_gradients",
    )(*arrays)
    return of_key.reshape(query.shape), of_value.reshape(query.shape)


def _bias_gradient(operands: tuple, bias: Array, regions: Array | None, *, interpret: bool) -> Array:
    query = operands[0]
    sizes = sizes_of(query, regions, block=BIAS_BLOCK, summing=True, interpret=interpret)
    arrays, specs = _given(operands, bias, regions, sizes)
    heads, blocks = query.shape[2], sizes.row_blocks * sizes.column_blocks
    _, *filled = arrays[3].shape
    parts = pl.pallas_call(
        partial(_bias_kernel, sizes=sizes),
        grid=(sizes.groups * blocks, heads),
        in_specs=specs,
        out_specs=pl.BlockSpec((None, None, *filled), lambda i, h: (i // blocks, h, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((sizes.groups, heads, *filled), jnp.float32),
        compiler_params=plt.CompilerParams(num_warps=BIAS_WARPS, num_stages=2),
        **cost(sizes, heads, query.dtype.itemsize, products=2, passed=4, own=0),
        interpret=interpret,
        name="window_attention_bias_gradient",
    )(*arrays)
    return parts.sum(0)[:, : sizes.tokens, : sizes.tokens]
