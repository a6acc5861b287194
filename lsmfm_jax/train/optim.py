"""Optimisers by ordered path rules: every parameter belongs to one group with its own rate, decay and thaw step."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lsmfm_jax.errors import LsmfmError

PyTree = Any


class RuleError(LsmfmError, ValueError):
    """Optimiser rules that do not fit the parameters or each other; the message names them."""


@dataclasses.dataclass(frozen=True)
class Group:
    """How a set of parameters trains.

    Attributes:
        name: shown in the table of groups, and the key of its moments in checkpoints: one name, one group.
        rate_multiplier: times the base learning rate.
        weight_decay: decoupled decay; None takes the base value.
        thaw_step: step of the run from which the group trains; it is frozen before, moments included.
        frozen: never trains; no moments are kept.
    """

    name: str
    rate_multiplier: float = 1.0
    weight_decay: float | None = None
    thaw_step: int = 0
    frozen: bool = False


@dataclasses.dataclass(frozen=True)
class Rule:
    """Parameters whose path matches `pattern` (searched, `/`-joined) belong to `group`; the first rule wins."""

    pattern: str
    group: Group


@dataclasses.dataclass(frozen=True)
class AdamWSettings:
    """Base settings of AdamW; the defaults are PyTorch's.

    Attributes:
        learning_rate: rate at its highest.
        schedule: `constant` or `cosine` (falls from the rate to `final_frac` of it at `total_steps`).
        warmup_steps: steps of linear warm-up from 0.
        total_steps: length of the run, steps.
        final_frac: share of the rate at the end of the cosine.
        weight_decay: decoupled weight decay.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        clip_norm: largest global gradient norm; 0 turns clipping off.
    """

    learning_rate: float
    schedule: str = "constant"
    warmup_steps: int = 0
    total_steps: int = 1
    final_frac: float = 0.0
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 0.0


def leaf_path(path: tuple[Any, ...]) -> str:
    """A tree path as `a/b/c`."""
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path)


def assign_groups(params: PyTree, rules: Sequence[Rule]) -> PyTree:
    """The group of every parameter, as a tree of the same structure.

    Raises:
        RuleError: a parameter that no rule covers, or one name for different groups; the message names them.
    """
    _check_names(rules)
    uncovered: list[str] = []

    def group_at(path: tuple[Any, ...], _: Any) -> Group | None:
        name = leaf_path(path)
        group = group_of(name, rules)
        if group is None:
            uncovered.append(name)
        return group

    groups = jax.tree_util.tree_map_with_path(group_at, params)
    if uncovered:
        raise RuleError(
            f"no optimiser rule covers {len(uncovered)} parameters: {', '.join(uncovered[:10])}; "
            f"rules: {', '.join(rule.pattern for rule in rules)}"
        )
    return groups


def group_of(path: str, rules: Sequence[Rule]) -> Group | None:
    """The group of one parameter by its `/`-joined path: that of the first rule that matches; None without one."""
    return next((rule.group for rule in rules if re.search(rule.pattern, path)), None)


def _check_names(rules: Sequence[Rule]) -> None:
    """Moments are kept by the group's name, so that two groups of one name would train as one of them."""
    by_name: dict[str, Group] = {}
    for rule in rules:
        other = by_name.setdefault(rule.group.name, rule.group)
        if other != rule.group:
            differing = [
                f"{field.name} {getattr(other, field.name)} and {getattr(rule.group, field.name)}"
                for field in dataclasses.fields(Group)
                if getattr(other, field.name) != getattr(rule.group, field.name)
            ]
            raise RuleError(
                f"optimiser group {rule.group.name!r} is defined twice, with {', '.join(differing)} (rule "
                f"{rule.pattern!r}); give each group a name of its own"
            )


def freeze(params: PyTree, rules: Sequence[Rule], step: jax.Array) -> PyTree:
    """The same values; parameters that are frozen at this step get no gradient and count in no gradient norm.

    What never trains costs no backward pass; before a thaw step the gradient is computed and left out, because one
    program serves both sides of it.

    Args:
        params: parameters.
        rules: as in `make_optimiser`; none freezes nothing.
        step: the run's step.
    """
    if not rules:
        return params

    def one(leaf: jax.Array, group: Group) -> jax.Array:
        if not (group.frozen or group.thaw_step):
            return leaf
        stopped = jax.lax.stop_gradient(leaf)
        return stopped if group.frozen else jnp.where(step >= group.thaw_step, leaf, stopped)

    return jax.tree.map(one, params, assign_groups(params, rules))


