"""Attention within windows as one kernel for NVIDIA cards: scores stay in registers, block by block.

The softmax over the keys is gathered while passing over their blocks (Milakov and Gimelshein 2018; Dao et al. 2022):
a block's weights are relative to the largest score so far, and what was summed before is scaled down when a larger one
comes. The kernels are written in Pallas and compiled by Triton, whose blocks have powers of two as sizes: heads are
filled up to a multiple of 16, tokens to whole blocks, both by masks while loading, so nothing is padded in memory.

A program works on one block of queries of one head and goes through several windows one after the other: their bias
is the same and stays in the cache. Windows and batch are one axis here, with the batch inside.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Int

from lsmfm_jax.models.attention_kernel import FORBIDDEN

# Within the kernels scores are logarithms to the base 2, for which cards have an instruction.
LOG2E = 1.4426950408889634
# The score of tokens that are not there. Not infinite: the difference of two of them must be a number.
ABSENT = -1e30
# Programs that a launch should have at least, on the 132 multiprocessors of an H200; and where each of them writes a
# part of the bias gradient, as many as run there at a time.
PROGRAMS, SUMMING_PROGRAMS = 16 * 132, 4 * 132
BLOCK = (64, 32)
WARPS = 4
KERNEL_TYPES = ("bfloat16", "float16", "float32")


class Sizes(NamedTuple):
    """Sizes that a kernel is written for.

    Attributes:
        count: windows times batch.
        batch: samples in a batch; windows are counted as `index // batch`.
        tokens: in a window.
        width: of a head.
        masked: whether pairs of different regions are forbidden.
        rows: queries in a block, or keys where a program works on keys.
        columns: tokens in each block that a program passes over.
        each: windows that a program goes through.
        interpret: computed by JAX without a card.
    """

    count: int
    batch: int
    tokens: int
    width: int
    masked: bool
    rows: int
    columns: int
    each: int
    interpret: bool

    @property
    def row_blocks(self) -> int:
        """Blocks of rows in a window."""
        return pl.cdiv(self.tokens, self.rows)

    @property
    def column_blocks(self) -> int:
        """Blocks of columns in a window."""
        return pl.cdiv(self.tokens, self.columns)

    @property
    def groups(self) -> int:
        """Programs that share the windows."""
        return pl.cdiv(self.count, self.each)


def sizes_of(
    query: Float[Array, "w b h n d"],
    regions: Int[Array, "w n"] | None,
    *,
    block: tuple[int, int],
    summing: bool = False,
    interpret: bool = False,
) -> Sizes:
    """Sizes for an array of queries; as many windows to a program as leave enough of them.

    Args:
        query: the array.
        regions: of the windows.
        block: rows and columns of a block of scores, of windows that are as large.
        summing: each program sums one block over windows, instead of passing over all columns.
        interpret: computed by JAX without a card.
    """
    windows, batch, heads, tokens, width = query.shape
    smallest = max(16, pl.next_power_of_2(tokens))
    rows, columns = (min(size, smallest) for size in block)
    count = windows * batch
    blocks = heads * pl.cdiv(tokens, rows) * (pl.cdiv(tokens, columns) if summing else 1)
    groups = min(count, pl.cdiv(SUMMING_PROGRAMS if summing else PROGRAMS, blocks))
    each = pl.cdiv(count, groups)
    return Sizes(count, batch, tokens, width, regions is not None, rows, columns, each, interpret)


def flat(x: Float[Array, "w b h ..."]) -> Float[Array, "wb h ..."]:
    """Windows and batch as one axis; costs nothing."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def load_tokens(ref, index, start, block: int, sizes: Sizes) -> Array:
    """Tokens `start` to `start + block` of one window, (block, width filled up), zeros where there are none."""
    filled = max(16, pl.next_power_of_2(sizes.width))
    row = start + jax.lax.broadcasted_iota(jnp.int32, (block, filled), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (block, filled), 1)
    present = (row < sizes.tokens) & (column < sizes.width)
    return plt.load(ref.at[index, pl.ds(start, block), pl.ds(0, filled)], mask=present, other=0)


