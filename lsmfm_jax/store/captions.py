"""Caption files: JSON objects from a key to one text, several, or an original with its rewrites."""

import difflib
import json
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lsmfm_jax.errors import LsmfmError

# How many missing and known keys a message lists.
LISTED = 20
MOST_KNOWN = 100
MOST_COMPARISONS = 20_000


class CaptionError(LsmfmError, ValueError):
    """A caption file cannot be used, or a patch has no caption."""


class Captions(NamedTuple):
    """Texts by normalised key, in the order of the files, and notes on what was merged."""

    texts: dict[str, list[str]]
    notes: list[str]


def normalise_key(key: str) -> str:
    """Give the form in which keys are compared: lower case, spaces and hyphens as underscores."""
    return re.sub(r"[\s-]", "_", key.strip().lower())


def load_captions(paths: Sequence[str | pathlib.Path]) -> Captions:
    """Read and merge caption files.

    A value is one text, a list of texts, or an object with `orig` (a text) and/or `rewrites` (a list of
    texts); anything else in such an object is left alone, and so are empty texts beside others. All texts of
    a key, from whichever file, are its paraphrases, each kept once. A key without any text is left out, and
    noted.

    Raises:
        CaptionError: a file is missing or not JSON (with its line), names a key twice, or holds something
            other than texts.
    """
    # Dictionaries keep the order and find a text at once, however many there are.
    merged: dict[str, dict[str, None]] = {}
    notes = []
    for path in map(pathlib.Path, paths):
        joined, empty = [], []
        for key, value in _read(path).items():
            name = normalise_key(key)
            texts = _texts(value, where=f"{path}, key {key!r}")
            known = merged.get(name, {})
            new = {text: None for text in texts if text not in known}
            if known and new:
                joined.append(name)
            if known or new:
                known.update(new)
                merged[name] = known
            else:
                empty.append(name)
        if joined:
            notes.append(f"{path}: its texts join those there already as paraphrases, for {_listed(joined)}")
        if empty:
            notes.append(f"{path}: no text for {_listed(empty)}, left out")
    return Captions({name: list(texts) for name, texts in merged.items()}, notes)


def require_captions(needed: Iterable[str], known: Iterable[str]) -> None:
    """Check that every key has a caption; keys match exactly or not at all.

    Raises:
        CaptionError: naming the missing keys, their closest known ones, and all known ones.
    """
    known = sorted(set(known))
    missing = sorted(set(needed) - set(known))
    if not missing:
        return
    lines = [f"{len(missing)} caption key(s) of the patches are in no caption file:"]
    # A close key is found by comparing with every known one, so among very many none is looked for.
    compared = MOST_COMPARISONS // max(1, len(known))
    for number, key in enumerate(missing[:LISTED]):
        close = difflib.get_close_matches(key, known, n=1) if number < compared else []
        lines.append(f"  {key}" + (f"  (known and close: {close[0]})" if close else ""))
    if len(missing) > LISTED:
        lines.append(f"  and {len(missing) - LISTED} more")
    more = f" and {len(known) - MOST_KNOWN} more" if len(known) > MOST_KNOWN else ""
    lines.append(f"Known keys: {', '.join(known[:MOST_KNOWN]) or 'none'}{more}.")
    lines.append("Add the keys to a caption file, or ingest without captions for image-only pretraining.")
    raise CaptionError("\n".join(lines))


def _listed(keys: list[str]) -> str:
    return f"{len(keys)} key(s): {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_refuse_repeated_keys)
    except json.JSONDecodeError as error:
        raise CaptionError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})."
        ) from None
    except RecursionError:
        raise CaptionError(f"{path}: its objects are nested too deeply; give texts by key.") from None
    except (OSError, ValueError) as error:
        raise CaptionError(f"{path}: cannot be read as a caption file ({error}).") from None
    if not isinstance(content, dict) or not content:
        raise CaptionError(f"{path}: expected a JSON object from keys to texts with at least one key.")
    return content


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON readers keep the last of equal keys, so the other texts would be lost without a word.
    repeated = sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    if repeated:
        raise ValueError(f"key {repeated[0]!r} stands twice in one object")
    return dict(pairs)


def _texts(value: Any, *, where: str) -> list[str]:
    if isinstance(value, str):
        texts = [value]
    elif isinstance(value, list):
        texts = value
    elif isinstance(value, dict) and ("orig" in value or "rewrites" in value):
        texts = ([value["orig"]] if "orig" in value else []) + _list(value.get("rewrites", []), where=where)
    else:
        raise CaptionError(f"{where}: expected a text, a list of texts, or an object with 'orig' and 'rewrites'.")
    if not all(isinstance(text, str) for text in texts):
        raise CaptionError(f"{where}: expected texts only.")
    # Rewriting tools leave empty texts where they gave up.
    return [" ".join(text.split()) for text in texts if text.strip()]


def _list(value: Any, *, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise CaptionError(f"{where}: 'rewrites' is {type(value).__name__}, expected a list of texts.")
    return value
