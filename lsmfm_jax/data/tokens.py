"""Captions as token ids: every wording once in a table, and which rows belong to which caption key."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from lsmfm_jax.errors import InputError

# Token counts are rounded up to this, so that captions added later seldom change compiled shapes.
TOKEN_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """All wordings of all captions, tokenised.

    Attributes:
        tokens: token ids, (n, T); padded on the right.
        mask: True at real tokens, (n, T).
        rows: caption key -> the rows of its wordings, the original first.
    """

    tokens: Int32[np.ndarray, "n t"]
    mask: Bool[np.ndarray, "n t"]
    rows: dict[str, list[int]]

    def require(self, keys: Iterable[str]) -> None:
        """Check that every caption key has a wording.

        Raises:
            ValueError: some have none; names them and the known ones.
        """
        missing = sorted({key for key in keys if not self.rows.get(key)})
        if missing:
            raise InputError(
                f"no caption for the keys {', '.join(missing)}; "
                f"known keys: {', '.join(sorted(self.rows)) or 'none'}. "
                "Add them to the captions file and ingest again, or train with text.enabled=False."
            )


def build_token_table(captions: Mapping[str, Sequence[str]], tokenizer: Any, max_tokens: int) -> TokenTable:
    """Tokenise every wording, cut to `max_tokens` and padded to the longest (rounded up to a multiple of 8).

    Args:
        captions: caption key -> wordings, the original first.
        tokenizer: a tokenizer of the transformers package.
        max_tokens: most tokens a caption may have, special ones included.

    Raises:
        ValueError: there are no captions, or a key has no wording.
    """
    empty = sorted(key for key, texts in captions.items() if not texts)
    if empty or not captions:
        raise InputError(f"captions without a wording: {', '.join(empty) or 'all (there are no captions)'}")
    rows: dict[str, list[int]] = {}
    texts: list[str] = []
    for key in sorted(captions):
        rows[key] = list(range(len(texts), len(texts) + len(captions[key])))
        texts.extend(captions[key])
    encoded = tokenizer(texts, truncation=True, max_length=max_tokens)
    longest = max(len(ids) for ids in encoded["input_ids"])
    width = min(-(-longest // TOKEN_MULTIPLE) * TOKEN_MULTIPLE, max_tokens)
    tokens = np.full((len(texts), width), tokenizer.pad_token_id or 0, np.int32)
    mask = np.zeros((len(texts), width), bool)
    for row, (ids, real) in enumerate(zip(encoded["input_ids"], encoded["attention_mask"], strict=True)):
        tokens[row, : len(ids)] = ids
        mask[row, : len(real)] = np.asarray(real, bool)
    return TokenTable(tokens, mask, rows)