def store_tokens(ref, index, start, value: Array, sizes: Sizes) -> None:
    """Writes what `load_tokens` would read."""
    row = start + jax.lax.broadcasted_iota(jnp.int32, value.shape, 0)
    column = jax.lax.broadcasted_iota(jnp.int32, value.shape, 1)
    present = (row < sizes.tokens) & (column < sizes.width)
    place = ref.at[index, pl.ds(start, value.shape[0]), pl.ds(0, value.shape[1])]
    plt.store(place, value.astype(ref.dtype), mask=present)


def load_line(ref, index, start, block: int, sizes: Sizes) -> Array:
    """One number for each of a block's tokens, such as a region or a log-sum-exp."""
    present = start + jnp.arange(block) < sizes.tokens
    return plt.load(ref.at[index, pl.ds(start, block)], mask=present, other=0)


def padded(bias: Float[Array, "h n n"], sizes: Sizes) -> Float[Array, "h _ _"]:
    """The bias to the base 2, its rows and columns filled up to whole blocks, `ABSENT` in what was added.

    Its rows then begin where a card can read several numbers at once, and blocks need no masks.
    """
    _, rows, columns = bias_spec(sizes).block_shape
    added = ((0, 0), (0, rows - sizes.tokens), (0, columns - sizes.tokens))
    return jnp.pad(bias * LOG2E, added, constant_values=ABSENT)


def load_bias(ref, row, column, sizes: Sizes) -> Array:
    """A block of the bias."""
    return ref[pl.ds(row, sizes.rows), pl.ds(column, sizes.columns)]


def product(left: Array, right: Array) -> Array:
    """A matrix product that accumulates in float32; float32 operands are not rounded before."""
    exact = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.dot(left, right, precision=exact, preferred_element_type=jnp.float32)


def masked_scores(scores: Array, bias: Array, of_rows: Array | None, of_columns: Array | None) -> Array:
    """Scores to the base 2 with the bias added, and `FORBIDDEN` where regions differ."""
    scores = scores * LOG2E + bias
    if of_rows is None:
        return scores
    return scores + jnp.where(of_rows[:, None] == of_columns[None], 0.0, FORBIDDEN * LOG2E)


def power_of_two(x: Array, sizes: Sizes) -> Array:
    """2**x by a card's own instruction; below float32's smallest normal number it gives 0.

    What Triton makes of `exp2` keeps those numbers, with three instructions more for each of them.
    """
    if sizes.interpret:
        return jnp.exp2(x)
    kind = [jax.ShapeDtypeStruct(x.shape, x.dtype)]
    instruction = "ex2.approx.ftz.f32 $0, $1;"
    return plt.elementwise_inline_asm(instruction, args=[x], constraints="=f,f", pack=1, result_shape_dtypes=kind)[0]


def share_of_program(sizes: Sizes, blocks: int):
    """Which of `blocks` blocks this program works on, the first window it goes through, and where it stops."""
    # Neighbouring programs share windows, so that one's keys are in the cache when the next reads them.
    first = pl.program_id(0) // blocks * sizes.each
    return pl.program_id(0) % blocks, first, jnp.minimum(first + sizes.each, sizes.count)


def _kernel(query, key, value, bias, *refs, sizes: Sizes) -> None:
    regions, out, total = refs if sizes.masked else (None, *refs)
    block, first, last = share_of_program(sizes, sizes.row_blocks)
    start = block * sizes.rows

    def one_window(index, nothing):
        queries = load_tokens(query, index, start, sizes.rows, sizes)
        window = index // sizes.batch
        of_rows = load_line(regions, window, start, sizes.rows, sizes) if sizes.masked else None

        def one_block(block, carry):
            top, norm, mixed = carry
            column = block * sizes.columns
            keys = load_tokens(key, index, column, sizes.columns, sizes)
            of_columns = load_line(regions, window, column, sizes.columns, sizes) if sizes.masked else None
            scores = product(queries, keys.T)
            scores = masked_scores(scores, load_bias(bias, start, column, sizes), of_rows, of_columns)
            new_top = jnp.maximum(top, scores.max(1))
            weights = power_of_two(scores - new_top[:, None], sizes)
            shrink = power_of_two(top - new_top, sizes)
            values = load_tokens(value, index, column, sizes.columns, sizes)
            mixed = mixed * shrink[:, None] + product(weights.astype(values.dtype), values)
            return new_top, norm * shrink + weights.sum(1), mixed

        nought = jnp.zeros((sizes.rows,), jnp.float32)
        carry = (nought + ABSENT, nought, jnp.zeros(queries.shape, jnp.float32))
        top, norm, mixed = jax.lax.fori_loop(0, sizes.column_blocks, one_block, carry)
        store_tokens(out, index, start, mixed / norm[:, None], sizes)
        present = start + jnp.arange(sizes.rows) < sizes.tokens
        plt.store(total.at[index, pl.ds(start, sizes.rows)], top / LOG2E + jnp.log(norm), mask=present)
        return nothing

    jax.lax.fori_loop(first, last, one_window, 0)


