"""The SwinUNETR's closing convolution contracted into what follows it, against the same made in full.

Compiles loss and gradient in both forms and compares time, temporary memory, operations, losses and gradients; the
differences in float32, whatever the type of the timed programs.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import outcome
from flops import count
from plain_tail import plain_tail
from recipes import add_arguments, dummy_batch
from step_dummy_data import described
from timing import spread, time_calls
from training_step import parts, recipe_of

from lsmfm_jax.train.compilation import compiler_options
from lsmfm_jax.train.sharding import make_mesh

FORMS = ("factorised", "plain")


def main() -> None:
    parser = outcome.parser(__doc__)
    add_arguments(parser)
    parser.set_defaults(model="swin_unetr")
    parser.add_argument("--steps", type=int, default=3, help="measurements (default 3)")
    options = parser.parse_args()
    if options.model != "swin_unetr":
        parser.error("--model: only the swin_unetr has a closing convolution")
    outcome.finish(measure(recipe_of(options), steps=options.steps), options.json)


def measure(config: Any, *, steps: int) -> dict[str, Any]:
    """Both forms on the same weights, volumes and masks."""
    result = outcome.facts("tail", device=outcome.device_name()) | described(config)
    values: dict[str, Any] = {}
    options = compiler_options(make_mesh(**config.mesh))
    for form in FORMS:
        with plain_tail() if form == "plain" else contextlib.nullcontext():
            gradient, arguments = gradient_of(config)
            compiled = jax.jit(gradient, compiler_options=options).lower(*arguments).compile()
            result[form] = {
                "operations": count(gradient, *arguments),
                "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
            }
            seconds = time_calls(lambda run=compiled, given=arguments: run(*given), measurements=steps)
            result[form]["gradient_s"] = spread(seconds)
            values[form] = exact_values(config, compiled, arguments)
    for name in ("operations", "temporary_bytes"):
        result[f"{name}_ratio"] = result["factorised"][name] / result["plain"][name]
    medians = [result[form]["gradient_s"]["median"] for form in FORMS]
    result["time_ratio"] = medians[0] / medians[1]
    return result | differences(values["factorised"], values["plain"])


def gradient_of(config: Any) -> tuple[Any, tuple[Any, ...]]:
    """Loss and gradient as a function of parameters and rows, with arguments for it."""
    task, _, _, _ = parts(config)
    params, batch_stats = jax.jit(task.init)(jax.random.key(0))
    teacher = task.teacher_of(*jax.jit(task.init)(jax.random.key(1)))
    rows = jax.jit(task.prepare)(dummy_batch(config), jax.random.key(2), jnp.zeros((), "int32"))

    def gradient(params: Any, teacher: Any, rows: Any) -> Any:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            out = task.local(params, batch_stats, teacher, rows, jnp.zeros((), "int32"))
            return out.loss, {name: out.sums[name] for name in ("distill", "reconstruct")}

        return jax.value_and_grad(loss, has_aux=True)(params)

    return gradient, (params, teacher, rows)


def exact_values(config: Any, compiled: Any, arguments: tuple[Any, ...]) -> Any:
    """Losses and gradients in full float32; of the timed program where that is one."""
    if config.model.dtype == "float32" and jax.default_backend() == "cpu":
        return jax.device_get(compiled(*arguments))
    config = config.copy_and_resolve_references()
    config.model.dtype = "float32"
    with jax.default_matmul_precision("highest"):
        gradient, _ = gradient_of(config)
        return jax.device_get(jax.jit(gradient)(*arguments))


def differences(one: Any, other: Any) -> dict[str, float]:
    """Largest relative difference of the losses, and of the gradients over the largest gradient of all."""
    ((loss, parts_), gradient), ((loss_, others), gradient_) = one, other
    relative = [abs(loss - loss_) / abs(loss_)]
    relative += [abs(parts_[name] - others[name]) / abs(others[name]) for name in parts_]
    largest = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(gradient_))
    apart = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), gradient, gradient_)
    return {
        "loss_difference": float(max(relative)),
        "gradient_difference": max(jax.tree.leaves(apart)) / largest,
    }


if __name__ == "__main__":
    main()
