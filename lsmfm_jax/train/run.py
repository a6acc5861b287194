"""One run from its configuration to its end: devices, state, where it starts from, the loop."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from lsmfm_jax.config import check_step_count
from lsmfm_jax.config.load import as_json
from lsmfm_jax.files import replace_json, replace_text
from lsmfm_jax.train.checkpoint import Checkpoints, Restored
from lsmfm_jax.train.compilation import compiler_options, run_once_options
from lsmfm_jax.train.fingerprints import combined_fingerprint
from lsmfm_jax.train.initialise import load_matching
from lsmfm_jax.train.loop import Ending, Loop, LoopSettings, Run
from lsmfm_jax.train.optim import AdamWSettings, Rule, group_table, make_optimiser
from lsmfm_jax.train.platform_flags import flag_record
from lsmfm_jax.train.processes import compiled_together
from lsmfm_jax.train.records import seal_records, versions
from lsmfm_jax.train.sharding import batch_shardings, make_mesh, sharding_table, split_volumes, state_shardings
from lsmfm_jax.train.signals import save_before_stopping
from lsmfm_jax.train.state import TrainState, parameter_count, state_of
from lsmfm_jax.train.step import Step, build_train_step
from lsmfm_jax.train.task import PyTree, Task
from lsmfm_jax.train.tracking import Tracker
from lsmfm_jax.train.weights import Weights


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a task needs around its functions to be trained.

    Attributes:
        task: its functions.
        rules: optimiser groups by path.
        batches: `start_step -> iterator` over this process's rows of each batch.
        validation: this process's validation batches; gone through again at each validation.
        steps_per_epoch: optimiser steps in one pass over the training patches.
        monitor: validation metric that decides what is best.
        higher_is_better: the direction of that metric.
        teacher_decay: of the exponential moving average; unused without a teacher.
        teacher_updates_per_step: times the average is taken in a step.
        initial: parts that replace freshly initialised ones, by origin: `origin -> (params, batch_stats)`,
            nested dicts with as many levels as they replace, all leaves accounted for within each part.
        start: weights that the whole network starts from, after `initial`: every part is accounted for, and the
            teacher with them where they have one. None: none.
        record: facts written to `run.json` beside the configuration, such as the architecture and the split.
    """

    task: Task
    rules: Sequence[Rule]
    batches: Callable[[int], Iterator[PyTree]]
    validation: Iterable[PyTree]
    steps_per_epoch: int
    monitor: str
    higher_is_better: bool
    teacher_decay: float = 0.0
    teacher_updates_per_step: int = 1
    initial: Sequence[tuple[str, dict[str, PyTree], dict[str, PyTree]]] = ()
    start: Weights | None = None
    record: dict[str, Any] = dataclasses.field(default_factory=dict)


