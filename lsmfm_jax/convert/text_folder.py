"""The text model that belongs to a checkpoint: found beside it, and written as a Hugging Face directory."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from safetensors.numpy import save

from lsmfm_jax.convert import bert
from lsmfm_jax.files import replace_file, replace_text
from lsmfm_jax.models.text import BertConfig
from lsmfm_jax.models.text_directory import read_bert_config

FOLDER = "text"
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json"
)  # fmt: skip


class TextSource(NamedTuple):
    """Where the facts that a text encoder's weights do not tell come from.

    Attributes:
        directory: its Hugging Face directory, or None.
        given_heads: its attention heads as a person gave them, or None.
    """

    directory: pathlib.Path | None
    given_heads: int | None

    def heads(self, noted: int | None) -> int | None:
        """Attention heads: of the directory, as given, or as noted in the file; None where nothing tells them.

        Raises:
            ValueError: the directory and the person differ, or the directory holds no BERT.
        """
        if self.directory is None:
            return self.given_heads or noted
        heads = read_bert_config(self.directory).num_heads
        if self.given_heads not in (None, heads):
            raise ValueError(
                f"--text-heads {self.given_heads}, but {self.directory} has {heads}; leave one of them out"
            )
        return heads

    def complete(self, sizes: BertConfig) -> BertConfig:
        """Sizes of the weights, completed from the directory.

        Raises:
            ValueError: the directory is that of another BERT; the message has the sizes that differ.
        """
        if self.directory is None:
            return sizes
        told = read_bert_config(self.directory)
        # The smallest constant and the padding token are in no tensor.
        free = ("layer_norm_epsilon", "pad_token", "num_heads")
        own, other = dataclasses.asdict(sizes), dataclasses.asdict(told)
        wrong = [f"{key} {other[key]} where the file has {own[key]}" for key in own if own[key] != other[key]]
        wrong = [text for text in wrong if not text.startswith(free)]
        if wrong:
            raise ValueError(f"{self.directory} is not the text encoder's directory: {'; '.join(wrong)}")
        return told


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
) -> bool:
    """Writes a text tower as a Hugging Face directory; returns whether a tokenizer could be copied into it."""
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
    replace_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    replace_file(folder / "model.safetensors", save(bert.to_torch({"params": params}), metadata={"format": "pt"}))
    copied = [name for name in _TOKENIZER_FILES if tokenizer_from and (tokenizer_from / name).is_file()]
    for name in copied:
        replace_file(folder / name, (tokenizer_from / name).read_bytes())
    return bool(copied)


def describe(folder: pathlib.Path, sizes: BertConfig, *, has_tokenizer: bool) -> str:
    """A line on the text tower that lies in a folder."""
    if has_tokenizer:
        return f"text tower and tokenizer in {folder}, {sizes.num_heads} attention heads; text.source takes that folder"
    return (
        f"text tower in {folder}, {sizes.num_heads} attention heads, without a tokenizer, which the checkpoint lacks: "
        "copy vocab.txt and tokenizer_config.json of the text model there, or import again with --text-model DIR"
    )