def token_spec(sizes: Sizes) -> pl.BlockSpec:
    """Tokens of one head, of all windows; a program picks its own."""
    return pl.BlockSpec((sizes.count, None, sizes.tokens, sizes.width), lambda i, h: (0, h, 0, 0))


def line_spec(sizes: Sizes) -> pl.BlockSpec:
    """A number for each token of one head."""
    return pl.BlockSpec((sizes.count, None, sizes.tokens), lambda i, h: (0, h, 0))


def bias_spec(sizes: Sizes) -> pl.BlockSpec:
    """One head's bias."""
    shape = (sizes.row_blocks * sizes.rows, sizes.column_blocks * sizes.columns)
    return pl.BlockSpec((None, *shape), lambda i, h: (h, 0, 0))


def region_spec(sizes: Sizes) -> pl.BlockSpec:
    """All regions."""
    return pl.BlockSpec((sizes.count // sizes.batch, sizes.tokens), lambda i, h: (0, 0))


def cost(sizes: Sizes, heads: int, itemsize: int, *, products: int, passed: int, own: int) -> dict[str, Any]:
    """What a launch does, as `pallas_call` takes it.

    The bytes are those that its programs ask for; most of them meet the cache, where other programs have left them.

    Args:
        sizes: of the launch.
        heads: its heads.
        itemsize: bytes of an operand's number.
        products: matrix products for each block of scores.
        passed: arrays of tokens that every program passes over as a whole.
        own: arrays of which it reads or writes its own rows.
    """
    rows, columns = sizes.row_blocks * sizes.rows, sizes.column_blocks * sizes.columns
    pairs = sizes.count * heads * rows * columns
    tokens = sizes.count * heads * sizes.tokens * sizes.width * itemsize
    found = pl.CostEstimate(
        flops=2 * products * pairs * max(16, pl.next_power_of_2(sizes.width)),
        transcendentals=pairs,
        bytes_accessed=tokens * (own + passed * sizes.row_blocks) + sizes.groups * heads * rows * columns * 4,
    )
    # The compiled program's text has the metadata, and not the estimate.
    shown = {"operations": str(found.flops), "requested_bytes": str(found.bytes_accessed)}
    return {"cost_estimate": found, "metadata": shown}


def forward(
    query: Float[Array, "w b h n d"],
    key: Float[Array, "w b h n d"],
    value: Float[Array, "w b h n d"],
    bias: Float[Array, "h n n"],
    regions: Int[Array, "w n"] | None,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "w b h n d"], Float[Array, "w b h n"]]:
    """Output, and each query's log-sum-exp of scores in float32; arguments as those of `attention_kernel.attend`."""
    sizes = sizes_of(query, regions, block=BLOCK, interpret=interpret)
    heads = query.shape[2]
    tokens, line = token_spec(sizes), line_spec(sizes)
    mask = ([region_spec(sizes)], [regions]) if sizes.masked else ([], [])
    out, total = pl.pallas_call(
        partial(_kernel, sizes=sizes),
        grid=(sizes.groups * sizes.row_blocks, heads),
        in_specs=[tokens, tokens, tokens, bias_spec(sizes), *mask[0]],
        out_specs=[tokens, line],
        out_shape=[
            jax.ShapeDtypeStruct((sizes.count, *query.shape[2:]), query.dtype),
            jax.ShapeDtypeStruct((sizes.count, *query.shape[2:4]), jnp.float32),
        ],
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=2),
        **cost(sizes, heads, query.dtype.itemsize, products=2, passed=2, own=2),
        interpret=interpret,
        name="window_attention",
    )(flat(query), flat(key), flat(value), padded(bias, sizes), *mask[1])
    return out.reshape(query.shape), total.reshape(query.shape[:-1])