def group_table(params: PyTree, rules: Sequence[Rule], settings: AdamWSettings) -> str:
    """One line for each group that has parameters: rate, decay, thaw step, tensors and parameters in it."""
    groups = assign_groups(params, rules)
    counts: dict[Group, tuple[int, int]] = {}
    leaves = zip(jax.tree.leaves(groups), jax.tree.leaves(params), strict=True)
    for group, leaf in leaves:
        tensors, scalars = counts.get(group, (0, 0))
        counts[group] = (tensors + 1, scalars + int(leaf.size))
    lines = [f"{'group':24}{'rate':>10}{'decay':>10}{'trains from':>14}{'tensors':>9}{'parameters':>13}"]
    for group, (tensors, scalars) in counts.items():
        rate = 0.0 if group.frozen else settings.learning_rate * group.rate_multiplier
        decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
        start = "never" if group.frozen else f"step {group.thaw_step}"
        lines.append(f"{group.name:24}{rate:>10.2g}{decay:>10.2g}{start:>14}{tensors:>9}{scalars:>13,}")
    return "\n".join(lines)


def learning_rate_schedule(settings: AdamWSettings) -> optax.Schedule:
    """Learning rate by step; it never rises after its warm-up.

    Raises:
        RuleError: an unknown schedule.
    """
    rate = settings.learning_rate
    if settings.schedule == "constant":
        after = optax.constant_schedule(rate)
    elif settings.schedule == "cosine":
        steps = max(1, settings.total_steps - settings.warmup_steps)
        after = optax.cosine_decay_schedule(rate, steps, alpha=settings.final_frac)
    else:
        raise RuleError(f"optim.schedule: {settings.schedule!r}; allowed: constant, cosine")
    if not settings.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, rate, settings.warmup_steps)
    return optax.join_schedules([warmup, after], [settings.warmup_steps])


def make_optimiser(params: PyTree, rules: Sequence[Rule], settings: AdamWSettings) -> optax.GradientTransformation:
    """AdamW with a group for each parameter.

    Frozen groups keep no moments. A group with a thaw step keeps its parameters and moments as they are until then,
    without recompiling at that step; its bias correction starts when it thaws.

    The update takes the run's step as `step`: schedule and thaw follow it, as do the gradients that `freeze` stops
    and whatever else in a task depends on the step. Where it is not given, the updates made so far are counted,
    which is the same number as long as no step is skipped.

    Args:
        params: parameters, or their shapes.
        rules: ordered rules that must cover every parameter.
        settings: base settings.

    Raises:
        RuleError: a parameter that no rule covers, or one name for different groups.
    """
    groups = assign_groups(params, rules)
    labels = jax.tree.map(lambda group: group.name, groups)
    schedule = learning_rate_schedule(settings)
    transforms = {group.name: _group_transform(group, schedule, settings) for group in jax.tree.leaves(groups)}
    by_group = optax.multi_transform(transforms, labels)
    if not settings.clip_norm:
        return by_group
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), by_group)


class GroupState(NamedTuple):
    """Optimiser state of one group: the step after its last update, and the moments."""

    step: jax.Array
    inner: Any


def _group_transform(
    group: Group, schedule: optax.Schedule, settings: AdamWSettings
) -> optax.GradientTransformationExtraArgs:
    if group.frozen:
        return optax.with_extra_args_support(optax.set_to_zero())
    decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
    moments = optax.chain(
        optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=settings.eps),
        optax.add_decayed_weights(decay),
    )

    def init(params: PyTree) -> GroupState:
        return GroupState(jnp.zeros((), jnp.int32), moments.init(params))

    def update(
        updates: PyTree,
        state: GroupState,
        params: PyTree | None = None,
        *,
        step: jax.Array | None = None,
        **_: Any,
    ) -> tuple[PyTree, GroupState]:
        step = state.step if step is None else step
        # The rate follows the run's step, not the group's: a late thaw joins the schedule where it is.
        rate = schedule(step) * group.rate_multiplier
        new_updates, new_inner = moments.update(updates, state.inner, params)
        new_updates = jax.tree.map(lambda leaf: -rate * leaf, new_updates)
        if group.thaw_step:
            thawed = step >= group.thaw_step
            new_updates = jax.tree.map(lambda leaf: jnp.where(thawed, leaf, 0.0), new_updates)
            new_inner = jax.tree.map(lambda new, old: jnp.where(thawed, new, old), new_inner, state.inner)
        return new_updates, GroupState(step + 1, new_inner)

    return optax.GradientTransformationExtraArgs(init, update)
