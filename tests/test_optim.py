"""Groups by path rules: all parameters covered, frozen means frozen, thawing at its step, rates as told."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsmfm_jax.train.optim import (
    AdamWSettings,
    Group,
    Rule,
    RuleError,
    assign_groups,
    freeze,
    group_table,
    learning_rate_schedule,
    make_optimiser,
)

PARAMS = {"encoder": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}, "head": {"kernel": jnp.ones((3, 2))}}
GRADS = jax.tree.map(lambda leaf: 0.5 * jnp.ones_like(leaf), PARAMS)


def _run(rules, steps, **settings):
    optimiser = make_optimiser(PARAMS, rules, AdamWSettings(learning_rate=0.1, weight_decay=0.0, **settings))
    params, state = PARAMS, optimiser.init(PARAMS)
    update = jax.jit(optimiser.update)
    trail = []
    for _ in range(steps):
        updates, state = update(GRADS, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        trail.append(params)
    assert update._cache_size() == 1
    return trail, state


def test_uncovered_parameters_are_named():
    with pytest.raises(ValueError, match="no optimiser rule covers 2 parameters: encoder/bias, encoder/kernel"):
        assign_groups(PARAMS, [Rule("^head/", Group("head"))])


@pytest.mark.parametrize("other", [Group("x", frozen=True), Group("x", rate_multiplier=0.1), Group("x", thaw_step=3)])
def test_two_groups_of_one_name_are_refused(other):
    """They shared the transform of the last: a frozen group then trained, or a rate was that of another."""
    rules = [Rule("^encoder/", Group("x")), Rule("^head/", other)]
    field = "frozen" if other.frozen else "rate_multiplier" if other.rate_multiplier != 1 else "thaw_step"
    for use in (
        lambda: make_optimiser(PARAMS, rules, AdamWSettings(learning_rate=0.1)),
        lambda: freeze(PARAMS, rules, jnp.asarray(0)),
    ):
        with pytest.raises(RuleError, match=rf"group 'x' is defined twice, with {field} .*name of its own") as refused:
            use()
        assert "\n" not in str(refused.value)
    same = [Rule("^encoder/", Group("x")), Rule("^head/", Group("x"))]
    assert make_optimiser(PARAMS, same, AdamWSettings(learning_rate=0.1)).init(PARAMS)


def test_first_rule_wins():
    groups = assign_groups(PARAMS, [Rule("bias$", Group("biases")), Rule(".", Group("rest"))])
    assert groups["encoder"]["bias"].name == "biases"
    assert groups["encoder"]["kernel"].name == "rest"


def test_a_frozen_group_stays_as_it_is_and_has_no_moments():
    rules = [Rule("^encoder/", Group("frozen", frozen=True)), Rule("^head/", Group("head"))]
    trail, state = _run(rules, 3)
    np.testing.assert_array_equal(trail[-1]["encoder"]["kernel"], PARAMS["encoder"]["kernel"])
    assert not np.array_equal(trail[-1]["head"]["kernel"], PARAMS["head"]["kernel"])
    shapes = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert shapes == [(3, 2), (3, 2)]


def test_thaw_at_its_step_without_recompiling():
    late = Group("encoder", thaw_step=3, rate_multiplier=0.2)
    trail, _ = _run([Rule("^encoder/", late), Rule("^head/", Group("head"))], 5)
    moved = [not np.array_equal(params["encoder"]["kernel"], PARAMS["encoder"]["kernel"]) for params in trail]
    assert moved == [False, False, False, True, True]
    # Adam's first step has the size of the rate: 0.2 of 0.1, since its moments rested until now.
    np.testing.assert_allclose(trail[3]["encoder"]["kernel"], 1 - 0.02, rtol=1e-5)
    np.testing.assert_allclose(trail[0]["head"]["kernel"], 1 - 0.1, rtol=1e-5)


def test_moments_stay_zero_before_the_thaw():
    late = Group("encoder", thaw_step=10)
    _, state = _run([Rule("^encoder/", late), Rule("^head/", Group("head"))], 4)
    inner = state.inner_states["encoder"].inner_state.inner
    assert all(not np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(inner))


def test_adamw_equals_the_formula():
    """Two steps of decoupled weight decay written out (Loshchilov and Hutter, algorithm 2)."""
    settings = AdamWSettings(learning_rate=0.1, weight_decay=0.3)
    optimiser = make_optimiser(PARAMS, [Rule(".", Group("all"))], settings)
    state, params = optimiser.init(PARAMS), PARAMS
    weight, first, second = 1.0, 0.0, 0.0
    for step, gradient in enumerate((0.5, -2.0), start=1):
        grads = jax.tree.map(lambda leaf, g=gradient: g * jnp.ones_like(leaf), PARAMS)
        updates, state = optimiser.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        scaled = (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        weight -= 0.1 * (scaled + 0.3 * weight)
    np.testing.assert_allclose(params["head"]["kernel"], weight, rtol=1e-5)


def test_cosine_only_falls_after_the_warmup():
    settings = AdamWSettings(learning_rate=0.1, schedule="cosine", warmup_steps=5, total_steps=50, final_frac=0.1)
    rates = [float(learning_rate_schedule(settings)(step)) for step in range(60)]
    assert rates[0] == 0.0 and max(rates) == pytest.approx(0.1)
    after = rates[5:]
    assert all(one >= other for one, other in itertools.pairwise(after))
    assert rates[-1] == pytest.approx(0.01)


def test_an_unknown_schedule_is_refused():
    settings = AdamWSettings(learning_rate=0.1, schedule="linear", total_steps=50)
    with pytest.raises(RuleError, match="'linear'; allowed: constant, cosine"):
        learning_rate_schedule(settings)


def test_clipping_bounds_the_gradient():
    optimiser = make_optimiser(PARAMS, [Rule(".", Group("all"))], AdamWSettings(learning_rate=0.1, clip_norm=1e-3))
    _, state = optimiser.update(GRADS, optimiser.init(PARAMS), PARAMS)
    first_moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim and float(jnp.max(leaf)) > 1e-7]
    norm = np.sqrt(sum(float(jnp.sum((leaf / 0.1) ** 2)) for leaf in first_moments))
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_table_counts_every_parameter():
    rules = [Rule("^encoder/", Group("encoder", thaw_step=7)), Rule("^head/", Group("head", frozen=True))]
    table = group_table(PARAMS, rules, AdamWSettings(learning_rate=0.1))
    encoder, head = table.splitlines()[1:]
    assert encoder.split() == ["encoder", "0.1", "0.01", "step", "7", "2", "12"]
    assert head.split() == ["head", "0", "0.01", "never", "1", "6"]
