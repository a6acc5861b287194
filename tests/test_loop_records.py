"""What a run prints and writes of itself is what happened: the best checkpoint, and the pace of its steps."""

import os
import re
import shutil
import signal
import types

import numpy as np
import pytest
from test_loop import _config, _quiet, _setup
from toy import toy_batch, toy_batches

from lsmfm_jax.train import loop as loop_module
from lsmfm_jax.train import run as run_module
from lsmfm_jax.train.checkpoint import Checkpoints, SaveError, read_part
from lsmfm_jax.train.checkpoint_checks import committed_steps
from lsmfm_jax.train.loop import Ending
from lsmfm_jax.train.run import execute
from lsmfm_jax.train.tracking import read_metrics


def _without(folder, steps):
    for step in steps:
        shutil.rmtree(folder / str(step))
        (folder / "seals" / f"{step}.json").unlink()


def _best_of(folder):
    """The best of the run, and the validation loss that its state has."""
    (step,) = committed_steps(folder / "best")
    _, meta = read_part(folder / "best", step, ("params",))
    return step, meta["best"]["value"]


@pytest.mark.parametrize("resumed_from", [6, 0])
def test_after_a_resume_from_an_earlier_step_best_is_of_the_branch_that_is_trained(tmp_path, capsys, resumed_from):
    folder = tmp_path / "run"
    execute(_config(epochs=6), _setup(), folder, print_line=_quiet)
    left = committed_steps(folder / "best")[0]
    assert left > 9
    _without(folder / "checkpoints", [step for step in committed_steps(folder / "checkpoints") if step > resumed_from])
    capsys.readouterr()
    config, said = _config(epochs=3), []
    config.optim.learning_rate = 2e-2
    state, _ = execute(config, _setup(), folder, print_line=said.append)
    assert any(f"best checkpoint of step {left} is later than step {resumed_from}: set aside" in line for line in said)
    step, value = _best_of(folder)
    assert resumed_from < step <= 9 and (folder / "best" / f"later-{left}").is_dir()
    losses = {line["step"]: line["loss"] for line in read_metrics(folder, "validation")}
    assert losses[step] == value
    printed = re.findall(r"after epoch (\d+): .*\(best\)", capsys.readouterr().out)
    assert printed and 3 * int(printed[-1]) == step
    if step == 9:
        saved, _ = read_part(folder / "best", step, ("params",))
        np.testing.assert_array_equal(saved["params"]["a"], state.params["a"])


def test_a_best_checkpoint_at_or_before_the_step_of_the_resume_stays_the_best(tmp_path):
    folder = tmp_path / "run"
    execute(_config(epochs=3), _setup(), folder, print_line=_quiet)
    before = _best_of(folder)
    config = _config(epochs=5)
    config.optim.learning_rate = 0.0
    config.optim.weight_decay = 0.0
    execute(config, _setup(), folder, print_line=_quiet)
    assert _best_of(folder) == before and not list((folder / "best").glob("later-*"))


def test_best_is_not_printed_where_it_was_not_saved(tmp_path, capsys, monkeypatch):
    save = Checkpoints.save

    def refusing(self, step, state, meta):
        if self.folder.name == "best" and step in (3, 9):
            raise SaveError(f"checkpoint at step {step} could not be written")
        save(self, step, state, meta)

    monkeypatch.setattr(Checkpoints, "save", refusing)
    folder = tmp_path / "run"
    execute(_config(epochs=3), _setup(), folder, print_line=_quiet)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("validation")]
    assert lines[0].endswith("(better, but not saved; none saved yet)")
    assert lines[1].endswith(" (best)")
    assert re.search(r"\(better, but not saved; best \S+ in epoch 2\)$", lines[2])
    assert committed_steps(folder / "best") == [6]


def test_a_best_checkpoint_that_fails_in_the_background_is_not_kept_as_the_best(tmp_path, capsys, monkeypatch):
    save, seal, begun, failed = Checkpoints.save, Checkpoints.seal, [], []

    def noting(self, *arguments):
        save(self, *arguments)
        if self.folder.name == "best":
            begun.append(True)

    def failing(self):
        if self.folder.name == "best" and begun and not failed:
            failed.append(True)
            raise SaveError("the disk is full")
        seal(self)

    monkeypatch.setattr(Checkpoints, "save", noting)
    monkeypatch.setattr(Checkpoints, "seal", failing)
    execute(_config(epochs=2), _setup(), tmp_path / "run", print_line=_quiet)
    assert failed and "the state of epoch 1 is not saved as the best" in capsys.readouterr().out


class _Clock:
    """Seconds that pass only where they are told to."""

    def __init__(self, monkeypatch, *, step_s, compile_s):
        self.now, self.steps = 0.0, 0
        monkeypatch.setattr(loop_module, "time", types.SimpleNamespace(monotonic=lambda: self.now))
        compile_step = run_module.compile_step

        def timed(*arguments, **settings):
            inner = compile_step(*arguments, **settings)

            def step(state, batch):
                self.now += step_s if self.steps else compile_s
                self.steps += 1
                return inner(state, batch)

            return step

        monkeypatch.setattr(run_module, "compile_step", timed)
        save = Checkpoints.save

        def slow_save(checkpoints, *arguments):
            self.now += 70.0
            save(checkpoints, *arguments)

        monkeypatch.setattr(Checkpoints, "save", slow_save)

    def validation(self):
        clock = self

        class Slow:
            def __iter__(self):
                clock.now += 300.0
                yield toy_batch(1000)

        return Slow()


@pytest.mark.parametrize("log_every", [1, 2, 50])
def test_the_pace_is_that_of_steps_without_compiling_validating_and_saving(tmp_path, monkeypatch, log_every):
    clock = _Clock(monkeypatch, step_s=2.0, compile_s=500.0)
    config = _config(log_every_steps=log_every)
    execute(config, _setup(validation=clock.validation()), tmp_path / "run", print_line=_quiet)
    lines = read_metrics(tmp_path / "run", "train")
    paces = [line["patches_per_s"] for line in lines if "patches_per_s" in line]
    assert set(paces) == {8 / 2.0}
    # The first step alone is not timed: it compiles.
    assert len(paces) == len(lines) - (log_every == 1)


def test_a_stop_writes_the_pace_of_its_last_steps_or_nothing(tmp_path, monkeypatch):
    clock = _Clock(monkeypatch, step_s=2.0, compile_s=500.0)
    for stop_at in (0, 4):

        def stopped(start_step, stop_at=stop_at):
            for step, batch in enumerate(toy_batches(start_step), start_step):
                if step == stop_at:
                    os.kill(os.getpid(), signal.SIGUSR1)
                yield batch

        clock.steps = 0
        folder = tmp_path / str(stop_at)
        _, ending = execute(_config(log_every_steps=50), _setup(batches=stopped), folder, print_line=_quiet)
        assert ending is Ending.STOPPED
        last = read_metrics(folder, "train")[-1]
        assert last["step"] == stop_at + 1
        assert last.get("patches_per_s") == (None if stop_at == 0 else 4.0)
