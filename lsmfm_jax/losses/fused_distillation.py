"""Distillation with hand-written kernels on NVIDIA cards, the plain form anywhere else; gradients, several devices.

A kernel cannot be split by the compiler, which would gather its operands. So the calls say how they are split: along
batch and Z, each device for its own voxels, as `pretrain.distillation` may be. What they return has both axes, and the
sums over them are the compiler's again.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

# Axes of arrays by name; only batch and Z may be split.
SPLIT = ("b", "z")


@dataclasses.dataclass(frozen=True)
class Form:
    """What is computed.

    Attributes:
        student_temperature: divides the student's normalised features.
        teacher_temperature: divides the teacher's normalised features.
        plain: divergence, entropy and probabilities from student, its tail, teacher, its tail and mask.
        interpret: run the kernels by JAX's own operations, on any device: for tests.
    """

    student_temperature: float
    teacher_temperature: float
    plain: Callable[..., tuple[Array, Array, Array]]
    interpret: bool = False

    def kernels(self, name: str) -> Callable[..., Any]:
        """`forward` or `backward` of the kernels."""
        # Pallas takes time to import, and only those who want it have to wait.
        from lsmfm_jax.losses import distillation_calls

        temperatures = (self.student_temperature, self.teacher_temperature)
        return partial(getattr(distillation_calls, name), temperatures=temperatures, interpret=self.interpret)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def distillation_sums(
    form: Form, student: Array, student_tail: Any, teacher: Array, teacher_tail: Any, mask: Array
) -> tuple[Array, Array, Array]:
    """Sums of `DistillationSums` over each sample's masked voxels: divergence, entropy, the teacher's probabilities.

    Only the divergence has a gradient, in the student's values and tail.
    """
    return _forward(form, student, student_tail, teacher, teacher_tail, mask)[0]


def _forward(form: Form, *operands: Any) -> tuple[Any, Any]:
    def on_card(*operands: Any) -> tuple[Array, ...]:
        results = ("b z two n", "b z n d", "b z five y x")
        sums, probability, statistics = _split(form.kernels("forward"), operands, _names(operands), results)
        divergence, entropy = jnp.moveaxis(sums.sum(axis=(1, 3)), -1, 0)
        return divergence, entropy, probability.sum(axis=(1, 2)), statistics

    def elsewhere(*operands: Any) -> tuple[Array, ...]:
        batch, depth, *plane = operands[-1].shape
        return *form.plain(*operands), jnp.zeros((batch, depth, 5, *plane), jnp.float32)

    *sums, statistics = _by_platform(form, on_card, elsewhere, *operands)
    return tuple(sums), (operands, statistics)


def _backward(form: Form, saved: Any, cotangents: tuple[Array, Array, Array]) -> tuple[Any, ...]:
    operands, statistics = saved

    def on_card(operands: Any, statistics: Array, factor: Array) -> tuple[Array, Any]:
        tail = operands[1]
        results = ("b z y x f",) if tail is None else ("b z y x f", "b z f d", "b z d")
        names = [*_names(operands), "b z five y x", "b"]
        values, *parts = _split(form.kernels("backward"), (*operands, statistics, factor), names, results)
        if tail is None:
            return values, None
        sums = (part.sum(axis=(0, 1)) for part in parts)
        return values, tuple(new.astype(leaf.dtype) for new, leaf in zip(sums, tail, strict=True))

    def elsewhere(operands: Any, statistics: Array, factor: Array) -> tuple[Array, Any]:
        # The plain form computes its slabs anew in its backward pass; what it computes before it is not used.
        _, gradient = jax.vjp(lambda *student: form.plain(*student, *operands[2:])[0], *operands[:2])
        return gradient(factor)

    return *_by_platform(form, on_card, elsewhere, operands, statistics, cotangents[0]), None, None, None


distillation_sums.defvjp(_forward, _backward)


def _by_platform(form: Form, on_card: Callable[..., Any], elsewhere: Callable[..., Any], *operands: Any) -> Any:
    if form.interpret:
        return on_card(*operands)
    return lax.platform_dependent(*operands, cuda=on_card, default=elsewhere)


def _names(operands: Sequence[Any]) -> list[Any]:
    """Names of the axes of student, its tail, teacher, its tail and mask, of the shape of the operands."""
    found = []
    for name, tail in (("f", operands[1]), ("g", operands[3])):
        width = "d" if tail is None else name
        found += [f"b z y x {width}", None if tail is None else (f"{name} d", "d")]
    return [*found, "b z y x"]


def _split(
    function: Callable[..., tuple[Array, ...]], operands: Sequence[Any], names: Sequence[Any], results: Sequence[str]
) -> tuple[Array, ...]:
    """Calls a function on every device for its own part of batch and Z."""
    leaves, tree = jax.tree.flatten(tuple(operands))
    inputs = jax.tree.leaves(tuple(names))

    def flat(*leaves: Array) -> tuple[Array, ...]:
        return tuple(function(*jax.tree.unflatten(tree, leaves)))

    def partition(mesh: Any, arguments: Sequence[Any], _: Any) -> tuple[Any, ...]:
        given = (*arguments[0].sharding.spec, None, None)
        axes = dict(zip(SPLIT, given, strict=False))

        def placed(axis_names: str) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec(*(axes.get(name) for name in axis_names.split())))

        return mesh, flat, tuple(map(placed, results)), tuple(map(placed, inputs))

    call = custom_partitioning(flat)
    # In the order in which the rule names them.
    whole = dict.fromkeys(name for axes in (*inputs, *results) for name in axes.split() if name not in SPLIT)
    rule = f"{', '.join(inputs)} -> {', '.join(results)}"
    call.def_partition(partition, sharding_rule=rule, need_replication_factors=tuple(whole))
    # For profiles, which see no names of kernels.
    with jax.named_scope("distillation_kernels"):
        return call(*leaves)
