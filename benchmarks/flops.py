"""Floating-point operations of a program, counted from its jaxpr: two for each multiply-add.

Only matrix products and convolutions count, which is nearly all of it. XLA's own analysis is no substitute: it
visits the body of a loop once, and it counts nothing in a library call that it does not know.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from lsmfm_jax.tasks.pretrain_networks import build_networks


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of one call; arguments may be shapes. Nothing is computed or compiled."""
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def training_operations_per_patch(config: ConfigDict) -> dict[str, int]:
    """Operations that training needs per patch: 3 x (student + light decoder + tail) + teacher + tail.

    A backward pass is taken as two forward passes; what is computed again to save memory does not count, nor do
    augmentation and the text tower. The closing linear layer of a SwinUNETR, the tail, is contracted into the
    light decoder as in the training step, and multiplied out once on each side for the distillation.
    """
    config = config.copy_and_resolve_references()
    # Kernels of our own fill their blocks up, and count what they multiply.
    config.train.kernels = "plain"
    networks = build_networks(config, None)
    volume = jax.ShapeDtypeStruct((1, *config.data.input_size, 1), "float32")
    key = jax.random.key(0)

    def trunk(variables: Any, x: jax.Array) -> Any:
        return networks.backbone.apply(variables, x, train=False, method="trunk")

    def decode(params: Any, out: Any) -> jax.Array:
        return networks.light_decoder.apply(params, out.values, out.tail)

    variables = jax.eval_shape(lambda: networks.backbone.init(key, volume_of(volume), train=False, method="trunk"))
    out = jax.eval_shape(trunk, variables, volume)
    dense = jax.ShapeDtypeStruct((1, 4, 4, 4, config.model.out_channels), "float32")
    params = jax.eval_shape(lambda: networks.light_decoder.init(key, volume_of(dense), None))
    backbone, decoder = count(trunk, variables, volume), count(decode, params, out)
    tail = 0 if out.tail is None else 2 * out.values.size * config.model.out_channels
    return {
        "backbone": backbone,
        "light_decoder": decoder,
        "tail": tail,
        "step": 4 * (backbone + tail) + 3 * decoder,
    }


def volume_of(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Zeros of a shape."""
    return jax.numpy.zeros(shape.shape, shape.dtype)


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        return _product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond":
        # The forms of a computation by platform: that of NVIDIA cards, or the last one, that of accelerators.
        platforms = equation.params.get("branches_platforms") or ()
        chosen = next((i for i, names in enumerate(platforms) if names and "cuda" in names), -1)
        return _of_jaxpr(equation.params["branches"][chosen].jaxpr)
    if name == "pallas_call":
        # Its jaxpr is that of one program of many.
        return int(dict(equation.params["metadata"] or {}).get("operations", 0))
    if name == "scan":
        return equation.params["length"] * _of_jaxpr(equation.params["jaxpr"].jaxpr)
    return sum(_of_jaxpr(inner) for inner in _inner_jaxprs(equation.params))


def _inner_jaxprs(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        if hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr") and hasattr(value.jaxpr, "eqns"):
            yield value.jaxpr


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    numbers, kernel = equation.params["dimension_numbers"], equation.invars[1].aval.shape
    inputs = kernel[numbers.rhs_spec[1]] * math.prod(kernel[axis] for axis in numbers.rhs_spec[2:])
    # Of a transposed convolution, the products with the zeros between its input's voxels are not needed.
    return 2 * equation.outvars[0].aval.size * inputs // math.prod(equation.params["lhs_dilation"])
