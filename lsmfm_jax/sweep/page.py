"""The page of a sweep: what matters, how each setting went with the result, and all runs; it fills in as they end."""

import html
import pathlib
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from lsmfm_jax import html_page
from lsmfm_jax.files import replace_text
from lsmfm_jax.sweep.declaration import Choice, Sweep

if TYPE_CHECKING:
    import optuna

PAGE = "sweep.html"
# Fewer say nothing about what matters.
LEAST_FOR_IMPORTANCE = 8


def write_page(sweep: Sweep, study: "optuna.Study", workdir: pathlib.Path) -> None:
    """Writes the page of what is known so far."""
    # A run that was killed goes on as another one, in the same folder.
    last = {folder_of(trial): trial for trial in study.get_trials(deepcopy=False)}
    trials = [trial for trial in last.values() if trial.state.is_finished()]
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    aim = "large" if sweep.higher_is_better else "small"
    parts = [
        f"<h1>Sweep {html.escape(sweep.name)}</h1>",
        f'<p class="muted">{sweep.trials} runs are asked for: {len(complete)} done, '
        f"{sum(trial.state.name == 'PRUNED' for trial in trials)} stopped early, "
        f"{sum(trial.state.name == 'FAIL' for trial in trials)} failed. {html.escape(sweep.metric)} is to be {aim}; "
        "a run counts by its best validation.</p>",
    ]
    if complete:
        parts.append("<h2>Best</h2>")
        rows = [[key, _said(sweep, key, value)] for key, value in study.best_trial.params.items()]
        parts.append(html_page.table(["key", f"{sweep.metric} {study.best_value:.5g}"], rows))
        parts += ["<h2>Each key</h2>", html_page.drawn(_slices(sweep, trials), f"{sweep.metric} over each key")]
    if len(complete) >= LEAST_FOR_IMPORTANCE and len(sweep.space) > 1:
        parts += [
            "<h2>What matters</h2>",
            html_page.table(["key", "share of the differences"], _importances(study)),
            '<p class="muted">By a forest of trees over the finished runs (functional ANOVA); with few runs it is a '
            "rough guess.</p>",
        ]
    order = sorted(trials, key=lambda trial: _rank(trial, higher=sweep.higher_is_better))
    parts += ["<h2>Runs</h2>", html_page.table(["run", "state", sweep.metric, *sweep.space], _rows(sweep, order))]
    replace_text(workdir / PAGE, html_page.page(sweep.name, parts))


def folder_of(trial: Any) -> str:
    """Name of a run's folder: its number, or that of the killed run which it goes on with."""
    return trial.user_attrs.get("folder", f"{trial.number:04d}")


def _importances(study: "optuna.Study") -> list[list[str]]:
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return [[key, f"{share:.2f}"] for key, share in found.items()]


def _rows(sweep: Sweep, trials: list[Any]) -> list[list[str]]:
    names = {"COMPLETE": "done", "PRUNED": "stopped early", "FAIL": "failed"}
    rows = []
    for trial in trials:
        value = _value(trial)
        settings = [_said(sweep, key, trial.params[key]) if key in trial.params else "" for key in sweep.space]
        rows.append([str(trial.number), names[trial.state.name], "" if value is None else f"{value:.5g}", *settings])
    return rows


def _value(trial: Any) -> float | None:
    """A run's result; of one that was stopped the best until then."""
    if trial.value is not None:
        return trial.value
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None


def _rank(trial: Any, *, higher: bool) -> tuple[bool, bool, float]:
    value = _value(trial)
    return trial.state.name != "COMPLETE", value is None, 0.0 if value is None else -value if higher else value


def _said(sweep: Sweep, key: str, value: Any) -> str:
    values = sweep.space[key]
    if isinstance(values, Choice):
        return str(values.values[value])
    return f"{value:.4g}"


def _slices(sweep: Sweep, trials: list[Any]) -> Figure:
    """The result over each key: what was done filled, what was stopped early hollow."""
    across = min(4, len(sweep.space))
    down = -(-len(sweep.space) // across)
    figure = Figure(figsize=(3.2 * across, 2.7 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    for axis in axes.ravel()[len(sweep.space) :]:
        axis.set_visible(False)
    for axis, (key, values) in zip(axes.ravel(), sweep.space.items(), strict=False):
        for done in (True, False):
            mine = [one for one in trials if (one.state.name == "COMPLETE") == done and _value(one) is not None]
            axis.scatter(
                [one.params[key] for one in mine],
                [_value(one) for one in mine],
                s=16,
                color="#1f6fb2",
                facecolors="#1f6fb2" if done else "none",
            )
        if isinstance(values, Choice):
            axis.set_xticks(range(len(values.values)), [str(value) for value in values.values])
        elif values.log:
            axis.set_xscale("log")
        axis.set_xlabel(key, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel(sweep.metric, fontsize=8)
    return figure
