"""A BERT read from a Hugging Face directory, or by its name on the hub: sizes, weights and tokenizer."""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.models.bert_names import tree_from_state
from lsmfm_jax.models.text import BertConfig

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
    config = read_bert_config(directory)
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


def read_bert_config(directory: pathlib.Path | str) -> BertConfig:
    """Read the sizes from `config.json` of a Hugging Face directory.

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
            f"{file}: hidden_size {sizes['hidden_size']} must be a multiple of num_attention_heads {sizes['num_heads']}"
        )
    return BertConfig(**sizes, layer_norm_epsilon=epsilon)
