"""The loop: the same run whether interrupted or not, and the ways in which it stops."""

import gzip
import json
import os
import pathlib
import re
import signal

import jax
import numpy as np
import pytest
from toy import toy_batch, toy_batches, toy_task

from lsmfm_jax.config import defaults
from lsmfm_jax.train.bad_steps import NonFiniteError
from lsmfm_jax.train.checkpoint_checks import committed_steps
from lsmfm_jax.train.fingerprints import combined_fingerprint
from lsmfm_jax.train.initialise import CoverageError
from lsmfm_jax.train.loop import Ending
from lsmfm_jax.train.optim import Group, Rule
from lsmfm_jax.train.resume import ResumeError, check_run_folder
from lsmfm_jax.train.run import Setup, execute


def _config(**train):
    config = defaults("pretrain")
    settings = {
        "epochs": 4,
        "batch_size": 8,
        "patience_epochs": 0,
        "log_every_steps": 2,
        "tensorboard": False,
    }
    settings |= {"checkpoint_every_epochs": 1, "keep_checkpoints": 10, "pictures_every_epochs": 0, **train}
    config.train.update(settings)
    config.optim.learning_rate = 1e-2
    return config


def _setup(batches=toy_batches, **more):
    settings = {
        "task": toy_task(),
        "rules": [Rule(".", Group("all"))],
        "batches": batches,
        "validation": [toy_batch(1000)],
        "steps_per_epoch": 3,
        "monitor": "loss",
        "higher_is_better": False,
        "teacher_decay": 0.9,
        **more,
    }
    return Setup(**settings)


def test_a_trace_of_some_steps_is_written_once_and_changes_nothing(tmp_path, capsys):
    traced, _ = execute(_config(profile_steps=2), _setup(), tmp_path / "traced", print_line=_quiet)
    said = [line for line in capsys.readouterr().out.splitlines() if "profiler" in line]
    assert said == [f"profiler trace of 2 steps: {tmp_path / 'traced' / 'profile'}"]
    (trace,) = (tmp_path / "traced" / "profile").rglob("perfetto_trace.json.gz")
    names = [event.get("name", "") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]
    assert any(re.search("PjitFunction|jit_", name) for name in names), "what the device was given is in it"

    plain, _ = execute(_config(), _setup(), tmp_path / "plain", print_line=_quiet)
    assert not (tmp_path / "plain" / "profile").exists()
    assert all(map(np.array_equal, jax.tree.leaves(traced.params), jax.tree.leaves(plain.params)))

    capsys.readouterr()
    execute(_config(profile_steps=100), _setup(), tmp_path / "short", print_line=_quiet)
    assert "profiler trace of 9 steps: " in capsys.readouterr().out, "it ends with a run that has fewer"


def _quiet(text):
    pass


def _lines(folder: pathlib.Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "patches_per_s"} for line in lines]


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGUSR1])
def test_resume_is_bitwise(tmp_path, asked):
    whole, _ = execute(_config(), _setup(), tmp_path / "whole", print_line=_quiet)

    def interrupted(start_step):
        for step, batch in enumerate(toy_batches(start_step), start_step):
            if step == 7:  # in the middle of the third epoch
                os.kill(os.getpid(), asked)
            yield batch

    folder = tmp_path / "parts"
    half, ending = execute(_config(), _setup(batches=interrupted), folder, print_line=_quiet)
    assert (ending, int(half.step)) == (Ending.STOPPED, 8)
    again, ending = execute(_config(), _setup(), folder, print_line=_quiet)
    assert ending is Ending.FINISHED
    assert combined_fingerprint(again) == combined_fingerprint(whole)
    assert _lines(tmp_path / "whole")[-1] == _lines(folder)[-1]


def test_resume_after_a_kill_starts_at_the_last_checkpoint_and_ends_the_same(tmp_path):
    whole, _ = execute(_config(), _setup(), tmp_path / "whole", print_line=_quiet)

    def killed(start_step):
        for step, batch in enumerate(toy_batches(start_step), start_step):
            if step == 7:
                raise KeyboardInterrupt  # as sudden as a kill: nothing is saved
            yield batch

    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        execute(_config(), _setup(batches=killed), folder, print_line=_quiet)
    assert committed_steps(folder / "checkpoints")[-1] == 6
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "kind": "train", "loss": 1.0}\n{"step": 8, "ki')
    said = []
    again, _ = execute(_config(), _setup(), folder, print_line=said.append)
    assert any("at step 6" in line for line in said)
    assert combined_fingerprint(again) == combined_fingerprint(whole)
    steps = [line["step"] for line in _lines(folder) if line["kind"] == "train"]
    assert steps == sorted(set(steps))


def test_two_runs_are_the_same_and_another_seed_is_not(tmp_path):
    prints = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        config = _config()
        config.seed = seed
        state, _ = execute(config, _setup(), tmp_path / name, print_line=_quiet)
        prints.append(combined_fingerprint(state))
    assert prints[0] == prints[1] != prints[2]


def test_best_checkpoint_is_that_of_the_lowest_validation(tmp_path):
    folder = tmp_path / "run"
    execute(_config(epochs=6), _setup(), folder, print_line=_quiet)
    validation = [line for line in _lines(folder) if line["kind"] == "validation"]
    best = min(validation, key=lambda line: line["loss"])
    assert committed_steps(folder / "best") == [best["step"]]


def test_patience_stops_a_run_that_no_longer_improves(tmp_path):
    config = _config(epochs=50, patience_epochs=2)
    config.optim.learning_rate = 0.0
    state, ending = execute(config, _setup(), tmp_path / "run", print_line=_quiet)
    assert (ending, int(state.step)) == (Ending.PATIENCE, 9)
    _, ending = execute(config, _setup(), tmp_path / "run", print_line=_quiet)
    assert ending is Ending.PATIENCE


def test_non_finite_steps_in_a_row_stop_the_run_with_the_samples(tmp_path):
    def poisoned(start_step):
        for step, batch in enumerate(toy_batches(start_step), start_step):
            if step >= 4:
                batch["x"][0] = np.nan
            yield batch

    folder = tmp_path / "run"
    with pytest.raises(NonFiniteError, match=r"4 non-finite steps in a row .*samples 400, 401"):
        execute(_config(max_bad_steps=4, epochs=20), _setup(batches=poisoned), folder, print_line=_quiet)
    # The state that was saved is the last good one, and the run goes on from it with sound data.
    state, _ = execute(_config(max_bad_steps=4, epochs=20), _setup(), folder, print_line=_quiet)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))
    assert int(state.bad_total) == 4


