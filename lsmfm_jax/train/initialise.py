"""Starting from other weights: every leaf is accounted for, and the coverage is printed."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lsmfm_jax.train.optim import leaf_path

PyTree = Any


class CoverageError(ValueError):
    """Weights that do not fit the network; the message names the leaves."""


def take_over(target: PyTree, source: PyTree, *, allow: Sequence[str] = (), origin: str) -> tuple[PyTree, str]:
    """Puts the leaves of one tree into another of the same structure.

    Args:
        target: arrays or shapes that a network asks for.
        source: arrays at hand, by the same paths.
        allow: regular expressions (searched) of paths that may be missing, unexpected or of another shape; such
            leaves keep the target's value.
        origin: where the source comes from, for messages.

    Returns:
        The filled tree, and one line that says how much of it was covered.

    Raises:
        CoverageError: leaves that are missing, unexpected or of another shape, and not allowed to be.
    """
    wanted = {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
    given = {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(source)}
    problems = []
    taken: dict[str, Any] = {}
    for name, leaf in wanted.items():
        if name not in given:
            problems.append((name, f"{name}: missing"))
        elif tuple(np.shape(given[name])) != tuple(leaf.shape):
            problems.append((name, f"{name}: {tuple(np.shape(given[name]))} where {tuple(leaf.shape)} is needed"))
        else:
            taken[name] = given[name]
    problems += [(name, f"{name}: unexpected") for name in given if name not in wanted]
    refused = [text for name, text in problems if not any(re.search(pattern, name) for pattern in allow)]
    if refused:
        raise CoverageError(
            f"{origin}: {len(refused)} leaves do not fit: {'; '.join(refused[:12])}"
            f"{'; ...' if len(refused) > 12 else ''}. Use the same architecture, or list in init_allow what may differ"
        )
    scalars = sum(int(np.prod(leaf.shape)) for name, leaf in wanted.items() if name in taken)
    total = sum(int(np.prod(leaf.shape)) for leaf in wanted.values())
    line = (
        f"from {origin}: {len(taken)} of {len(wanted)} leaves, {scalars:,} of {total:,} values"
        f" ({100 * scalars / max(total, 1):.2f} %)"
    )
    if problems:
        line += f"; left as they were: {', '.join(name for name, _ in problems[:8])}"
    filled = jax.tree_util.tree_map_with_path(lambda path, leaf: taken.get(leaf_path(path), leaf), target)
    return filled, line
