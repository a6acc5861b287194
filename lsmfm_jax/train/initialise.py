"""Starting from other weights: every leaf is accounted for, and the coverage is printed."""

import collections
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.train.optim import leaf_path

PyTree = Any


class CoverageError(LsmfmError, ValueError):
    """Weights that do not fit the network; the message names the leaves."""


def load_matching(target: PyTree, source: PyTree, *, allow: Sequence[str] = (), origin: str) -> tuple[PyTree, str]:
    """Puts the leaves of one tree into another of the same structure.

    Args:
        target: arrays or shapes that a network asks for.
        source: arrays that were read, by the same paths.
        allow: regular expressions (searched) of paths that may be missing, unexpected or of another shape; such
            leaves keep the target's value.
        origin: where the source comes from, for messages.

    Returns:
        The filled tree, and one line that says how much of it was covered.

    Raises:
        CoverageError: leaves that are missing, unexpected or of another shape, and not allowed to be; or values
            that are not finite, which are never allowed.
    """
    wanted = {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
    given = {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(source)}
    matching: dict[str, Any] = {}
    problems: dict[str, str] = {name: "unexpected" for name in given if name not in wanted}
    for name, leaf in wanted.items():
        if name not in given:
            problems[name] = "missing"
        elif tuple(np.shape(given[name])) != tuple(leaf.shape):
            problems[name] = f"{tuple(np.shape(given[name]))} where {tuple(leaf.shape)} is needed"
        else:
            matching[name] = given[name]
    refused = {name: what for name, what in problems.items() if not any(re.search(one, name) for one in allow)}
    if refused:
        lines = _by_part(refused, wanted.keys() | given.keys())
        raise CoverageError(
            f"{origin}: {len(refused)} leaves do not fit: {'; '.join(lines[:12])}"
            f"{'; ...' if len(lines) > 12 else ''}. Use the same architecture, or list in init_allow what may differ"
        )
    broken = non_finite(matching)
    if broken:
        raise CoverageError(
            f"{origin}: {len(broken)} leaves have NaN or infinite values: {', '.join(broken[:8])}; a run from them "
            "would fail at its first step. Take an earlier checkpoint"
        )
    scalars = sum(int(np.prod(leaf.shape)) for name, leaf in wanted.items() if name in matching)
    total = sum(int(np.prod(leaf.shape)) for leaf in wanted.values())
    line = (
        f"from {origin}: {len(matching)} of {len(wanted)} leaves, {scalars:,} of {total:,} values"
        f" ({100 * scalars / max(total, 1):.2f} %)"
    )
    if problems:
        lines = _by_part(problems, wanted.keys() | given.keys())
        line += f"; left as they were: {', '.join(lines[:8])}{', ...' if len(lines) > 8 else ''}"
    filled = jax.tree_util.tree_map_with_path(lambda path, leaf: matching.get(leaf_path(path), leaf), target)
    return filled, line


def non_finite(tree: PyTree) -> list[str]:
    """Paths of the leaves (numpy) that have a NaN or an infinity."""
    return [
        leaf_path(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(np.asarray(leaf).dtype, jnp.inexact) and not np.isfinite(np.asarray(leaf)).all()
    ]


def _by_part(problems: dict[str, str], names: Iterable[str]) -> list[str]:
    """A line for each leaf; one alone for a whole part, such as `params/text_tower`, that is missing or unexpected."""
    sizes = collections.Counter(_part_of(name) for name in names)
    alike = collections.Counter((_part_of(name), what) for name, what in problems.items())
    lines: dict[str, None] = {}
    for name, what in sorted(problems.items()):
        part = _part_of(name)
        whole = alike[part, what] == sizes[part] > 1
        lines[f"{part}: {what}, with its {sizes[part]} leaves" if whole else f"{name}: {what}"] = None
    return list(lines)


def _part_of(name: str) -> str:
    return "/".join(name.split("/")[:2])
