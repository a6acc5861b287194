"""Fingerprints of arrays: one changed bit changes them, another sharding does not."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsmfm_jax.train.optim import leaf_path

PyTree = Any

# Each element's bits are mixed with its position by a bijection, then all are added up modulo 2^32: one changed
# bit always changes the sum, and the order of addition, so the sharding, does not. Two salts give 64 bits.
_SALTS = (0x9E3779B9, 0x85EBCA6B)


def _mixed_sum(bits: Any, numbers: Any, salt: int) -> Any:
    """The sum for one salt, of words (N,) uint32; `numbers` is the array module, `numpy` or `jax.numpy`."""
    u32 = numbers.uint32
    word = bits ^ (numbers.arange(bits.size, dtype=u32) * u32(salt) + u32(salt >> 3))
    word = (word ^ (word >> u32(16))) * u32(0x7FEB352D)
    word = (word ^ (word >> u32(15))) * u32(0x846CA68B)
    return numbers.sum(word ^ (word >> u32(16)), dtype=u32)


def _device_fingerprint(leaf: jax.Array) -> jax.Array:
    flat = leaf.reshape(-1)
    if flat.dtype == jnp.bool_:
        flat = flat.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(flat, jnp.dtype(f"uint{8 * flat.dtype.itemsize}"))
    bits = bits.astype(jnp.uint32).reshape(-1)
    return jnp.stack([_mixed_sum(bits, jnp, salt) for salt in _SALTS])


@jax.jit
def _device_fingerprints(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_device_fingerprint(leaf) for leaf in leaves]


def _host_fingerprint(leaf: Any) -> tuple[int, int]:
    flat = np.ascontiguousarray(leaf).reshape(-1)
    bits = flat.view(np.dtype(f"uint{8 * flat.dtype.itemsize}")).astype(np.uint32)
    first, second = (int(_mixed_sum(bits, np, salt)) for salt in _SALTS)
    return first, second


def fingerprints(tree: PyTree) -> dict[str, str]:
    """A 64-bit fingerprint of every leaf, the same for any sharding; path to 16 hexadecimal digits."""
    named = [(leaf_path(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    leaves = [leaf for _, leaf in named]
    if all(_is_on_host(leaf) for leaf in leaves):
        # A program for each set of shapes takes longer to compile than the sums take.
        pairs = [_host_fingerprint(leaf) for leaf in leaves]
    else:
        pairs = jax.device_get(_device_fingerprints(leaves))
    return {name: f"{int(pair[0]):08x}{int(pair[1]):08x}" for (name, _), pair in zip(named, pairs, strict=True)}


def _is_on_host(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array):
        return leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices())
    return isinstance(leaf, np.ndarray | np.generic)


def combined_fingerprint(tree: PyTree) -> str:
    """One fingerprint of a whole tree."""
    text = json.dumps(fingerprints(tree), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
