"""What a device can do at best, and how much of its memory was used: the yardsticks of the other figures."""

import statistics

import jax
import jax.numpy as jnp
from outcome import process_peak_bytes
from timing import time_calls

# Edge of the square matrices; on a CPU small enough to take a fraction of a second.
EDGE = {"cpu": 1024}
ACCELERATOR_EDGE = 8192
PRODUCTS = 10


def matrix_peak(dtype: str) -> float:
    """Measured operations per second of a large square matrix product on random data, on one device."""
    edge = EDGE.get(jax.default_backend(), ACCELERATOR_EDGE)
    left, right = (jax.random.normal(jax.random.key(seed), (edge, edge)).astype(jnp.dtype(dtype)) for seed in (0, 1))
    product = jax.jit(jnp.matmul)

    def many() -> list[jax.Array]:
        return [product(left, right) for _ in range(PRODUCTS)]

    seconds = statistics.median(time_calls(many, warm_up=1, measurements=5))
    return 2 * edge**3 * PRODUCTS / seconds


def peak_bytes() -> tuple[int, str]:
    """Most memory used so far, and what it counts: the device's allocator, or this whole process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"]), "device allocator, peak bytes in use"
    return process_peak_bytes(), "resident set of the process at its largest, program and libraries included"