def execute(
    config: ConfigDict, setup: Setup, folder: pathlib.Path, *, print_line: Callable[[str], None] = print
) -> tuple[TrainState, Ending]:
    """Trains to the end of the run, or to its next interruption.

    The state comes from the first of these that is there: the folder's own last whole checkpoint; weights that
    the configuration names in `init_from`, with other given parts; a fresh draw from the seed.
    """
    mesh = make_mesh(**config.mesh)
    # Before anything is computed: what a mode needs may be set otherwise.
    platform, options = mesh.devices.flat[0].platform, compiler_options(mesh, config.train.xla)
    settings = optimiser_settings(config, setup.steps_per_epoch)
    shapes = jax.eval_shape(setup.task.init, jax.random.key(config.seed))
    optimiser = make_optimiser(shapes[0], setup.rules, settings)
    abstract = jax.eval_shape(lambda p, s: state_of(setup.task, optimiser, p, s), *shapes)
    shardings = state_shardings(abstract, mesh)
    main = jax.process_index() == 0
    if main:
        groups = group_table(shapes[0], setup.rules, settings)
        print_line(
            f"{parameter_count(shapes[0]):,} parameters on {mesh.size} devices, mesh {dict(mesh.shape)}\n{groups}"
        )
        tables = {"groups": groups, "sharding": sharding_table(abstract, mesh)}
        _write_records(folder, config, setup, tables, xla=flag_record(platform, config.train.xla, options))
    with contextlib.ExitStack() as closing:
        train = config.train
        checkpoints = Checkpoints(
            folder / "checkpoints", keep=train.keep_checkpoints, keep_period_steps=train.keep_period_steps
        )
        closing.callback(checkpoints.close)
        best = Checkpoints(folder / "best", keep=1)
        closing.callback(best.close)
        restored = _restored(checkpoints, best, abstract, shardings)
        if restored is None:
            state = first_state(config, setup, optimiser=optimiser, shardings=shardings, print_line=print_line)
        else:
            state = restored.state
            print_line(f"resumed from {checkpoints.folder} at step {restored.step}")
        # Those of steps that this run has not made, or not yet: of a branch that was left, or before a kill.
        later = best.set_aside_after(int(state.step))
        if later:
            print_line(
                f"best checkpoint of step {later[-1]} is later than step {int(state.step)}: set aside in {best.folder}"
            )
        loop_settings = _loop_settings(config, setup)
        tracker = _tracker(config, folder, int(state.step), loop_settings.total_steps) if main else None
        if tracker is not None:
            closing.callback(tracker.close)
        run = Run(
            task=setup.task,
            step=_saved_from_the_first(
                compiled_together(
                    compile_step(_train_step(config, setup, optimiser), shardings, mesh, xla=config.train.xla)
                )
            ),
            batches=setup.batches,
            validation=setup.validation,
            mesh=mesh,
            folder=folder,
            checkpoints=checkpoints,
            best_checkpoints=best,
            tracker=tracker,
        )
        loop = Loop(run, loop_settings)
        if restored is not None:
            loop.saving.resume_from(restored)
        state, ending = loop.train(state)
        # The same number for the same state, whatever the devices and the interruptions on the way to it.
        print_line(f"state {combined_fingerprint(state)} at step {int(state.step)}")
        return state, ending


def _write_records(
    folder: pathlib.Path, config: ConfigDict, setup: Setup, tables: dict[str, str], *, xla: dict[str, Any]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    replace_json(folder / "config.json", as_json(config))
    compiled = {"xla": xla, "kernels": config.train.kernels}
    replace_json(folder / "run.json", {**setup.record, "versions": versions(), **compiled})
    for name, table in tables.items():
        replace_text(folder / f"{name}.txt", table + "\n")
    seal_records(folder)


def _restored(checkpoints: Checkpoints, best: Checkpoints, abstract: PyTree, shardings: PyTree) -> Restored | None:
    """The newest whole checkpoint; what a killed run left without its seal is looked after."""
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, shardings
    )
    restored = checkpoints.restore(abstract)
    for kept in (checkpoints, best):
        kept.adopt_unsealed(abstract)
    return restored


def _tracker(config: ConfigDict, folder: pathlib.Path, start_step: int, total_steps: int) -> Tracker:
    return Tracker(
        folder,
        start_step=start_step,
        total_steps=total_steps,
        tensorboard=config.train.tensorboard,
        wandb_project=config.train.wandb_project,
    )


def _train_step(config: ConfigDict, setup: Setup, optimiser: Any) -> Step:
    return build_train_step(
        setup.task,
        optimiser,
        seed=config.seed,
        rules=setup.rules,
        accumulate_steps=config.train.accumulate_steps,
        teacher_decay=setup.teacher_decay,
        teacher_updates_per_step=setup.teacher_updates_per_step,
    )


def _loop_settings(config: ConfigDict, setup: Setup) -> LoopSettings:
    """From the keys of `train` and the fields of the setup that have the same names."""
    names = [field.name for field in dataclasses.fields(LoopSettings)]
    return LoopSettings(
        **{name: config.train[name] if name in config.train else getattr(setup, name) for name in names}
    )


