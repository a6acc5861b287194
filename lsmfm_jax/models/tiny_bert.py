"""A tiny random BERT with a WordPiece vocabulary learnt from captions, for tests and the quick start."""

import collections
import json
import pathlib
from collections.abc import Iterable

import numpy as np
from safetensors.numpy import save

from lsmfm_jax.errors import InputError
from lsmfm_jax.files import replace_file, replace_text
from lsmfm_jax.models.bert_names import torch_names, torch_shapes

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def build_tiny_bert(
    out_dir: pathlib.Path | str,
    captions: Iterable[str],
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    vocab_size: int = 1000,
    max_positions: int = 512,
    seed: int = 0,
) -> pathlib.Path:
    """Write a random BERT and its tokenizer as a Hugging Face directory; the same input gives the same bytes.

    Args:
        out_dir: folder to write; made if absent.
        captions: texts the WordPiece vocabulary is learnt from (lower case).
        hidden: width of the encoder; its feed-forward width is four times that.
        layers: number of transformer layers.
        heads: attention heads, a divisor of `hidden`.
        vocab_size: most entries the vocabulary may have, special tokens included.
        max_positions: longest caption in tokens.
        seed: of the random weights.

    Raises:
        ValueError: no captions, `hidden` is not a multiple of `heads`, or `vocab_size` cannot hold the
            captions' characters.
    """
    captions = sorted(set(captions))
    if not captions:
        raise InputError("captions is empty: a vocabulary needs at least one caption to be learnt from")
    if hidden % heads:
        raise InputError(f"hidden is {hidden}, must be a multiple of heads, {heads}")
    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    words = _write_tokenizer(out_dir, captions, vocab_size=vocab_size, max_positions=max_positions)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": words,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": max_positions,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
        "pad_token_id": 0,
    }
    replace_text(out_dir / "config.json", json.dumps(config, indent=2) + "\n")
    # The metadata entry is what transformers asks of a file before it loads it into PyTorch.
    replace_file(out_dir / "model.safetensors", save(_random_state(config, seed), metadata={"format": "pt"}))
    return out_dir


def _write_tokenizer(out_dir: pathlib.Path, captions: list[str], *, vocab_size: int, max_positions: int) -> int:
    """Learn and write the tokenizer; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = collections.Counter(
        word for caption in captions for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption))
    )
    words = _vocabulary(counts, vocab_size)
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer.save(str(out_dir / "tokenizer.json"))
    replace_text(out_dir / "vocab.txt", "\n".join(words) + "\n")
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": max_positions,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    replace_text(out_dir / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
    return len(words)


def _vocabulary(counts: collections.Counter, vocab_size: int) -> list[str]:
    """Special tokens, every character alone and as a continuation, then the commonest words.

    The trainer of `tokenizers` breaks ties by the order of a hash table, which differs between processes.
    """
    letters = sorted({letter for word in counts for letter in word})
    pieces = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)]
    if vocab_size < len(pieces):
        raise InputError(f"vocab_size is {vocab_size}, but the captions' characters alone need {len(pieces)}")
    by_count = sorted(counts, key=lambda word: (-counts[word], word))
    words = [word for word in by_count if len(word) > 1]
    return (pieces + words)[:vocab_size]


def _random_state(config: dict, seed: int) -> dict[str, np.ndarray]:
    """Normal weights (std 0.02), zero biases, unit norms, under PyTorch's names."""
    shapes = torch_shapes(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        token_types=config["type_vocab_size"],
    )
    rng = np.random.default_rng(seed)
    state = {}
    for ours, (theirs, _) in torch_names(config["num_hidden_layers"]).items():
        if ours.endswith(("/bias", "/scale")):
            state[theirs] = np.full(shapes[theirs], float(ours.endswith("/scale")), np.float32)
        else:
            state[theirs] = (0.02 * rng.standard_normal(shapes[theirs])).astype(np.float32)
    return state
