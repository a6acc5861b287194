"""ResNet-18 weights to and from MONAI's state dict, bit for bit."""

from collections.abc import Mapping

import numpy as np

from lsmfm_jax.convert.convolutional import Entry, batch_norm_entries, conv_entries, gather, scatter

NETWORK = "ResNet18"


def from_torch(state: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Convert a MONAI `resnet18` state dict (3D, shortcut type B with bias) to Flax variables.

    The batch norms' `num_batches_tracked`, which PyTorch does not use at a fixed momentum, are dropped.

    Raises:
        ValueError: keys are missing or left over.
    """
    return gather(state, _entries(), network=NETWORK)


def to_torch(variables: Mapping[str, Mapping], *, batches_tracked: int = 0) -> dict[str, np.ndarray]:
    """Convert Flax variables to a MONAI `resnet18` state dict: inverse of `from_torch`.

    Args:
        variables: "params" and "batch_stats".
        batches_tracked: what the batch norms' `num_batches_tracked` are set to.

    Raises:
        ValueError: variables are missing or left over.
    """
    return scatter(variables, _entries(), network=NETWORK, batches_tracked=batches_tracked)


def _entries() -> list[Entry]:
    entries = conv_entries("conv1", "stem_conv", bias=False) + batch_norm_entries("bn1", "stem_norm")
    for stage in range(4):
        for block in range(2):
            theirs, ours = f"layer{stage + 1}.{block}", f"stage_{stage}_block_{block}"
            for k in range(2):
                entries += conv_entries(f"{theirs}.conv{k + 1}", f"{ours}/conv_{k}", bias=False)
                entries += batch_norm_entries(f"{theirs}.bn{k + 1}", f"{ours}/norm_{k}")
            if stage > 0 and block == 0:
                entries += conv_entries(f"{theirs}.downsample.0", f"{ours}/shortcut_conv")
                entries += batch_norm_entries(f"{theirs}.downsample.1", f"{ours}/shortcut_norm")
    return entries + conv_entries("fc", "classifier", kind="linear")
