"""The text model that belongs to a checkpoint: found beside it, and written as a Hugging Face directory."""

import json
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lsmfm_jax.convert import bert, pretraining
from lsmfm_jax.models.text import BertConfig

FOLDER = "text"
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json"
)  # fmt: skip


def attention_heads(state: Mapping[str, np.ndarray], noted: int | None) -> int | None:
    """Heads of a checkpoint's text encoder: as noted, or 64 channels each as every published BERT has.

    None where neither tells.
    """
    if noted is not None:
        return noted
    words = state.get(f"{pretraining.TEXT}.embeddings.word_embeddings.weight")
    if words is None or words.ndim != 2 or words.shape[1] % 64:
        return None
    return words.shape[1] // 64


def beside(file: pathlib.Path, metadata: Mapping[str, Any]) -> pathlib.Path | None:
    """The text model's directory, by its name in the hyper-parameters, where it lies beside the checkpoint."""
    hyper = metadata.get("hyper_parameters")
    model = hyper.get("model") if isinstance(hyper, Mapping) else None
    name = model.get("text_model_name") if isinstance(model, Mapping) else None
    # Beside the file only: a path from a foreign file must not lead anywhere else.
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        return None
    folder = file.parent / name
    return folder if (folder / "config.json").is_file() else None


def write_text_model(
    folder: pathlib.Path, params: Mapping[str, Any], sizes: BertConfig, *, tokenizer_from: pathlib.Path | None
) -> str:
    """Writes a text tower as a Hugging Face directory, and tells in a line whether it has a tokenizer."""
    folder.mkdir(exist_ok=True)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "intermediate_size": sizes.intermediate_size,
        "hidden_act": "gelu",
        "max_position_embeddings": sizes.max_positions,
        "type_vocab_size": sizes.token_types,
        "layer_norm_eps": sizes.layer_norm_epsilon,
        "pad_token_id": sizes.pad_token,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(bert.to_torch({"params": params}), folder / "model.safetensors", metadata={"format": "pt"})
    copied = [name for name in _TOKENIZER_FILES if tokenizer_from and (tokenizer_from / name).is_file()]
    for name in copied:
        shutil.copyfile(tokenizer_from / name, folder / name)
    if copied:
        return f"text tower and tokenizer in {folder}; text.source takes that folder"
    return (
        f"text tower in {folder}, without a tokenizer, which the checkpoint does not hold: copy vocab.txt and "
        "tokenizer_config.json of the text model there, or import again with --text-model DIR"
    )
