"""Classification: the encoder's deepest map, its mean over voxels, one linear layer (paper, section 3)."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from lsmfm_jax.tasks.finetuning import Network, backbone_of, pooled_head
from lsmfm_jax.train.task import PyTree


def build_classifier(
    record: dict[str, Any], *, dtype: str = "float32"
) -> Callable[[PyTree, PyTree, Float[Array, "b z y x 1"]], Float[Array, "b k"]]:
    """The network of a classification run, for prediction.

    Args:
        record: what the run wrote to `run.json`; `architecture` is read. `record["classes"]` names the columns.
        dtype: compute type.

    Returns:
        A pure `apply(params, batch_stats, volumes) -> probabilities` of each class; the trees are those of
        `read_weights`, volumes are scaled to [0, 1] by the percentiles in `record["scaling"]` and clipped.
    """
    network = Network(backbone_of(record["architecture"], dtype=dtype))

    def apply(params: PyTree, batch_stats: PyTree, volumes: Array) -> Array:
        return jax.nn.softmax(pooled_head(params["head"], network.trunk(params, batch_stats, volumes)))

    return apply
