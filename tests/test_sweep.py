"""A sweep finds what is good, stops what lags behind, goes on after a kill, and refuses what it cannot run."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import optuna
import pytest

from lsmfm_jax.cli import main
from lsmfm_jax.config import load_config
from lsmfm_jax.experiment.commands import overriding
from lsmfm_jax.sweep.command import command_of, run_sweep, with_arguments
from lsmfm_jax.sweep.declaration import Choice, Range, Sweep, SweepError, check, load_sweep
from lsmfm_jax.sweep.trial import TrialFailed, Validation, run_trial, validations

ROOT = pathlib.Path(__file__).resolve().parent.parent
# In the place of a training: a validation every 50 ms, whose loss falls to what the settings are worth.
STAND_IN = """
import json, pathlib, sys, time
run, rate, ratio, wait = pathlib.Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
run.mkdir(parents=True, exist_ok=True)
if rate > 0.9:
    raise SystemExit("lsmfm: optim.learning_rate is too high")
with (run / "metrics.jsonl").open("a") as file:
    for step in range(1, 5):
        time.sleep(wait)
        loss = abs(rate - 0.3) + abs(ratio - 0.6) + 1 / step
        for line in ({"kind": "train", "loss": 9.0}, {"kind": "validation", "loss": loss}):
            print(json.dumps({"step": step, **line}), file=file, flush=True)
