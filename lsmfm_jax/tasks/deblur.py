"""Deblurring: a residual from the dense features, added to the blurred volume (paper, section 3).

Two scales. The network sees the input as in pretraining: its own percentiles at 0 and 1, clipped. The residual is
added to the *unclipped* input on a wider scale, `target_range`, measured on the training targets: sharp structures
are brighter than anything in their blurred image, and the input's percentiles would cut 1 to 5 % of them off.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lsmfm_jax.tasks.finetuning import Network, backbone_of, dense_head
from lsmfm_jax.train.task import PyTree


def build_deblurrer(
    record: dict[str, Any], *, dtype: str = "float32"
) -> Callable[[PyTree, PyTree, Float[Array, "b z y x 1"]], Float[Array, "b z y x 1"]]:
    """The network of a deblurring run, for prediction.

    Args:
        record: what the run wrote to `run.json`; `architecture` and `target_range` are read.
        dtype: compute type.

    Returns:
        A pure `apply(params, batch_stats, volumes) -> sharpened`; the trees are those of `read_weights`. Volumes
        and result are on one scale, `(counts - low) / (high - low)` with the blurred file's percentiles in
        `record["scaling"]`, and must *not* be clipped: `counts = low + result * (high - low)`.
    """
    network = Network(backbone_of(record["architecture"], dtype=dtype))
    bottom, top = record["target_range"]

    def apply(params: PyTree, batch_stats: PyTree, volumes: Array) -> Array:
        residual = dense_head(params["head"], network.trunk(params, batch_stats, jnp.clip(volumes, 0.0, 1.0)))
        wide = (volumes - bottom) / (top - bottom)
        return jnp.clip(wide + residual, 0.0, 1.0) * (top - bottom) + bottom

    return apply
