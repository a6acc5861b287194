"""The limit on elements of one array, and a check that a network's maps stay within it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lsmfm_jax.errors import InputError

# Libraries of convolutions count elements in 32-bit integers: beyond this they fail, or fall back to slow kernels.
MOST_ELEMENTS = 2**31


def largest_map(backbone: nn.Module, input_size: tuple[int, ...]) -> tuple[str, int]:
    """Path and elements, for one patch, of the largest output of any layer; nothing is computed.

    Args:
        backbone: a network with `trunk`.
        input_size: voxels of its input along Z, Y, X.
    """
    volume = jax.ShapeDtypeStruct((1, *input_size, 1), jnp.float32)

    def outputs(volume: jax.Array) -> dict:
        variables = backbone.init(jax.random.key(0), volume, train=False, method="trunk")
        captured = {"method": "trunk", "train": True, "capture_intermediates": True}
        return backbone.apply(variables, volume, mutable=["intermediates", "batch_stats"], **captured)[1][
            "intermediates"
        ]

    shapes = jax.tree_util.tree_flatten_with_path(jax.eval_shape(outputs, volume))[0]
    path, leaf = max(shapes, key=lambda entry: entry[1].size)
    return "/".join(str(key.key) for key in path if hasattr(key, "key") and key.key != "__call__"), leaf.size


def check_map_sizes(backbone: nn.Module, input_size: tuple[int, ...], *, batch: int, devices: int = 1) -> None:
    """Refuse a batch with which a map of the network would pass `MOST_ELEMENTS` on a device.

    Args:
        backbone: a network with `trunk`.
        input_size: voxels of its input along Z, Y, X.
        batch: patches that are computed at a time, over all devices (one micro-batch of `train.accumulate_steps`).
        devices: how many share each map of that batch.

    Raises:
        ValueError: one would; the message says which, and the largest batch that fits.
    """
    path, elements = largest_map(backbone, input_size)
    if elements * batch <= MOST_ELEMENTS * devices:
        return
    raise InputError(
        f"train.batch_size: {batch} patches of {' x '.join(map(str, input_size))} voxels at a time on {devices} "
        f"device(s) make the output of {path} {math.ceil(elements * batch / devices):,} elements on each; at most "
        f"2**31 are allowed, so at most {MOST_ELEMENTS * devices // elements} patches at a time: lower it, or raise "
        "train.accumulate_steps or the number of devices"
    )
