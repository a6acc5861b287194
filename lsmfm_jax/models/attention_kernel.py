"""Attention within windows, chunk by chunk; scores are never kept, the backward pass computes them anew.

On NVIDIA cards kernels of our own may take the place of the chunks: `attention_fused`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsmfm_jax.precision import widen

# Scores held at one time. On a CPU they should stay in the cache, which is five times faster than going
# through memory. Elsewhere the limit bounds memory, 256 MiB of float32 for each of the few copies that a backward
# pass holds, and keeps tensors below 2**31 elements.
CPU_SCORES = 2**18
DEVICE_SCORES = 2**26
REGIONS = 8  # within one window: each axis may be cut once
# What Swin adds to the score of a forbidden pair; exp(-100) is below float32's smallest normal number.
FORBIDDEN = -100.0

Windows = Float[Array, "w b h n d"]


# The platform that has kernels of our own: NVIDIA cards.
FUSED_ON = "cuda"


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(
    query: Windows,
    key: Windows,
    value: Windows,
    bias: Float[Array, "h n n"],
    regions: Int[Array, "w n"] | None,
    kernels: str = "plain",
) -> Windows:
    """Attention `softmax(query key^T + bias) value` within each window, scores and softmax in float32.

    Args:
        query: already scaled. Windows lead: chunks are taken of them, not of a batch spread over devices.
        key: as the query.
        value: as the query.
        bias: added to the scores of every window, queries before keys.
        regions: a number from 0 to 7 for each token; pairs whose numbers differ get -100 added to their
            score. None means that all are of one region.
        kernels: "plain", or "fused": with kernels of our own on NVIDIA cards, plain anywhere else. These multiply in
            float32 where the operands are float32, and compute in no wider type: float64 is plain everywhere.
    """
    return _forward(query, key, value, bias, regions, kernels)[0]


def _forward(query: Array, key: Array, value: Array, bias: Array, regions: Array | None, kernels: str) -> tuple:
    out, total = _by_platform(kernels, "forward", _forward_windows, query, key, value, bias, regions)
    return out, (query, key, value, bias, regions, out, total)


def _backward(kernels: str, saved: tuple, gradient: Array) -> tuple:
    query, key, value, bias, regions, out, total = saved
    # The row sums of weights * their gradients, which the softmax's derivative subtracts.
    inner = jnp.sum(widen(gradient) * widen(out), -1, keepdims=True)
    operands = (query, key, value, bias, regions, total, inner, gradient)
    gradient_query, gradient_key, gradient_value, gradient_bias = _by_platform(
        kernels, "backward", _backward_windows, *operands
    )
    return gradient_query, gradient_key, gradient_value, gradient_bias, None


attend.defvjp(_forward, _backward)


def _by_platform(kernels: str, fused: str, plain: Callable[..., Any], *operands: Any) -> Any:
    """The plain form, or on a card with `kernels` fused the function of that name."""
    forms = {"cpu": partial(plain, limit=CPU_SCORES), "default": partial(plain, limit=DEVICE_SCORES)}
    if kernels == "fused":
        # Pallas takes time to import, and only those who want it have to wait.
        from lsmfm_jax.models import attention_fused

        if attention_fused.supported(operands[0], operands[3]):
            forms[FUSED_ON] = getattr(attention_fused, fused)
    return jax.lax.platform_dependent(*operands, **forms)


def _chunks(shape: tuple[int, ...], limit: int) -> int:
    """Into how many equal chunks the windows are split so that one chunk's scores stay within the limit."""
    windows, batch, heads, tokens, _ = shape
    one = batch * heads * tokens * tokens
    return next(n for n in range(1, windows + 1) if windows % n == 0 and (one * windows // n <= limit or n == windows))


def _split(value: Array | None, chunks: int) -> Array | None:
    return None if value is None else value.reshape(chunks, value.shape[0] // chunks, *value.shape[1:])


def _scores(query: Array, key: Array, bias: Array, regions: Array | None) -> Array:
    scores = jnp.einsum("wbhqd,wbhkd->wbhqk", query, key, preferred_element_type=bias.dtype) + bias
    if regions is None:
        return scores
    # As a product, whose one non-zero term is exact, the mask is computed once; a comparison would be fused into
    # each of its uses and repeated for each head.
    member = (regions[..., None] == jnp.arange(REGIONS)).astype(bias.dtype)
    mask = jnp.einsum("wqr,wkr->wqk", member, FORBIDDEN * (1 - member))
    return scores + mask[:, None, None]


def _forward_windows(query, key, value, bias, regions, *, limit):
    """Output, and each query's log-sum-exp of scores."""

    def step(chunk):
        query, key, value, regions = chunk
        scores = _scores(query, key, bias, regions)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        norm = weights.sum(-1, keepdims=True)
        out = jnp.einsum("wbhqk,wbhkd->wbhqd", weights.astype(value.dtype), value, preferred_element_type=bias.dtype)
        return (out / norm).astype(value.dtype), top + jnp.log(norm)

    chunks = _chunks(query.shape, limit)
    if chunks == 1:
        return step((query, key, value, regions))
    out, total = jax.lax.map(step, tuple(_split(x, chunks) for x in (query, key, value, regions)))
    return out.reshape(query.shape), total.reshape(*query.shape[:-1], 1)


def _backward_windows(query, key, value, bias, regions, total, inner, gradient, *, limit):
    """Gradients of query, key, value and bias."""

    def step(gradient_bias, chunk):
        query, key, value, regions, total, inner, gradient = chunk
        product = partial(jnp.einsum, preferred_element_type=bias.dtype)
        weights = jnp.exp(_scores(query, key, bias, regions) - total)
        gradient_weights = product("wbhqd,wbhkd->wbhqk", gradient, value)
        gradient_scores = weights * (gradient_weights - inner)
        gradient_bias = gradient_bias + gradient_scores.sum((0, 1))
        weights, narrow = weights.astype(value.dtype), gradient_scores.astype(value.dtype)
        gradients = (
            product("wbhqk,wbhkd->wbhqd", narrow, key),
            product("wbhqk,wbhqd->wbhkd", narrow, query),
            product("wbhqk,wbhqd->wbhkd", weights, gradient),
        )
        return gradient_bias, tuple(x.astype(value.dtype) for x in gradients)

    chunks = _chunks(query.shape, limit)
    operands = (query, key, value, regions, total, inner, gradient)
    if chunks == 1:
        gradient_bias, gradients = step(jnp.zeros_like(bias), operands)
        return *gradients, gradient_bias
    gradient_bias, gradients = jax.lax.scan(step, jnp.zeros_like(bias), tuple(_split(x, chunks) for x in operands))
    return *(x.reshape(query.shape) for x in gradients), gradient_bias
