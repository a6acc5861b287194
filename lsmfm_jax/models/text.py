"""The text tower: a BERT in Flax with mean pooling, read from any Hugging Face BERT directory or name."""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from lsmfm_jax.models.bert_names import tree_from_state

POOLINGS = ("real", "all")


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

    @classmethod
    def from_directory(cls, directory: pathlib.Path | str) -> "BertConfig":
        """Read `config.json` of a Hugging Face directory.

        Raises:
            FileNotFoundError: there is no `config.json`.
            ValueError: it describes something other than a BERT with exact GELU and absolute positions.
        """
        file = pathlib.Path(directory) / "config.json"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: give a Hugging Face BERT directory")
        values = json.loads(file.read_text())
        demands = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        for key, allowed in demands.items():
            if values.get(key, allowed) != allowed:
                raise ValueError(f"{file}: {key} is {values[key]!r}, only {allowed!r} is supported")
        if values["hidden_size"] % values["num_attention_heads"]:
            raise ValueError(
                f"{file}: hidden_size {values['hidden_size']} must be a multiple of num_attention_heads "
                f"{values['num_attention_heads']}"
            )
        return cls(
            vocab_size=values["vocab_size"],
            hidden_size=values["hidden_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=values["num_attention_heads"],
            intermediate_size=values["intermediate_size"],
            max_positions=values["max_position_embeddings"],
            token_types=values.get("type_vocab_size", 2),
            layer_norm_epsilon=values.get("layer_norm_eps", 1e-12),
            pad_token=values.get("pad_token_id", 0),
        )


def _layer_norm(config: BertConfig, name: str) -> nn.LayerNorm:
    # Two-pass variance in float32: with an epsilon of 1e-12 the one-pass form can go negative.
    return nn.LayerNorm(epsilon=config.layer_norm_epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


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
            raise ValueError(f"captions of {length} tokens, but this BERT has {config.max_positions} positions")
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
        scores = jnp.einsum("bqnd,bknd->bnqk", query, key, preferred_element_type=jnp.float32) / depth**0.5
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
        pooling: "real" averages over real tokens, "all" over padding too (the released code's way).
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

    def __call__(self, tokens: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b h"]:
        """Pooled caption vectors, float32; `mask` is True at real tokens.

        Raises:
            ValueError: `pooling` is not one of `POOLINGS`.
        """
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling is {self.pooling!r}, allowed are {POOLINGS}")
        # The pooler's output is unused: jit drops it, but its parameters stay in the tree and in exports.
        hidden, _ = self.hidden_states(tokens, mask)
        hidden = hidden.astype(jnp.float32)
        if self.pooling == "all":
            return hidden.mean(axis=1)
        count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
        return jnp.where(mask[:, :, None], hidden, 0.0).sum(axis=1) / count


def trainable_text_rules(num_layers: int, top_k: int) -> list[tuple[str, bool]]:
    """Ordered rules (regular expression on the path inside the tower, trains?) for the tower after warm-up.

    The top `top_k` layers, the embeddings, every layer norm and the pooler train; the first rule that matches
    wins and together they cover every parameter. Mean pooling gives the pooler no gradient.

    Raises:
        ValueError: `top_k` is not between 0 and `num_layers`.
    """
    if not 0 <= top_k <= num_layers:
        raise ValueError(f"top_k is {top_k}, must be between 0 and the text tower's {num_layers} layers")
    top = [(rf"(^|/)layer_{layer}/", True) for layer in range(num_layers - top_k, num_layers)]
    return [
        (r"(^|/)embeddings/", True),
        (r"(^|/)norm/", True),
        (r"(^|/)pooler/", True),
        *top,
        (r"(^|/)layer_\d+/", False),
    ]


class LoadedText(NamedTuple):
    """A text tower read from disk: its sizes, its parameters (numpy, float32), and its tokenizer."""

    config: BertConfig
    params: dict
    tokenizer: Any


def load_text_tower(name_or_directory: str | pathlib.Path) -> LoadedText:
    """Read a BERT from a Hugging Face directory, or by its hub name (downloaded once, then cached).

    Raises:
        FileNotFoundError: no such directory, no weights in it, or the hub cannot be reached.
        ValueError: the weights are not those of the BERT that config.json describes.
    """
    directory = _local_directory(name_or_directory)
    config = BertConfig.from_directory(directory)
    params = tree_from_state(_encoder_state(directory))
    found = {
        "vocab_size": params["embeddings"]["word"].shape[0],
        "hidden_size": params["embeddings"]["word"].shape[1],
        "max_positions": params["embeddings"]["position"].shape[0],
        "num_layers": sum(key.startswith("layer_") for key in params),
    }
    for key, value in found.items():
        if value != getattr(config, key):
            raise ValueError(f"{directory}: config.json says {key} {getattr(config, key)}, the weights say {value}")
    # Imported late: transformers takes seconds to import, and image-only runs never need it.
    from transformers import AutoTokenizer

    return LoadedText(config, params, AutoTokenizer.from_pretrained(str(directory), local_files_only=True))


def _encoder_state(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Encoder tensors of `model.safetensors`, under the names that PyTorch's BertModel gives them."""
    from safetensors.numpy import load_file

    file = directory / "model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: save the model as safetensors (pickled weights are not read)")
    state = {}
    for key, value in load_file(file).items():
        # Pre-training heads and a stored arange are no part of the encoder; the oldest published files hold
        # them, prefix the encoder with `bert.` and call a norm's weight and bias gamma and beta.
        name = key.removeprefix("bert.")
        if name.startswith("cls.") or name == "embeddings.position_ids":
            continue
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        state[name] = value.astype(np.float32)
    return state


def _local_directory(name_or_directory: str | pathlib.Path) -> pathlib.Path:
    directory = pathlib.Path(name_or_directory).expanduser()
    if directory.is_dir():
        return directory
    name = str(name_or_directory)
    if isinstance(name_or_directory, pathlib.Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"text model {name}: no such directory")
    import huggingface_hub

    try:
        wanted = [
            "config.json",
            "model.safetensors",
            "tokenizer*.json",
            "vocab.txt",
            "special_tokens_map.json",
        ]
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        # Whatever the cause (no network, offline mode, a wrong name), the way out is the same.
        raise FileNotFoundError(
            f"text model {name!r} is no local directory and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {error}). On a machine with network run "
            f"`hf download {name} --local-dir bert`, copy that folder here and give its path instead"
        ) from error
