"""The text tower: a BERT in Flax with mean pooling, and which of its parameters train."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from lsmfm_jax.errors import InputError
from lsmfm_jax.models.declaration import POOLINGS
from lsmfm_jax.precision import wide_type, widen


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT encoder; `layer_norm_epsilon` is added to the variance."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    token_types: int
    layer_norm_epsilon: float
    pad_token: int


def _layer_norm(config: BertConfig, name: str) -> nn.LayerNorm:
    # Two-pass variance: with an epsilon of 1e-12 the one-pass form can go negative. Without a dtype of its own the norm
    # computes in that of its parameters or its input, whichever is wider: at least float32.
    return nn.LayerNorm(epsilon=config.layer_norm_epsilon, use_fast_variance=False, name=name)


def _dense(features: int, dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.normal(0.02), name=name)


class Embeddings(nn.Module):
    """Word, position and token-type embeddings (type 0 throughout), summed and normalised."""

    config: BertConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t h"]:
        """Embed token ids; at most `max_positions` of them, else ValueError."""
        config, init = self.config, nn.initializers.normal(0.02)
        length = tokens.shape[1]
        if length > config.max_positions:
            raise InputError(f"captions of {length} tokens, but this BERT has {config.max_positions} positions")
        word = self.param("word", init, (config.vocab_size, config.hidden_size))
        position = self.param("position", init, (config.max_positions, config.hidden_size))
        token_type = self.param("token_type", init, (config.token_types, config.hidden_size))
        rows = word[tokens]
        # Padding's own row gets no gradient, as in PyTorch; it matters only when padding is pooled too.
        rows = jnp.where((tokens == config.pad_token)[:, :, None], jax.lax.stop_gradient(rows), rows)
        # Added in this order, as in PyTorch, so that float32 sums agree to the last bit.
        return _layer_norm(config, "norm")((rows + token_type[0]) + position[:length])


class SelfAttention(nn.Module):
    """Multi-head self-attention with its residual and post-normalisation."""

    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "b t h"], mask: Bool[Array, "b t"]) -> Float[Array, "b t h"]:
        """Attend to the tokens where `mask` is True."""
        config = self.config
        depth = config.hidden_size // config.num_heads

        def heads(name: str) -> Float[Array, "b t n d"]:
            flat = _dense(config.hidden_size, self.dtype, name)(hidden)
            return flat.reshape(*flat.shape[:2], config.num_heads, depth)

        query, key, value = heads("query"), heads("key"), heads("value")
        scores = jnp.einsum("bqnd,bknd->bnqk", query, key, preferred_element_type=wide_type(query, key)) / depth**0.5
        # A finite floor rather than -inf: a row without any real token gives uniform weights, not NaN.
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bnqk,bknd->bqnd", weights, value)
        output = _dense(config.hidden_size, self.dtype, "output")(mixed.reshape(hidden.shape))
        return _layer_norm(config, "norm")(hidden + output)


class FeedForward(nn.Module):
    """Two dense layers with exact GELU between, with residual and post-normalisation."""

    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "b t h"]) -> Float[Array, "b t h"]:
        """Transform each token by itself."""
        up = _dense(self.config.intermediate_size, self.dtype, "up")(hidden)
        down = _dense(self.config.hidden_size, self.dtype, "down")(nn.gelu(up, approximate=False))
        return _layer_norm(self.config, "norm")(hidden + down)


class EncoderLayer(nn.Module):
    """One post-normalised transformer layer."""

    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "b t h"], mask: Bool[Array, "b t"]) -> Float[Array, "b t h"]:
        """Attend, then transform each token."""
        hidden = SelfAttention(self.config, self.dtype, name="attention")(hidden, mask)
        return FeedForward(self.config, self.dtype, name="feed_forward")(hidden)


class TextTower(nn.Module):
    """BERT without dropout, and the mean of its last hidden state.

    Attributes:
        config: sizes of the encoder.
        dtype: compute dtype of the matrix products; normalisation, softmax and pooling are float32.
        pooling: which tokens are averaged where a call does not name them, see `pooled_tokens`.
    """

    config: BertConfig
    dtype: Any = jnp.float32
    pooling: str = "real"

    @nn.compact
    def hidden_states(
        self, tokens: Int[Array, "b t"], mask: Bool[Array, "b t"]
    ) -> tuple[Float[Array, "b t h"], Float[Array, "b h"]]:
        """The last hidden state, and BERT's own pooler on its first token."""
        hidden = Embeddings(self.config, name="embeddings")(tokens)
        for layer in range(self.config.num_layers):
            hidden = EncoderLayer(self.config, self.dtype, name=f"layer_{layer}")(hidden, mask)
        return hidden, jnp.tanh(_dense(self.config.hidden_size, self.dtype, "pooler")(hidden[:, 0]))

    def __call__(
        self, tokens: Int[Array, "b t"], mask: Bool[Array, "b t"], pooled: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b h"]:
        """Pooled caption vectors, float32.

        Args:
            tokens: token ids, padded on the right.
            mask: True at real tokens.
            pooled: True at tokens in the mean; None: by `pooling`, over the captions of this call.

        Raises:
            ValueError: `pooling` is not one of `POOLINGS`.
        """
        if pooled is None:
            pooled = pooled_tokens(mask, pooling=self.pooling, group=mask.shape[0])
        # The pooler's output is unused: jit drops it, but its parameters stay in the tree and in exports.
        hidden, _ = self.hidden_states(tokens, mask)
        hidden = widen(hidden)
        count = jnp.maximum(pooled.sum(axis=1, keepdims=True), 1)
        return jnp.where(pooled[:, :, None], hidden, 0.0).sum(axis=1) / count


def pooled_tokens(real: Bool[Array, "b t"], *, pooling: str, group: int) -> Bool[Array, "b t"]:
    """Which tokens are averaged into the vector of a caption.

    Args:
        real: True at real tokens, captions padded on the right.
        pooling: "real": those alone; "batch": padding too, up to the longest caption of each `group` of samples that
            follow each other, as the released code pads the captions that are on a device together; "all": the
            whole width.
        group: samples padded to one length, a divisor of the batch.

    Raises:
        ValueError: `pooling` is not one of `POOLINGS`.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is {pooling!r}, allowed are {POOLINGS}")
    if pooling == "real":
        return real
    if pooling == "all":
        return jnp.ones_like(real)
    longest = jnp.max(real.sum(axis=1).reshape(-1, group), axis=1)
    return jnp.arange(real.shape[1]) < jnp.repeat(longest, group)[:, None]


def trainable_text_rules(num_layers: int, top_k: int) -> list[tuple[str, bool]]:
    """Ordered rules (regular expression on the path inside the tower, trains?) for the tower after warm-up.

    The top `top_k` layers, the embeddings, every layer norm and the pooler train; the first rule that matches
    wins and together they cover every parameter. Mean pooling gives the pooler no gradient.

    Raises:
        ValueError: `top_k` is not between 0 and `num_layers`.
    """
    if not 0 <= top_k <= num_layers:
        raise InputError(f"top_k is {top_k}, must be between 0 and the text tower's {num_layers} layers")
    top = [(rf"(^|/)layer_{layer}/", True) for layer in range(num_layers - top_k, num_layers)]
    return [
        (r"(^|/)embeddings/", True),
        (r"(^|/)norm/", True),
        (r"(^|/)pooler/", True),
        *top,
        (r"(^|/)layer_\d+/", False),
    ]