"""
SPACE = {"optim.learning_rate": Range(0.01, 1.0, log=True), "mask.ratio": Choice((0.3, 0.6))}


def _sweep(**changes):
    settings = {"space": SPACE, "metric": "loss", "higher_is_better": False, "trials": 12, "first_trials": 6}
    return Sweep("toy", "pretrain", "pretrain_unet:tiny", **{**settings, **changes})


def _stand_in(sweep, folder, values, wait=0.0):
    rate, ratio = values["optim.learning_rate"], values["mask.ratio"]
    return (sys.executable, "-c", STAND_IN, str(folder / "run"), str(rate), str(ratio), str(wait))


def _study(workdir):
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{workdir / 'sweep.sqlite'}")


def test_a_sweep_finds_what_is_good_and_goes_on_with_more_runs(tmp_path, capsys):
    lines = []
    assert run_sweep(_sweep(), tmp_path, jobs=2, command=_stand_in, print_line=lines.append) == 0
    study = _study(tmp_path)
    ended = [trial.state.name for trial in study.trials]
    assert ended.count("COMPLETE") + ended.count("PRUNED") == 12 - ended.count("FAIL")
    assert study.best_params["mask.ratio"] == 1, "the place of .6 among the choices"
    assert study.best_value == min(trial.value for trial in study.trials if trial.state.name == "COMPLETE")
    assert study.best_value == pytest.approx(abs(study.best_params["optim.learning_rate"] - 0.3) + 1 / 4)
    assert lines[-1] == "  " + " ".join(
        overriding({"optim.learning_rate": study.best_params["optim.learning_rate"], "mask.ratio": 0.6})
    )
    page = (tmp_path / "sweep.html").read_text()
    assert "Best" in page and "What matters" in page and page.count("<img") == 1

    assert run_sweep(_sweep(trials=14), tmp_path, command=_stand_in, print_line=lines.append) == 0
    finished = [trial for trial in _study(tmp_path).trials if trial.state.name in ("COMPLETE", "PRUNED")]
    assert len(finished) == 14
    with pytest.raises(SweepError, match=r"another sweep was begun there: metric: 'loss' -> 'align'"):
        run_sweep(_sweep(metric="align"), tmp_path, command=_stand_in)


def test_a_run_that_lags_behind_is_stopped(tmp_path):
    folder = tmp_path / "t"
    command = _stand_in(None, folder, {"optim.learning_rate": 0.5, "mask.ratio": 0.3}, wait=0.7)
    seen = []

    def lags(found):
        seen.append(found)
        return len(seen) == 2

    start = time.monotonic()
    found, stopped = run_trial(command, folder, metric="loss", lags=lags)
    assert stopped and [one.step for one in seen] == [1, 2] and found[0] == Validation(1, pytest.approx(1.5))
    assert time.monotonic() - start < 60


def test_a_failed_run_says_why_and_the_others_go_on(tmp_path):
    lines = []
    sweep = _sweep(space={**SPACE, "optim.learning_rate": Choice((0.3, 0.95))}, trials=6)
    assert run_sweep(sweep, tmp_path, command=_stand_in, print_line=lines.append) == 0
    failed = [line for line in lines if re.match(r"run \d+ failed: ", line)]
    assert failed and all("lsmfm: optim.learning_rate is too high (" in line for line in failed)
    worst = _sweep(space={"mask.ratio": Choice((0.3, 0.6))}, trials=2)

    def broken(sweep, folder, values):
        return sys.executable, "-c", "print('nothing')"

    assert run_sweep(worst, tmp_path / "w", command=broken, print_line=lines.append) == 1
    assert any("has no validation with 'loss'" in line for line in lines)
    assert lines[-1].startswith("no run came to its end")


def test_a_killed_sweep_goes_on_in_the_folders_of_the_runs_that_were_under_way(tmp_path):
    program = (
        "import functools, pathlib, sys\nfrom test_sweep import _stand_in, _sweep\n"
        "from lsmfm_jax.sweep.command import run_sweep\n"
        "run_sweep(_sweep(trials=3), pathlib.Path(sys.argv[1]), command=functools.partial(_stand_in, wait=3.0))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=environment)
    until = time.monotonic() + 120
    while not (tmp_path / "trials" / "0000" / "run").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = _study(tmp_path).trials[0]
    assert begun.state.name == "RUNNING"

    lines = []
    assert run_sweep(_sweep(trials=3), tmp_path, command=_stand_in, print_line=lines.append) == 0
    again = _study(tmp_path).trials[1]
    assert again.params == begun.params and again.user_attrs["folder"] == "0000"
    assert {path.name for path in (tmp_path / "trials").iterdir()} == {"0000", "0002", "0003"}
    drawn = [tuple(trial.params.values()) for trial in _study(tmp_path).trials[1:]]
    assert len(set(drawn)) == 3, "what was drawn before the kill is not drawn again"
    page = (tmp_path / "sweep.html").read_text()
    assert "3 runs are asked for: 3 done, 0 stopped early, 0 failed" in page


def test_half_a_line_is_left_for_the_next_look(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert list(validations(path, "loss")) == []
    whole = json.dumps({"step": 1, "kind": "validation", "loss": 0.5}) + "\n"
    path.write_text(whole + whole[:20])
    assert list(validations(path, "loss")) == [Validation(1, 0.5)]


def test_a_command_that_cannot_train_fails_with_its_last_line(tmp_path):
    with pytest.raises(TrialFailed, match="no such key"):
        run_trial((sys.executable, "-c", "raise SystemExit('no such key')"), tmp_path, metric="loss", lags=bool)


@pytest.mark.parametrize("spec", ["loss_weights", "loss_weights:tiny"])
def test_the_sweep_of_the_package_gives_commands_that_the_recipe_takes(spec, tmp_path):
    sweep = load_sweep(spec)
    values = {key: of.low if isinstance(of, Range) else of.values[-1] for key, of in sweep.space.items()}
    command = command_of(sweep, tmp_path, values)
    overrides = [word for word in command if word.startswith("--config.")]
    config = load_config(sweep.recipe, overrides)
    assert config.loss.distill == 0.1 and config.mask.ratio == 0.75 and config.train.patience_epochs == 0
    card = (ROOT / "configs" / "sweeps" / "loss_weights.py").read_text()
    assert re.search(rf"{sweep.trials} runs of {config.train.epochs} epochs", card)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {}}, "space is empty"),
        ({"space": {"seed": Range(2, 1)}}, "seed: 2 to 1; two finite numbers"),
        ({"space": {"mask.ratio": Range(0.0, 1.0, log=True)}}, "above 0 for log"),
        ({"space": {"mask.ratio": Range(0, 1.0)}}, "both integers or both not"),
        ({"space": {"mask.ratio": Choice((0.3, 0.3))}}, "two different ones are needed"),
        ({"overrides": {"mask.ratio": 0.3}}, "mask.ratio is searched and fixed in overrides"),
        ({"command": "train"}, "command is 'train'; allowed: pretrain, finetune"),
        ({"trials": 0}, "both must be 1 or more"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes, said):
    sweep = dataclasses.replace(_sweep(), **changes)
    with pytest.raises(SweepError, match=re.escape(said)):
        check(sweep)


def test_mistakes_of_the_command_line_are_one_line(tmp_path, capsys):
    work = ["--workdir", str(tmp_path / "w")]
    for arguments, said in (
        (["weights"], "weights: neither in sweeps of the package nor a file; there are loss_weights"),
        (["loss_weights:large"], "variant 'large' is unknown; allowed: tiny, or none"),
        (["loss_weights", "--set", "mask.ratio=0.5"], "--set mask.ratio=0.5 is searched"),
        (["loss_weights", "--set", "train.epochs"], "--set train.epochs: KEY=VALUE is needed"),
        (["loss_weights", "--set", "train.epoch=3"], "train.epoch"),
    ):
        assert main(["sweep", *arguments, *work]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (tmp_path / "w").exists() or not any((tmp_path / "w").iterdir())


def test_more_keys_and_runs_come_from_the_command_line():
    sweep = with_arguments(_sweep(), trials=99, arguments=["data.stores=('a',)"])
    assert sweep.trials == 99 and sweep.overrides == {"data.stores": "('a',)"}
