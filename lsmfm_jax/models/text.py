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
from safetensors import SafetensorError

from lsmfm_jax.errors import InputError, LsmfmError
from lsmfm_jax.models.bert_names import tree_from_state
from lsmfm_jax.models.declaration import POOLINGS
from lsmfm_jax.precision import wide_type, widen

# Our names of the sizes, and those in Hugging Face's config.json, some of which may be left out there.
_CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "pad_token": "pad_token_id",
}
_DEFAULTS = {"type_vocab_size": 2, "pad_token_id": 0}


class TextModelError(LsmfmError, ValueError):
    """A text model's directory holds no BERT that can be used here."""


class TextModelMissing(TextModelError, FileNotFoundError):
    """There is no such text model, or a file of it is missing."""


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
            TextModelMissing: there is no `config.json`.
            TextModelError: it cannot be read, or describes something other than a BERT with exact GELU and
                absolute positions.
        """
        file = pathlib.Path(directory) / "config.json"
        if not file.is_file():
            raise TextModelMissing(f"{file} is missing: give a Hugging Face BERT directory")
        try:
            values = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise TextModelError(f"{file} is not readable as JSON ({str(error)[:120]}); copy it again") from error
        if not isinstance(values, dict):
            raise TextModelError(f"{file} holds no JSON object; give a Hugging Face BERT directory")
        demands = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        for key, allowed in demands.items():
            if values.get(key, allowed) != allowed:
                raise TextModelError(f"{file}: {key} is {str(values[key])[:80]!r}, only {allowed!r} is supported")
        sizes = {field: values.get(key, _DEFAULTS.get(key)) for field, key in _CONFIG_KEYS.items()}
        for field, size in sizes.items():
            if type(size) is not int or size < (0 if field == "pad_token" else 1):
                shown = "missing" if size is None else str(size)[:80]
                raise TextModelError(f"{file}: {_CONFIG_KEYS[field]} is {shown}, it must be a whole number above 0")
        epsilon = values.get("layer_norm_eps", 1e-12)
        if type(epsilon) is not float or not 0 < epsilon < 1:
            raise TextModelError(f"{file}: layer_norm_eps is {str(epsilon)[:80]}, it must be between 0 and 1")
        if sizes["hidden_size"] % sizes["num_heads"]:
            raise TextModelError(
                f"{file}: hidden_size {sizes['hidden_size']} must be a multiple of num_attention_heads "
                f"{sizes['num_heads']}"
            )
        return cls(**sizes, layer_norm_epsilon=epsilon)


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


class LoadedText(NamedTuple):
    """A text tower read from disk: its sizes, its parameters (numpy, float32), and its tokenizer."""

    config: BertConfig
    params: dict
    tokenizer: Any


def load_text_tower(name_or_directory: str | pathlib.Path) -> LoadedText:
    """Read a BERT from a Hugging Face directory, or by its hub name (downloaded once, then cached).

    Raises:
        TextModelMissing: no such directory, no weights in it, or the hub cannot be reached.
        TextModelError: the files are damaged, or the weights are not those of the BERT that config.json describes.
    """
    directory = _local_directory(name_or_directory)
    config = BertConfig.from_directory(directory)
    try:
        params = tree_from_state(_encoder_state(directory))
    except TextModelError:
        raise
    except (ValueError, SafetensorError, OSError) as error:
        raise TextModelError(f"{directory / 'model.safetensors'}: {error}; copy it again") from error
    found = {
        "vocab_size": params["embeddings"]["word"].shape[0],
        "hidden_size": params["embeddings"]["word"].shape[1],
        "max_positions": params["embeddings"]["position"].shape[0],
        "num_layers": sum(key.startswith("layer_") for key in params),
    }
    for key, value in found.items():
        if value != getattr(config, key):
            raise TextModelError(f"{directory}: config.json says {key} {getattr(config, key)}, the weights say {value}")
    return LoadedText(config, params, _read_tokenizer(directory))


def _read_tokenizer(directory: pathlib.Path) -> Any:
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        # The library would make one of five tokens, to which all words are the same.
        raise TextModelMissing(
            f"{directory}: no tokenizer.json and no vocab.txt there, so no word can be read; copy the tokenizer of the "
            "text model there"
        )
    # Imported late: transformers takes seconds to import, and image-only runs never need it.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # of another library, whose classes differ by what is missing
        raise TextModelError(
            f"{directory}: its tokenizer cannot be read ({' '.join(str(error).split())[:120]}); copy the files of the "
            "tokenizer again"
        ) from error


def _encoder_state(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Encoder tensors of `model.safetensors`, under the names that PyTorch's BertModel gives them."""
    from safetensors.numpy import load_file

    file = directory / "model.safetensors"
    if not file.is_file():
        raise TextModelMissing(f"{file} is missing: save the model as safetensors (pickled weights are not read)")
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
        raise TextModelMissing(f"text model {name}: no such directory")
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
        raise TextModelMissing(
            f"text model {name!r} is no local directory and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {error}). On a machine with network run "
            f"`hf download {name} --local-dir bert`, copy that folder here and give its path instead"
        ) from error
