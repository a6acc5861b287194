"""Times of repeated calls: warm-up first, then medians with their spread."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of some measurements, and how many there were."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "count": len(values),
    }


def time_calls(call: Callable[[], Any], *, warm_up: int = 1, measurements: int = 3) -> list[float]:
    """Seconds of each call, waiting for its result."""
    import jax

    for _ in range(warm_up):
        jax.block_until_ready(call())
    seconds = []
    for _ in range(measurements):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return seconds


def time_steps(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    batches: Iterator[Any],
    *,
    measurements: int,
    steps_each: int = 1,
    warm_up: int = 1,
) -> tuple[Any, list[float]]:
    """Seconds per training step; the device is waited for only at the end of each `steps_each` steps.

    Returns:
        The last state, and one figure for each measurement.
    """
    import jax

    for _ in range(warm_up):
        state, metrics = step(state, next(batches))
        jax.block_until_ready(metrics)
    seconds = []
    for _ in range(measurements):
        start = time.perf_counter()
        for _ in range(steps_each):
            state, metrics = step(state, next(batches))
        jax.block_until_ready((state, metrics))
        seconds.append((time.perf_counter() - start) / steps_each)
    return state, seconds


def patches_per_s(seconds: Sequence[float], batch_size: int) -> dict[str, float]:
    """Throughput from seconds per step."""
    return spread([batch_size / one for one in seconds])
