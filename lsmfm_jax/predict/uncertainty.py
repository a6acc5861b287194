"""How uncertain a segmentation is at each voxel: how much its members disagree, or what one probability leaves open.

Members are networks of several runs, or one network on several flips. Each gives its own probability of foreground.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import entr, rel_entr

Map = Float[np.ndarray, "z y x"]


def mutual_information(probabilities: Sequence[Map]) -> Map:
    """Mutual information between the class of a voxel and the member that is asked, in bits.

    This is the entropy of the members' mean minus the mean of their entropies (BALD; Houlsby et al., "Bayesian Active
    Learning for Classification and Preference Learning", 2011, equation 2), computed as the mean of the members'
    Kullback-Leibler divergences from their mean: the same number, without a difference of two that are nearly equal.

    Args:
        probabilities: of foreground, 0 to 1, a map (Z, Y, X) of each member.

    Returns:
        float32, 0 where all members agree exactly (also on one half) to 1 where half of them say 0 and half 1.
    """
    information = np.empty(probabilities[0].shape, np.float32)
    for z in range(len(information)):  # a plane at a time, as all is in double precision
        each = _plane(probabilities, z)
        mean = each.mean(axis=0)
        divergence = rel_entr(each, mean) + rel_entr(1 - each, 1 - mean)
        information[z] = np.clip(divergence.mean(axis=0) / np.log(2), 0.0, 1.0)
    return information


def mean_probability(probabilities: Sequence[Map]) -> Map:
    """Mean of the members' maps, float32; of equal maps it is that map exactly."""
    mean = np.empty(probabilities[0].shape, np.float32)
    for z in range(len(mean)):
        mean[z] = _plane(probabilities, z).mean(axis=0)
    return mean


def binary_entropy(probability: Map) -> Map:
    """Entropy of a single probability of foreground, in bits: 0 where it is 0 or 1, 1 where it is one half; float32."""
    entropy = np.empty(probability.shape, np.float32)
    for z, plane in enumerate(probability.astype(np.float64)):
        entropy[z] = (entr(plane) + entr(1 - plane)) / np.log(2)
    return entropy


def _plane(probabilities: Sequence[Map], z: int) -> Float[np.ndarray, "m y x"]:
    return np.stack([one[z] for one in probabilities]).astype(np.float64)
