"""The training step fed by the real loader, against the same step on one batch that lies on the device.

Both use one compiled program. A ratio below 0.97 says that the step waits for its data: see
`loader_only` for what the loader can do, and raise data.workers or data.prefetch.
"""

import contextlib
import itertools
import statistics
from typing import Any

import jax
import outcome
import phantom_store
from recipes import add_arguments
from step_dummy_data import described, step_figures
from timing import patches_per_s, spread, time_steps
from training_step import build, on_mesh, recipe_of


def main() -> None:
    parser = outcome.parser(__doc__)
    add_arguments(parser)
    phantom_store.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=5, help="measurements of each kind (default 5)")
    options = parser.parse_args()
    config = recipe_of(options)
    with phantom_store.data(config, options) as (store, stream):
        result = measure(config, stream, steps=options.steps)
        result["data"] = phantom_store.facts(store, options)
    outcome.finish(result, options.json)


def measure(config: Any, stream: Any, *, steps: int) -> dict[str, Any]:
    """Throughput with and without the loader."""
    built = build(config)
    steps_each = 1 if jax.default_backend() == "cpu" else 10
    with contextlib.closing(stream()) as batches:
        one = on_mesh(built, next(batches))
        # The batches read ahead are used up in the warm-up, so that what the loader can sustain shows.
        kinds = {
            "dummy": (itertools.repeat(one), 2),
            "real": ((on_mesh(built, batch) for batch in batches), config.data.prefetch + 1),
        }
        seconds = {}
        for name, (source, warm_up) in kinds.items():
            built.state, seconds[name] = time_steps(
                built.step, built.state, source, measurements=steps, steps_each=steps_each, warm_up=warm_up
            )
    result = outcome.facts("step_real_data", device=outcome.device_name()) | described(config)
    result |= step_figures(built, seconds["real"])
    result["dummy_step_s"] = spread(seconds["dummy"])
    result["dummy_patches_per_s"] = patches_per_s(seconds["dummy"], config.train.batch_size)
    result["ratio_real_to_dummy"] = statistics.median(seconds["dummy"]) / statistics.median(seconds["real"])
    return result


if __name__ == "__main__":
    main()
