"""`lsmfm sweep` as a function: draw settings, run them, stop what lags behind, go on after a kill, tell what is best.

Settings are drawn by Optuna's tree-structured Parzen estimator, and a run is stopped when its best validation so far is
worse than the median of the others at the same step (its `MedianPruner`). All that is known is in an SQLite file in the
workdir, which Optuna's own tools read.
"""

import concurrent.futures
import dataclasses
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lsmfm_jax.config import load_config
from lsmfm_jax.config.workdir import check_workdir
from lsmfm_jax.experiment.commands import lsmfm, overriding
from lsmfm_jax.files import replace_file, seal
from lsmfm_jax.locks import locked
from lsmfm_jax.sweep.declaration import Choice, Sweep, SweepError, as_record
from lsmfm_jax.sweep.page import folder_of, write_page
from lsmfm_jax.sweep.trial import TrialFailed, Validation, run_trial

if TYPE_CHECKING:
    import optuna

STORAGE, RECORD = "sweep.sqlite", "sweep.json"
Command = Callable[[Sweep, pathlib.Path, dict[str, Any]], tuple[str, ...]]


def command_of(sweep: Sweep, folder: pathlib.Path, values: dict[str, Any]) -> tuple[str, ...]:
    """The command of one run."""
    given = overriding({**sweep.overrides, **values})
    return lsmfm(sweep.command, "--config", sweep.recipe, "--workdir", folder / "run", *given)


def run_sweep(
    sweep: Sweep,
    workdir: pathlib.Path,
    *,
    jobs: int = 1,
    command: Command = command_of,
    print_line: Callable[[str], None] = print,
) -> int:
    """Runs a sweep, or goes on with it.

    Args:
        sweep: checked, with what the command line adds.
        workdir: new, empty, or of the same sweep.
        jobs: runs at a time.
        command: of one run.
        print_line: prints a line.

    Returns:
        The exit code: 1 where no run came to its end.

    Raises:
        ConfigError: the recipe, or a key of the search, is wrong.
        SweepError: the workdir holds another sweep, or Optuna is not installed.
        Locked: another process runs a sweep there.
    """
    optuna = _optuna()
    workdir = workdir.resolve()
    _check_keys(sweep)
    with locked(workdir, use="sweep"):
        _check_folder(sweep, workdir)
        study = _study(optuna, sweep, workdir)
        _ask_again(optuna, study)
        search = _Search(sweep, workdir, study, command, print_line, threading.Lock())
        states = optuna.trial.TrialState
        done = len(study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED)))
        print_line(f"{sweep.trials} runs, {done} done; page: {workdir / 'sweep.html'}")
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for future in [pool.submit(search.one) for _ in range(max(0, sweep.trials - done))]:
                future.result()
        write_page(sweep, study, workdir)
    complete = study.get_trials(deepcopy=False, states=(states.COMPLETE,))
    if not complete:
        print_line(f"no run came to its end; their logs are in {workdir / 'trials'}")
        return 1
    best = study.best_trial
    print_line(f"best {sweep.metric} {best.value:.5g}, run {search.folder(best)}; take it with")
    print_line("  " + " ".join(overriding(search.decoded(best.params))))
    return 0


