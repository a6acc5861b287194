"""A plan as a recipe: a Python file that a person can read and change, and that `--config` takes."""

import json
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from lsmfm_jax.config.recipes import read_recipe
from lsmfm_jax.files import ForeignOutput, refuse_foreign, sha256
from lsmfm_jax.planning.decisions import Decision
from lsmfm_jax.planning.fingerprint import Fingerprint, facts

# The first line of the file; a checksum of the rest tells whether a person has changed it since.
MARK = "# Written by `lsmfm plan`; sha256 of all below: "
_WIDTH = 116


def recipe_text(
    spec: str, decisions: Sequence[Decision], found: Fingerprint, *, given: Mapping[str, Any], name: str
) -> str:
    """The source of a recipe.

    Args:
        spec: the recipe that the plan starts from, `NAME` or `NAME:VARIANT`, or with a path for the name.
        decisions: of the plan; what a decision leaves as it was becomes a comment.
        found: the fingerprint of all patches.
        given: keys that a person has set, and their values.
        name: of the file, for its own docstring.

    Raises:
        ConfigError: there is no such recipe.
    """
    base = read_recipe(spec)
    recipe, _, variant = spec.partition(":")
    if pathlib.Path(recipe).suffix == ".py":
        recipe = str(pathlib.Path(recipe).resolve())
    measured = "; ".join(f"{key}: {value}" for key, value in facts(found).items())
    body = [
        f'r"""Segmentation, planned by `lsmfm plan` from {found.patches} annotated '
        f"patch{'' if found.patches == 1 else 'es'}.",
        "",
        f"    lsmfm finetune --config ./{_word(name)} --workdir RUN",
        "",
        *_wrapped(f"Measured: {measured}.", indent=""),
        "",
        f"Variants: those of {_word(recipe)}; without one it is {_word(variant) or 'the one without a name'}, which "
        "the plan was made for.",
        '"""',
        "",
        "from lsmfm_jax.config import load_config",
        "",
        f"VARIANTS = {source_of(('', *base.variants))}",
        f"RECIPE, PLANNED = {source_of(recipe)}, {source_of(variant)}",
        "",
        "",
        "def get_config(variant: str = PLANNED):",
        '    """The recipe that the plan starts from, with what the patches ask for."""',
        '    config = load_config(f"{RECIPE}:{variant}" if variant else RECIPE)',
        "    # Given to `lsmfm plan`.",
        *(f"    config.{key} = {source_of(value)}" for key, value in given.items()),
    ]
    for one in decisions:
        if one.changed:
            body += [*_comment(f"{one.why}."), f"    config.{one.key} = {source_of(one.value)}"]
    kept = [one for one in decisions if not one.changed]
    if kept:
        body.append("    # Left as the recipe has it:")
        for one in kept:
            body += _comment(f"{one.key} = {source_of(one.value)}: {one.why}.", first="- ")
    text = "\n".join([*body, "    return config", ""])
    return f"{MARK}{sha256(text.encode())}\n{text}"


def refuse_changed(path: pathlib.Path, *, overwrite: bool) -> None:
    """Refuses to write over a file that is no plan, or a plan that a person has changed.

    Raises:
        ForeignOutput: such a file is there, and `overwrite` is off.
    """
    refuse_foreign(path, made_by="plan", mark=MARK.encode(), overwrite=overwrite)
    if overwrite or not path.exists() or not path.stat().st_size:
        return
    first, _, rest = path.read_bytes().partition(b"\n")
    if first.decode(errors="replace") != f"{MARK}{sha256(rest)}":
        raise ForeignOutput(
            f"{path}: it was changed since `lsmfm plan` wrote it; name another file with --out, or pass --overwrite to "
            "replace it"
        )


def source_of(value: Any) -> str:
    """A value of a configuration as Python, with the quotes that people use."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return f"({', '.join(map(source_of, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _word(text: str) -> str:
    """A name as it can stand in a docstring, whatever a file is called."""
    return json.dumps(text)[1:-1].replace('"', "'")


def _comment(text: str, *, first: str = "") -> list[str]:
    text = f"{first}{text[0].upper() if not first else text[0]}{text[1:]}"
    return [f"    # {line}" for line in _wrapped(text, indent=" " * len(first))]


def _wrapped(text: str, *, indent: str) -> list[str]:
    return textwrap.wrap(
        text.replace("\n", " "), _WIDTH - 6, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
