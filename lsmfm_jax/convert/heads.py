"""Weights of the light decoder and the projection heads to and from PyTorch, bit for bit."""

from collections.abc import Mapping, Sequence

import numpy as np

from lsmfm_jax.convert.convolutional import compare_names

# Positions of the layers inside the released code's `nn.Sequential`s: ours, theirs.
LIGHT_DECODER = (("conv_0", "decoder.0"), ("conv_1", "decoder.2"), ("conv_2", "decoder.4"))
IMAGE_PROJECTION = (("dense_0", "2"), ("dense_1", "4"), ("norm", "5"))  # 0 and 1 pool and flatten
TEXT_PROJECTION = (("dense_0", "0"), ("dense_1", "2"), ("norm", "3"))

Layers = Sequence[tuple[str, str]]


def from_torch(state: Mapping[str, np.ndarray], layers: Layers) -> dict[str, dict]:
    """Convert a stack of layers with weight and bias; `layers` pairs our names with theirs.

    Raises:
        ValueError: keys are missing or left over; the message names them.
    """
    expected = {f"{theirs}.{leaf}" for _, theirs in layers for leaf in ("weight", "bias")}
    compare_names(expected, set(state))
    params: dict[str, dict] = {}
    for ours, theirs in layers:
        weight = np.asarray(state[f"{theirs}.weight"])
        name = "scale" if weight.ndim == 1 else "kernel"
        # Out, in, Z, Y, X (or out, in) becomes Z, Y, X, in, out.
        kernel = weight if weight.ndim == 1 else np.moveaxis(weight, (0, 1), (-1, -2))
        params[ours] = {name: np.ascontiguousarray(kernel), "bias": np.asarray(state[f"{theirs}.bias"])}
    return {"params": params, "batch_stats": {}}


def to_torch(variables: Mapping[str, Mapping], layers: Layers) -> dict[str, np.ndarray]:
    """Convert a head's variables to PyTorch: inverse of `from_torch`.

    Raises:
        ValueError: layers are missing or left over; the message names them.
    """
    params = variables["params"]
    names = {ours for ours, _ in layers}
    if names != set(params):
        raise ValueError(f"a head's parameters: expected layers {sorted(names)}, got {sorted(params)}")
    state = {}
    for ours, theirs in layers:
        leaves = params[ours]
        if "scale" in leaves:
            weight = np.asarray(leaves["scale"])
        else:
            weight = np.moveaxis(np.asarray(leaves["kernel"]), (-1, -2), (0, 1))
        state[f"{theirs}.weight"] = np.ascontiguousarray(weight)
        state[f"{theirs}.bias"] = np.asarray(leaves["bias"])
    return state
