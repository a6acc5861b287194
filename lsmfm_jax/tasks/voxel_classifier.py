"""A regression of single voxels beside a segmentation network.

It is the mean of two, fitted in seconds on the very patches that the network trains on: one threshold of the scaled
voxel, and a logistic regression that also sees Gaussian means around it. Both know little: that is why they carry over
to the next brain where a network of five patches does not, and sometimes the one does, sometimes the other. Their
logit and a share of the network's are added for every prediction; training does not see them, so the network learns
for itself.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from lsmfm_jax.baselines import PIXEL_SIGMAS, fit_pixel_classifier
from lsmfm_jax.data.labels import IGNORED
from lsmfm_jax.resample import gaussian_smooth
from lsmfm_jax.tasks.declaration import Patches, PrintLine


@dataclasses.dataclass(frozen=True)
class VoxelClassifier:
    """A fitted regression, and how much the network counts beside it.

    Attributes:
        weights: of the scaled voxel and of the Gaussian means of `baselines.PIXEL_SIGMAS`.
        bias: added to them.
        network_weight: of the network's logit.
    """

    weights: tuple[float, ...]
    bias: float
    network_weight: float

    def combined(
        self, logits: Float[Array, "b z y x 1"], images: Float[Array, "b z y x 1"]
    ) -> Float[Array, "b z y x 1"]:
        """The logits of both together; `images` are scaled as the network sees them."""
        own = self.weights[0] * images + self.bias
        for weight, sigma in zip(self.weights[1:], PIXEL_SIGMAS, strict=True):
            own = own + weight * gaussian_smooth(images, jnp.full((images.shape[0], 3), sigma))
        # Without a weight the network is not even computed: XLA leaves out what no result depends on.
        return own + self.network_weight * logits if self.network_weight else own

    def record(self) -> dict[str, Any]:
        """What a run writes down of it; `recorded` reads it."""
        return {**dataclasses.asdict(self), "sigmas": list(PIXEL_SIGMAS)}


def recorded(record: dict[str, Any] | None) -> VoxelClassifier | None:
    """The regression that a run was made with, if any."""
    if not record:
        return None
    return VoxelClassifier(tuple(record["weights"]), record["bias"], record["network_weight"])


def fit_voxel_classifier(config: ConfigDict, patches: Patches, print_line: PrintLine) -> VoxelClassifier | None:
    """Fits the regression on the training patches; None where the configuration wants none, or it cannot be fitted."""
    if not config.voxel_classifier.enabled:
        return None
    volumes = [patch.scaled() for patch in patches.train]
    masks = [patch.target == 1 for patch in patches.train]
    annotated = [patch.target != IGNORED for patch in patches.train]
    try:
        smooth = fit_pixel_classifier(volumes, masks, annotated, seed=config.seed)
        threshold = fit_pixel_classifier(volumes, masks, annotated, sigmas=(), seed=config.seed)
    except ValueError as error:
        print_line(f"no voxel classifier beside the network: {error}")
        return None
    print_line(
        "a threshold and a regression of single voxels were fitted on the training patches; predictions add the "
        "network's logit to them"
    )
    weights = np.array(smooth.weights) / 2
    weights[0] += threshold.weights[0] / 2
    bias = (smooth.bias + threshold.bias) / 2
    return VoxelClassifier(tuple(weights.tolist()), bias, config.voxel_classifier.network_weight)
