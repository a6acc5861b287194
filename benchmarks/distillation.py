"""The distillation loss with hand-written kernels against the plain form: the same numbers, and how long each takes.

    python benchmarks/distillation.py --model swin_unetr --batch 8 --json FILE

Loss and gradient alone, on random values of the size that the recipe's network gives and with the recipe's masks.
Differences are relative to the largest value of each array. Without an NVIDIA card both forms are the plain one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import outcome
from recipes import add_arguments
from step_dummy_data import described
from timing import spread, time_calls
from training_step import parts, recipe_of

from lsmfm_jax.losses.pretrain import distillation
from lsmfm_jax.masking import block_mask
from lsmfm_jax.tasks.pretrain_networks import build_networks

FORMS = ("plain", "fused")


def main() -> None:
    parser = outcome.parser(__doc__)
    add_arguments(parser, batch=8)
    parser.add_argument("--steps", type=int, default=5, help="measurements (default 5)")
    options = parser.parse_args()
    outcome.finish(measure(recipe_of(options), steps=options.steps), options.json)


def measure(config: Any, *, steps: int) -> dict[str, Any]:
    """Both forms on the same values and masks."""
    result = outcome.facts("distillation", device=outcome.device_name()) | described(config)
    arguments = inputs(config)
    values = {}
    for form in FORMS:
        compiled = jax.jit(gradient_of(config, form)).lower(*arguments).compile()
        seconds = time_calls(lambda run=compiled: run(*arguments), measurements=steps)
        result[form] = {"s": spread(seconds), "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes}
        values[form] = jax.device_get(compiled(*arguments))
        again = jax.device_get(compiled(*arguments))
        pairs = zip(jax.tree.leaves(values[form]), jax.tree.leaves(again), strict=True)
        result[form]["same_bits_again"] = all(np.array_equal(one, other) for one, other in pairs)
    result["time_ratio"] = result["fused"]["s"]["median"] / result["plain"]["s"]["median"]
    return result | {"differences": differences(values["fused"], values["plain"])}


def inputs(config: Any) -> tuple[Any, ...]:
    """Values of student and teacher with their tails, and masks."""
    _, _, _, state = parts(config)
    backbone, size = build_networks(config, None).backbone, tuple(config.data.input_size)
    volume = jax.ShapeDtypeStruct((config.train.batch_size, *size, 1), "float32")
    variables = {"params": state.params["backbone"], "batch_stats": state.batch_stats["backbone"]}
    shapes = jax.eval_shape(lambda given, x: backbone.apply(given, x, train=False, method="trunk"), variables, volume)

    def drawn(leaf: Any, key: jax.Array) -> jax.Array:
        return jax.random.normal(key, leaf.shape, leaf.dtype)

    leaves, tree = jax.tree.flatten((shapes.values, shapes.tail) * 2)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    networks = jax.tree.unflatten(tree, map(drawn, leaves, keys))
    keys = jax.random.split(jax.random.key(1), config.train.batch_size)
    mask = config.mask
    masks = block_mask(
        keys, grid=size, block_sizes=tuple(mask.block_sizes), ratio=float(mask.ratio), rounding=mask.rounding
    )
    return *networks, masks


def gradient_of(config: Any, form: str) -> Any:
    """Loss and gradient as a function of student, its tail, teacher, its tail and mask."""

    def loss(*given: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        sums = distillation(
            *given,
            student_temperature=config.loss.student_temperature,
            teacher_temperature=config.loss.teacher_temperature,
            kernels=form,
            channels_first=config.train.xla != "fast",
        )
        return jnp.sum(sums.divergence) / jnp.sum(sums.voxels), sums._asdict()

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def differences(one: Any, other: Any) -> dict[str, float]:
    """Largest difference of each sum and of each gradient, over the largest value."""
    ((_, sums), gradients), ((_, sums_), gradients_) = one, other

    def apart(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))

    found = {name: apart(sums[name], sums_[name]) for name in sums}
    names = ("gradient_values", "gradient_kernel", "gradient_bias")
    pairs = zip(names, jax.tree.leaves(gradients), jax.tree.leaves(gradients_), strict=False)
    return found | {name: apart(a, b) for name, a, b in pairs}


if __name__ == "__main__":
    main()
