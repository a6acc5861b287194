"""How many patches a second the loader reads, with nothing that consumes them.

A measurement should take many more batches than the loader reads ahead (data.prefetch).
"""

import contextlib
import time
from typing import Any

import outcome
import phantom_store
from recipes import add_arguments
from timing import patches_per_s, spread
from training_step import recipe_of


def main() -> None:
    parser = outcome.parser(__doc__)
    add_arguments(parser, batch=8)
    phantom_store.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=5, help="measurements (default 5)")
    parser.add_argument("--batches-each", type=int, default=32, help="batches in a measurement (default 32)")
    options = parser.parse_args()
    config = recipe_of(options)
    with phantom_store.data(config, options) as (store, stream):
        result = measure(config, stream, steps=options.steps, batches_each=options.batches_each)
        result["data"] = phantom_store.facts(store, options)
    outcome.finish(result, options.json)


def measure(config: Any, stream: Any, *, steps: int, batches_each: int) -> dict[str, Any]:
    """Patches per second, after one measurement to warm up, in which files enter the page cache."""
    seconds = []
    with contextlib.closing(stream()) as batches:
        for _ in range(steps + 1):
            start = time.perf_counter()
            for _ in range(batches_each):
                batch = next(batches)
            seconds.append((time.perf_counter() - start) / batches_each)
    rate = patches_per_s(seconds[1:], config.train.batch_size)
    return outcome.facts("loader_only", device=outcome.cpu_name()) | {
        "batch_size": config.train.batch_size,
        "patch_size": list(config.data.patch_size),
        "text": config.text.enabled,
        "batch_s": spread(seconds[1:]),
        "patches_per_s": rate,
        "megabytes_per_s": rate["median"] * batch["image"][0].nbytes / 1e6,
    }


if __name__ == "__main__":
    main()