@dataclasses.dataclass(frozen=True)
class _Search:
    sweep: Sweep
    workdir: pathlib.Path
    study: "optuna.Study"
    command: Command
    print_line: Callable[[str], None]
    lock: threading.Lock  # of the study, which several threads ask and tell

    def folder(self, trial: Any) -> pathlib.Path:
        """Of a trial; one that goes on where a killed one ended has that one's."""
        return self.workdir / "trials" / folder_of(trial)

    def decoded(self, params: dict[str, Any]) -> dict[str, Any]:
        """Values of the keys, of Optuna's parameters: choices are kept by their place."""
        space = self.sweep.space
        return {
            key: space[key].values[value] if isinstance(space[key], Choice) else value for key, value in params.items()
        }

    def one(self) -> None:
        """One run, from its draw to what is told of it."""
        import optuna

        with self.lock:
            trial = self.study.ask(_distributions(optuna, self.sweep))
        best: list[float] = []

        def lags(found: Validation) -> bool:
            better = max if self.sweep.higher_is_better else min
            best[:] = [better([*best, found.value])]
            with self.lock:
                trial.report(best[0], found.step)
                return bool(trial.should_prune())

        command = self.command(self.sweep, self.folder(trial), self.decoded(trial.params))
        try:
            found, stopped = run_trial(command, self.folder(trial), metric=self.sweep.metric, lags=lags)
        except TrialFailed as error:
            with self.lock:
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            self.print_line(f"run {trial.number} failed: {error} ({self.folder(trial)})")
            return
        with self.lock:
            if stopped:
                self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                self.study.tell(trial, best[0])
            write_page(self.sweep, self.study, self.workdir)
        end = f"stopped at step {found[-1].step}, behind the median of the others" if stopped else "done"
        self.print_line(f"run {trial.number}: {self.sweep.metric} {best[0]:.5g}, {end}: {_text(self, trial)}")


def _text(search: _Search, trial: Any) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in search.decoded(trial.params).items()
    )


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise SweepError("lsmfm sweep needs Optuna: pip install 'lsmfm_jax[sweep]', or pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _check_keys(sweep: Sweep) -> None:
    """Reads the recipe with the ends of each range and every choice: a mistake is told before any run."""
    ends = {
        key: values.values if isinstance(values, Choice) else (values.low, values.high)
        for key, values in sweep.space.items()
    }
    for number in range(max(map(len, ends.values()))):
        values = {key: of[min(number, len(of) - 1)] for key, of in ends.items()}
        task = load_config(sweep.recipe, overriding({**sweep.overrides, **values})).task
        if (task == "pretrain") != (sweep.command == "pretrain"):
            raise SweepError(f"{sweep.name}: {sweep.recipe} is of task {task!r}, and command is {sweep.command!r}")


def _check_folder(sweep: Sweep, workdir: pathlib.Path) -> None:
    path, record = workdir / RECORD, as_record(sweep)
    if not check_workdir(path, "sweep", record, SweepError):
        replace_file(path, seal({"sweep": record}))


def _study(optuna: Any, sweep: Sweep, workdir: pathlib.Path) -> "optuna.Study":
    study = optuna.create_study(
        storage=f"sqlite:///{workdir / STORAGE}",
        study_name="sweep",
        load_if_exists=True,
        direction="maximize" if sweep.higher_is_better else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=sweep.first_trials),
    )
    # A sweep that goes on does not draw again what it has drawn.
    seed = sweep.seed + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=sweep.first_trials)
    return study


def _distributions(optuna: Any, sweep: Sweep) -> dict[str, Any]:
    made = {}
    for key, values in sweep.space.items():
        if isinstance(values, Choice):
            made[key] = optuna.distributions.CategoricalDistribution(range(len(values.values)))
        elif isinstance(values.low, int):
            made[key] = optuna.distributions.IntDistribution(values.low, values.high, log=values.log)
        else:
            made[key] = optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)
    return made


def _ask_again(optuna: Any, study: "optuna.Study") -> None:
    """Runs that were under way when the sweep was killed are drawn again, in their folders, where they go on."""
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        folder = folder_of(trial)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params, user_attrs={"folder": folder})


def with_arguments(sweep: Sweep, *, trials: int | None, arguments: Sequence[str]) -> Sweep:
    """The sweep with what the command line adds.

    Args:
        sweep: as declared.
        trials: runs in all; None: as declared.
        arguments: `KEY=VALUE` each, for all runs.

    Raises:
        SweepError: an argument without a value, or of a key that is searched.
    """
    given = {}
    for text in arguments:
        key, equals, value = text.partition("=")
        if not equals or key in sweep.space:
            searched = " is searched" if key in sweep.space else ": KEY=VALUE is needed"
            raise SweepError(f"--set {text}{searched}")
        given[key] = value
    return dataclasses.replace(sweep, trials=trials or sweep.trials, overrides={**sweep.overrides, **given})
