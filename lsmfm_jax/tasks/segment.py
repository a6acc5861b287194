"""Segmentation: the pretrained encoder and decoder, and a 1x1x1 head on their dense features (paper, section 3)."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from lsmfm_jax.tasks.finetuning import Network, backbone_of, dense_head
from lsmfm_jax.train.task import PyTree


def build_segmenter(
    record: dict[str, Any], *, dtype: str = "float32"
) -> Callable[[PyTree, PyTree, Float[Array, "b z y x 1"]], Float[Array, "b z y x 1"]]:
    """The network of a segmentation run, for prediction.

    Args:
        record: what the run wrote to `run.json`; `architecture` is read.
        dtype: compute type.

    Returns:
        A pure `apply(params, batch_stats, volumes) -> probabilities`; the trees are those of `read_weights`,
        volumes are scaled to [0, 1] by the percentiles in `record["scaling"]` and clipped.
    """
    network = Network(backbone_of(record["architecture"], dtype=dtype))

    def apply(params: PyTree, batch_stats: PyTree, volumes: Array) -> Array:
        return jax.nn.sigmoid(dense_head(params["head"], network.trunk(params, batch_stats, volumes)))

    return apply