def test_one_bad_step_is_reported_and_survived(tmp_path, capsys):
    def poisoned(start_step):
        for step, batch in enumerate(toy_batches(start_step), start_step):
            if step == 4:
                batch["x"][0] = np.inf
            yield batch

    state, _ = execute(_config(), _setup(batches=poisoned), tmp_path / "run", print_line=_quiet)
    assert int(state.bad_total) == 1
    assert (
        "non-finite loss, gradient or new state at step 5: state kept as it was; samples 400" in capsys.readouterr().out
    )


def test_a_loss_spike_is_told_with_its_samples(tmp_path, capsys):
    def spiked(start_step):
        for step, batch in enumerate(toy_batches(start_step), start_step):
            if step == 7:
                batch["x"] *= 100.0
            yield batch

    for factor, told in ((5.0, True), (0.0, False)):
        execute(_config(spike_factor=factor), _setup(batches=spiked), tmp_path / str(factor), print_line=_quiet)
        said = capsys.readouterr().out
        ids = ", ".join(str(700 + row) for row in range(8))
        assert (re.search(rf"loss spike at step 8: \S+, usually \S+; samples {ids}", said) is not None) == told
        assert said.count("loss spike") == told


def test_a_run_goes_on_on_other_devices_with_the_same_losses(tmp_path):
    """Equal to rounding, not to the bit: sums are added up in another order."""
    whole, _ = execute(_config(log_every_steps=1), _setup(), tmp_path / "whole", print_line=_quiet)
    folder = tmp_path / "parts"

    def interrupted(start_step):
        for step, batch in enumerate(toy_batches(start_step), start_step):
            if step == 4:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield batch

    execute(_config(log_every_steps=1), _setup(batches=interrupted), folder, print_line=_quiet)
    config = _config(log_every_steps=1)
    config.mesh.fsdp = 4
    assert check_run_folder(config, folder, allow_change=True)
    again, _ = execute(config, _setup(), folder, print_line=_quiet)
    assert int(again.step) == int(whole.step)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), again.params, whole.params)
    for ours, theirs in zip(_lines(folder), _lines(tmp_path / "whole"), strict=True):
        assert ours["step"] == theirs["step"]
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)


def test_the_step_compiles_once(tmp_path, caplog):
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        execute(_config(), _setup(), tmp_path / "run", print_line=_quiet)
    compiled = [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
    assert sum("with_shardings" in line for line in compiled) == 1


def test_a_run_of_another_configuration_is_refused_with_the_difference(tmp_path):
    folder = tmp_path / "run"
    execute(_config(epochs=1), _setup(), folder, print_line=_quiet)
    assert check_run_folder(_config(epochs=1), folder)
    with pytest.raises(ResumeError, match=r"train\.epochs: 1 -> 2\. Resume refused"):
        check_run_folder(_config(epochs=2), folder)
    assert check_run_folder(_config(epochs=2), folder, allow_change=True)


def test_weights_from_elsewhere_are_all_accounted_for(tmp_path):
    given = {"a": np.full((4, 3), 2.0, np.float32)}
    said = []
    config = _config(epochs=1)
    config.optim.learning_rate = 0.0
    setup = _setup(initial=[("elsewhere", given, {})])
    state, _ = execute(config, setup, tmp_path / "run", print_line=said.append)
    np.testing.assert_array_equal(state.params["a"], given["a"])
    assert any("from elsewhere: 1 of 1 leaves, 12 of 12 values (100.00 %)" in line for line in said)
    with pytest.raises(CoverageError, match=r"params/a: \(2, 3\) where \(4, 3\) is needed"):
        execute(
            config, _setup(initial=[("elsewhere", {"a": given["a"][:2]}, {})]), tmp_path / "other", print_line=_quiet
        )