def compile_step(
    step_fn: Callable[..., Any], shardings: PyTree, mesh: jax.sharding.Mesh, *, xla: str = "default"
) -> Callable[..., Any]:
    """Jits a step so that the state keeps its sharding and its memory, with the compiler's flags of a mode."""

    def with_shardings(state: TrainState, batch: PyTree) -> Any:
        batch = jax.lax.with_sharding_constraint(batch, batch_shardings(batch, mesh))
        return step_fn(state, batch, place=lambda rows: split_volumes(rows, mesh))

    return jax.jit(
        with_shardings,
        donate_argnums=0,
        in_shardings=(shardings, None),
        out_shardings=(shardings, None),
        compiler_options=compiler_options(mesh, xla),
    )


def _saved_from_the_first(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step after which a request to stop is left to the loop; before it, compiling is no reason to wait."""
    if jax.process_count() > 1:
        # All processes stop at the same step.
        save_before_stopping()
        return step

    def step_then_note(state: TrainState, batch: PyTree) -> Any:
        result = step(state, batch)
        save_before_stopping()
        return result

    return step_then_note


def optimiser_settings(config: ConfigDict, steps_per_epoch: int) -> AdamWSettings:
    """The optimiser's part of a configuration."""
    optim = dict(config.optim)
    check_step_count("train.epochs", config.train.epochs, steps_per_epoch)
    return AdamWSettings(total_steps=config.train.epochs * steps_per_epoch, **optim)


def first_state(
    config: ConfigDict, setup: Setup, *, optimiser: Any, shardings: PyTree, print_line: Callable[[str], None]
) -> TrainState:
    """The state before step 0: drawn from the seed, then parts and weights from elsewhere in their places.

    Raises:
        CoverageError: leaves that do not fit and are not listed in `init_allow`.
    """
    draw = jax.jit(
        setup.task.init,
        out_shardings=(shardings.params, shardings.batch_stats),
        compiler_options=run_once_options(shardings.step.mesh.devices.flat[0].platform),
    )
    params, batch_stats = draw(jax.random.key(config.seed))
    if not (setup.initial or setup.start):
        print_line("from scratch")
    for origin, given_params, given_stats in setup.initial:
        wanted = {
            "params": {name: params[name] for name in given_params},
            "batch_stats": {name: batch_stats[name] for name in given_stats},
        }
        given = {"params": given_params, "batch_stats": given_stats}
        filled = _load(wanted, given, config, origin=origin, print_line=print_line)
        params, batch_stats = {**params, **filled["params"]}, {**batch_stats, **filled["batch_stats"]}
    if setup.start is not None:
        wanted = {"params": params, "batch_stats": batch_stats}
        given = {"params": setup.start.params, "batch_stats": setup.start.batch_stats}
        filled = _load(wanted, given, config, origin=setup.start.origin, print_line=print_line)
        params, batch_stats = filled["params"], filled["batch_stats"]
    make = jax.jit(lambda p, s: state_of(setup.task, optimiser, p, s), out_shardings=shardings)
    state = make(params, batch_stats)
    return state if setup.start is None else _with_teacher(state, setup.start, config, print_line)


def _with_teacher(
    state: TrainState, start: Weights, config: ConfigDict, print_line: Callable[[str], None]
) -> TrainState:
    """The state with the teacher of the weights that it starts from; without one it is a copy of the student."""
    if not jax.tree.leaves(state.teacher):
        return state
    if start.teacher is None:
        print_line(f"{start.origin} has no teacher: it starts as a copy of the student")
        return state
    origin = f"{start.origin}, teacher"
    filled = _load({"teacher": state.teacher}, {"teacher": start.teacher}, config, origin=origin, print_line=print_line)
    return state.replace(teacher=filled["teacher"])


def _load(
    wanted: PyTree, given: PyTree, config: ConfigDict, *, origin: str, print_line: Callable[[str], None]
) -> PyTree:
    """The tree with the leaves of other weights, each with the sharding of the one that it replaces."""
    filled, line = load_matching(wanted, given, allow=config.init_allow, origin=origin)
    print_line(line)
    return jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), filled, wanted)
