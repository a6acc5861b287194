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
        channels_first: how the compiler lays out values in memory around the kernels, which must not be turned for
            them: `B F Z Y X` as convolutions on cards have it, unless they are told otherwise.
        interpret: run the kernels by JAX's own operations, on any device: for tests.
    """

    student_temperature: float
    teacher_temperature: float
    plain: Callable[..., tuple[Array, Array, Array]]
    channels_first: bool = True
    interpret: bool = False

    def kernels(self, name: str) -> Callable[..., Any]:
        """`forward` or `backward` of the kernels."""
        # Pallas takes time to import, and only those who want it have to wait.
        from lsmfm_jax.losses import distillation_calls

        temperatures = (self.student_temperature, self.teacher_temperature)
        return partial(
            getattr(distillation_calls, name),
            temperatures=temperatures,
            channels_first=self.channels_first,
            interpret=self.interpret,
        )

    @property
    def values(self) -> str:
        """Axes of values, as the kernels get them; `{}` stands for their last one."""
        return "b {} z y x" if self.channels_first else "b z y x {}"

    def turned(self, operands: Sequence[Any]) -> list[Any]:
        """Student, its tail, teacher, its tail and mask as the kernels get them: nothing moves in memory."""
        student, student_tail, teacher, teacher_tail, mask = operands
        if self.channels_first:
            student, teacher = (jnp.moveaxis(values, -1, 1) for values in (student, teacher))
        return [student, student_tail, teacher, teacher_tail, mask]

    def names(self, operands: Sequence[Any]) -> list[Any]:
        """Names of the axes of student, its tail, teacher, its tail and mask."""
        found = []
        for name, tail in (("f", operands[1]), ("g", operands[3])):
            values = self.values.format("d" if tail is None else name)
            found += [values, None if tail is None else (f"{name} d", "d")]
        return [*found, "b z y x"]


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
        sums, probability, statistics = _split(
            form.kernels("forward"), form.turned(operands), form.names(operands), results
        )
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
        gradient = form.values.format("d" if tail is None else "f")
        results = (gradient,) if tail is None else (gradient, "b z f d", "b z d")
        names = [*form.names(operands), "b z five y x", "b"]
        given = (*form.turned(operands), statistics, factor)
        values, *parts = _split(form.kernels("backward"), given, names, results)
        if form.channels_first:
            values = jnp.moveaxis(values, 1, -1)
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


def _split(
    function: Callable[..., tuple[Array, ...]], operands: Sequence[Any], names: Sequence[Any], results: Sequence[str]
) -> tuple[Array, ...]:
    """Calls a function on every device for its own part of batch and Z."""
    leaves, tree = jax.tree.flatten(tuple(operands))
    inputs = jax.tree.leaves(tuple(names))

    def flat(*leaves: Array) -> tuple[Array, ...]:
        return tuple(function(*jax.tree.unflatten(tree, leaves)))

    def partition(mesh: Any, arguments: Sequence[Any], _: Any) -> tuple[Any, ...]:
        names = inputs[0].split()
        given = dict(zip(names, (*arguments[0].sharding.spec, *(None,) * len(names)), strict=False))
        axes = {name: given[name] for name in SPLIT}

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
