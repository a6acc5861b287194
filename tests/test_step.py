"""One optimiser step: accumulation and devices do not change it, non-finite values do not enter it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import toy_batch, toy_task

from lsmfm_jax.train.optim import AdamWSettings, Group, Rule, make_optimiser
from lsmfm_jax.train.run import compile_step
from lsmfm_jax.train.sharding import make_mesh, put_batch, state_shardings
from lsmfm_jax.train.state import create_state
from lsmfm_jax.train.step import all_finite, build_train_step

RULES = [Rule(".", Group("all"))]


def _optimiser(task):
    shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
    return make_optimiser(shapes, RULES, AdamWSettings(learning_rate=1e-2))


def _step(task, *, accumulate_steps=1, decay=0.9):
    step = build_train_step(task, _optimiser(task), seed=3, accumulate_steps=accumulate_steps, teacher_decay=decay)
    return jax.jit(step)


def _close(one, other, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), one, other)


@pytest.mark.parametrize("accumulate_steps", [2, 4])
def test_accumulation_gives_the_loss_and_gradient_of_the_whole_batch(accumulate_steps):
    task = toy_task()
    sgd = optax.sgd(1.0)  # the update is the gradient
    state = create_state(task, sgd, jax.random.key(0))
    whole, metrics = jax.jit(build_train_step(task, sgd, seed=3))(state, toy_batch(0))
    step = build_train_step(task, sgd, seed=3, accumulate_steps=accumulate_steps)
    parts, metrics_of_parts = jax.jit(step)(state, toy_batch(0))
    np.testing.assert_allclose(metrics["loss"], metrics_of_parts["loss"], rtol=1e-5)
    for name in ("size", "contrast", "grad_norm"):
        np.testing.assert_allclose(metrics[name], metrics_of_parts[name], rtol=1e-5)
    _close(whole.params, parts.params, 1e-5)


def test_contrast_is_over_the_global_batch():
    """With one sample in each micro-batch, a contrast that stays inside a micro-batch would be exactly 0."""
    task = toy_task()
    _, metrics = _step(task, accumulate_steps=8)(create_state(task, _optimiser(task), jax.random.key(0)), toy_batch(0))
    assert metrics["contrast"] > 0.5


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 4}])
def test_any_mesh_gives_the_step_of_one_device(axes):
    task = toy_task()
    optimiser = _optimiser(task)
    results = []
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(**axes)):
        state = create_state(task, optimiser, jax.random.key(0))
        shardings = state_shardings(state, mesh)
        step = compile_step(build_train_step(task, optimiser, seed=3, teacher_decay=0.9), shardings, mesh)
        state = jax.device_put(state, shardings)
        for number in range(3):
            state, metrics = step(state, put_batch(toy_batch(number), mesh))
        results.append((jax.device_get(state.params), jax.device_get(state.teacher), float(metrics["loss"])))
    _close(results[0], results[1], 1e-5)


def test_teacher_is_the_moving_average_of_the_student():
    task = toy_task()
    state = create_state(task, _optimiser(task), jax.random.key(0))
    after, _ = _step(task, decay=0.9)(state, toy_batch(0))
    expected = 0.9 * np.asarray(state.teacher["a"]) + 0.1 * np.asarray(after.params["a"])
    np.testing.assert_allclose(after.teacher["a"], expected, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_step_changes_nothing_but_the_counters(value):
    task = toy_task()
    state = create_state(task, _optimiser(task), jax.random.key(0))
    step = _step(task)
    state, _ = step(state, toy_batch(0))
    bad = toy_batch(1)
    bad["x"][3, 1] = value
    after, metrics = step(state, bad)
    for part in ("params", "batch_stats", "teacher", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, part), getattr(after, part))
    assert (int(after.bad_in_row), int(after.bad_total), int(metrics["bad"])) == (1, 1, 1)
    again, _ = step(after, toy_batch(2))
    assert (int(again.bad_in_row), int(again.bad_total)) == (0, 1)
    assert not np.array_equal(again.params["a"], after.params["a"])


@pytest.mark.parametrize("part", ["params", "batch_stats", "teacher", "opt_state"])
def test_a_state_that_would_not_be_finite_is_not_taken_though_loss_and_gradient_are(part):
    """Each part of the new state by itself: a rate of NaN, statistics, teacher and moments that overflow."""
    task, optimiser = toy_task(), _optimiser(toy_task())
    if part == "params":
        shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
        optimiser = make_optimiser(shapes, RULES, AdamWSettings(learning_rate=float("nan")))
    if part == "batch_stats":
        plain = task.local

        def local(params, batch_stats, *arguments):
            out = plain(params, batch_stats, *arguments)
            return out._replace(batch_stats={"mean": jnp.full_like(batch_stats["mean"], jnp.inf)})

        task = dataclasses.replace(task, local=local)
    if part == "teacher":
        task = dataclasses.replace(task, teacher_of=lambda params, batch_stats: {"a": params["a"] * 1e30 * 1e30})
    if part == "opt_state":
        task = dataclasses.replace(
            task, local=lambda *a, plain=task.local: (out := plain(*a))._replace(loss=out.loss * 1e25)
        )
    state = create_state(toy_task(), optimiser, jax.random.key(0))
    step = build_train_step(task, optimiser, seed=3, teacher_decay=0.9)
    after, metrics = jax.jit(step)(state, toy_batch(0))
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]) == (part != "opt_state")
    assert (int(metrics["bad"]), int(after.bad_total), int(after.step)) == (1, 1, 1)
    for name in ("params", "batch_stats", "teacher", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(after, name))


def test_one_device_with_a_non_finite_leaf_stops_the_step_on_all():
    """The new state is split over devices; the one value that is not finite lies on one of them."""
    mesh = make_mesh(data=2, fsdp=4)
    width = 2**13
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    tree = {"kernel": jax.device_put(np.ones((2, width), np.float32), split), "count": jnp.zeros((), jnp.int32)}
    assert bool(jax.jit(all_finite)(tree))
    tree["kernel"] = jax.device_put(np.ones((2, width), np.float32) * np.where(np.arange(width) == 9, np.inf, 1), split)
    answer = jax.jit(all_finite)(tree)
    assert {bool(shard.data) for shard in answer.addressable_shards} == {False}


def test_the_guard_over_all_leaves_is_not_copied_to_each_of_them():
    """A program that grows with the square of the leaves takes minutes and gigabytes to compile for a SwinUNETR."""

    def guarded(old, change):
        new = jax.tree.map(lambda leaf, by: leaf + by, old, change)
        good = all_finite(new)
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)

    def length(leaves):
        state = [jnp.ones(12)] * leaves
        return len(jax.jit(guarded).lower(state, state).compile().as_text().splitlines())

    assert length(160) < 2.5 * length(80)


def test_skipped_steps_shift_neither_schedule_nor_thaw():
    """Two steps of five are skipped: what trains at step 5, and at which rate, is as if none were."""
    task = toy_task()
    shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
    rules = [Rule("^b$", Group("late", thaw_step=5)), *RULES]
    settings = AdamWSettings(learning_rate=1e-2, warmup_steps=100, weight_decay=0.0)
    optimiser = make_optimiser(shapes, rules, settings)
    step = jax.jit(build_train_step(task, optimiser, seed=3, rules=rules))
    state, moved = create_state(task, optimiser, jax.random.key(0)), []
    for number in range(7):
        batch = toy_batch(number)
        if number in (1, 3):
            batch["x"][0] = np.nan
        after, _ = step(state, batch)
        moved.append({name: float(np.abs(after.params[name] - state.params[name]).max()) for name in "ab"})
        state = after
    assert [one["b"] > 0 for one in moved] == [False] * 5 + [True] * 2
    # Adam's first step of a parameter has the size of the rate, which is that of the run's fifth step.
    assert moved[5]["b"] == pytest.approx(5 / 100 * 1e-2, rel=1e-3)
    assert moved[1]["a"] == moved[3]["a"] == 0.0


def test_draws_follow_step_and_row():
    task = toy_task()
    batch = jax.tree.map(jnp.asarray, toy_batch(0))
    key = jax.random.fold_in(jax.random.key(3), 5)
    rows = task.prepare(batch, key, 5)
    other = task.prepare(batch, jax.random.fold_in(jax.random.key(3), 6), 6)
    noise = np.asarray(rows["x"] - batch["x"])
    assert not np.allclose(noise[0], noise[1])
    assert not np.allclose(rows["x"], other["x"])


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_what_is_frozen_has_no_gradient_and_costs_none(accumulate_steps):
    task, sgd = toy_task(), optax.sgd(1.0)
    state = create_state(task, sgd, jax.random.key(0))

    def run(group, at=0):
        rules = [Rule("^b$", group), *RULES]
        step = build_train_step(task, sgd, seed=3, rules=rules, accumulate_steps=accumulate_steps)
        compiled = jax.jit(step).lower(state, toy_batch(0)).compile()
        after, metrics = compiled(state.replace(step=jnp.asarray(at)), toy_batch(0))
        moved = {name: np.asarray(state.params[name] - after.params[name]) for name in "ab"}
        return moved, float(metrics["grad_norm"]), compiled.cost_analysis()["flops"]

    whole, norm, cost = run(Group("trains"))
    np.testing.assert_allclose(norm, np.sqrt(sum(np.sum(leaf**2) for leaf in whole.values())), rtol=1e-4)
    for group in (Group("late", thaw_step=7), Group("frozen", frozen=True)):
        moved, norm, less = run(group)
        assert not moved["b"].any()
        np.testing.assert_array_equal(moved["a"], whole["a"])
        np.testing.assert_allclose(norm, np.linalg.norm(whole["a"]), rtol=1e-4)
    assert less < cost
    thawed, norm, _ = run(Group("thaws", thaw_step=7), at=7)
    assert thawed["b"].any() and norm > np.linalg.norm(thawed["a"])
