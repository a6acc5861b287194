"""BERT weights between PyTorch's names and the text tower's parameter tree, bit for bit."""

from collections.abc import Mapping

import numpy as np

from lsmfm_jax.convert.convolutional import shape_of
from lsmfm_jax.models.bert_names import count_layers, state_from_tree, torch_shapes, tree_from_state
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


def infer_bert(state: Mapping[str, np.ndarray], *, num_heads: int | None) -> BertConfig:
    """Read the sizes of a BERT off its tensors.

    Args:
        state: of a PyTorch `BertModel`.
        num_heads: attention heads, which the weights do not tell.

    Raises:
        ValueError: `num_heads` is None or does not divide the width, or the tensors are not a BERT's.
    """
    vocab_size, hidden = shape_of(state, "embeddings.word_embeddings.weight", rank=2)
    if num_heads is None or num_heads < 1 or hidden % num_heads:
        raise ValueError(f"text_heads is {num_heads}: the text encoder is {hidden} wide, give a number that divides it")
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=count_layers(dict(state)),
        num_heads=num_heads,
        intermediate_size=shape_of(state, "encoder.layer.0.intermediate.dense.bias", rank=1)[0],
        max_positions=shape_of(state, "embeddings.position_embeddings.weight", rank=2)[0],
        token_types=shape_of(state, "embeddings.token_type_embeddings.weight", rank=2)[0],
        layer_norm_epsilon=1e-12,
        pad_token=0,
    )


def expected_shapes(sizes: BertConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a PyTorch `BertModel` of these sizes."""
    return torch_shapes(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        num_layers=sizes.num_layers,
        intermediate_size=sizes.intermediate_size,
        max_positions=sizes.max_positions,
        token_types=sizes.token_types,
    )
