"""BERT weights between PyTorch's names and the text tower's parameter tree, bit for bit."""

from collections.abc import Mapping

import numpy as np

from lsmfm_jax.models.bert_names import state_from_tree, tree_from_state
from lsmfm_jax.models.text import BertConfig


def from_torch(state: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Convert the state dict of a PyTorch `BertModel` to the text tower's variables.

    Raises:
        ValueError: keys are missing or left over; the message names them.
    """
    return {"params": tree_from_state(dict(state)), "batch_stats": {}}


def to_torch(variables: Mapping[str, Mapping]) -> dict[str, np.ndarray]:
    """Convert the text tower's variables to a PyTorch `BertModel` state dict: inverse of `from_torch`.

    Raises:
        ValueError: parameters are missing or left over; the message names them.
    """
    return state_from_tree(dict(variables["params"]))


def infer_bert(state: Mapping[str, np.ndarray], *, num_heads: int | None = None) -> BertConfig:
    """Read the sizes of a BERT off its tensors.

    Args:
        state: of a PyTorch `BertModel`.
        num_heads: the weights do not tell it; None takes 64 channels a head, as in bert-base.

    Raises:
        ValueError: `num_heads` does not divide the width, or is needed because 64 does not.
    """
    params = from_torch(state)["params"]
    vocab_size, hidden = params["embeddings"]["word"].shape
    heads = num_heads if num_heads is not None else max(hidden // 64, 1)
    if hidden % heads or (num_heads is None and hidden % 64):
        raise ValueError(f"text_heads is {num_heads}: the text encoder is {hidden} wide, give a number that divides it")
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=sum(name.startswith("layer_") for name in params),
        num_heads=heads,
        intermediate_size=params["layer_0"]["feed_forward"]["up"]["bias"].shape[0],
        max_positions=params["embeddings"]["position"].shape[0],
        token_types=params["embeddings"]["token_type"].shape[0],
        layer_norm_epsilon=1e-12,
        pad_token=0,
    )
