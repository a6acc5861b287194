"""The training step without a data pipeline: one batch that lies on the device, again and again."""

import itertools
from typing import Any

import jax
import outcome
from device_peak import matrix_peak, peak_bytes
from flops import training_operations_per_patch
from recipes import add_arguments, dummy_batch
from timing import patches_per_s, spread, time_calls, time_steps
from training_step import Built, build, on_mesh, recipe_of


def main() -> None:
    parser = outcome.parser(__doc__)
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=5, help="measurements after the warm-up (default 5)")
    options = parser.parse_args()
    outcome.finish(measure(recipe_of(options), steps=options.steps), options.json)


def measure(config: Any, *, steps: int) -> dict[str, Any]:
    """Throughput, share of the peak, memory, and the share of augmentation in it."""
    built = build(config)
    batch = on_mesh(built, dummy_batch(config))
    built.state, seconds = time_steps(
        built.step,
        built.state,
        itertools.repeat(batch),
        measurements=steps,
        steps_each=1 if jax.default_backend() == "cpu" else 5,
        warm_up=2,
    )
    result = outcome.facts("step_dummy_data", device=outcome.device_name()) | described(config)
    result |= step_figures(built, seconds)
    preparing = preparation_seconds(built, batch, measurements=steps)
    result["preparation_s"] = spread(preparing)
    # Scaling, resizing, augmenting and masking, as a program of its own: inside the step it can only be cheaper.
    result["preparation_frac"] = result["preparation_s"]["median"] / result["step_s"]["median"]
    return result


def described(config: Any) -> dict[str, Any]:
    """What of a configuration matters for speed."""
    return {
        "model": config.model.name,
        "architecture": config.model[config.model.name].to_dict(),
        "out_channels": config.model.out_channels,
        "dtype": config.model.dtype,
        "text": config.text.enabled,
        "input_size": list(config.data.input_size),
        "patch_size": list(config.data.patch_size),
        "batch_size": config.train.batch_size,
        "accumulate_steps": config.train.accumulate_steps,
        "xla": config.train.xla,
        "kernels": config.train.kernels,
    }


def step_figures(built: Built, seconds: list[float]) -> dict[str, Any]:
    """Figures that follow from seconds per step; call it right after the steps, for the memory."""
    memory, counted = peak_bytes()
    devices = built.mesh.size
    operations = training_operations_per_patch(built.config)
    rate = patches_per_s(seconds, built.config.train.batch_size)
    per_device = {name: value / devices for name, value in rate.items() if name != "count"}
    peak = matrix_peak(built.config.model.dtype)
    achieved = per_device["median"] * operations["step"]
    return {
        "devices": devices,
        "step_s": spread(seconds),
        "patches_per_s": rate,
        "patches_per_s_per_device": per_device,
        "operations_per_patch": operations,
        "tflops_per_s_per_device": achieved / 1e12,
        "measured_matrix_peak_tflops_per_s": peak / 1e12,
        "peak_frac": achieved / peak,
        "peak_memory_bytes": memory,
        "peak_memory_counts": counted,
    }


def preparation_seconds(built: Built, batch: Any, *, measurements: int) -> list[float]:
    """Seconds of `Task.prepare` alone."""
    prepare = jax.jit(built.task.prepare)
    key, step = jax.random.key(0), jax.numpy.zeros((), "int32")
    return time_calls(lambda: prepare(batch, key, step), measurements=measurements)


if __name__ == "__main__":
    main()
