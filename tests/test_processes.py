"""Two processes of two devices each, as a launch script starts them: one run, the losses of one process."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_runs import ROOT, final_state, finish, free_port, make_store, metrics, pretraining, start

from lsmfm_jax.train.checkpoint_checks import damaged_files
from lsmfm_jax.verify import verify

EPOCHS = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data"))


def _start_two(arguments, cache):
    coordinator = f"127.0.0.1:{free_port()}"
    common = {"LSMFM_COORDINATOR": coordinator, "LSMFM_PROCESSES": 2, "XDG_CACHE_HOME": cache}
    return [start(*arguments, devices=2, LSMFM_PROCESS=i, **common) for i in (0, 1)]


def _wait_for_step(workdir, step, processes):
    while not (workdir / "metrics.jsonl").exists() or step not in metrics(workdir, "train"):
        for process in processes:
            assert process.poll() is None, finish(process)
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.kill
def test_two_processes_stop_together_go_on_and_get_the_losses_of_one(store, tmp_path):
    cache = tmp_path / "cache"
    one = finish(start(*pretraining(store, tmp_path / "one", epochs=EPOCHS), devices=4, XDG_CACHE_HOME=cache))
    arguments = pretraining(store, tmp_path / "two", epochs=EPOCHS)

    pair = _start_two(arguments, cache)
    _wait_for_step(tmp_path / "two", 1, pair)
    pair[1].send_signal(signal.SIGTERM)
    first, second = [finish(process, expect=75) for process in pair]
    assert "another process: stopping at step" in first
    assert "step" not in second and "parameters on" not in second, "only the first process speaks"
    stopped_at = max(metrics(tmp_path / "two", "train"))
    assert stopped_at < 2 * EPOCHS

    first, second = [finish(process) for process in _start_two(arguments, cache)]
    assert f"at step {stopped_at}" in first and "report:" in first and "report:" not in second
    assert final_state(first)[1] == final_state(one)[1] == 2 * EPOCHS
    for kind in ("train", "validation"):
        expected, found = metrics(tmp_path / "one", kind), metrics(tmp_path / "two", kind)
        assert expected.keys() == found.keys()
        for step, line in expected.items():
            np.testing.assert_allclose(found[step]["loss"], line["loss"], rtol=1e-5, err_msg=f"{kind} {step}")
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 2 * EPOCHS + 2
    assert len(list((tmp_path / "two" / "pictures").glob("*.png"))) == 1
    assert verify(tmp_path / "two") == []


@pytest.mark.slow
def test_the_latest_and_the_best_are_saved_at_the_same_time(tmp_path):
    """They met at barriers of one name, and waited there until a timeout, after which the run failed."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "tests/checkpoint_process.py", f"127.0.0.1:{free_port()}", "2"]
    pipe = subprocess.PIPE
    pair = [
        subprocess.Popen(
            [*command, str(i), str(tmp_path), "10"], cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
        )
        for i in (0, 1)
    ]
    try:
        assert all("saved 10" in finish(process, timeout_s=200) for process in pair)
    finally:
        # The one that waits for the other takes no notice of a gentler signal.
        for process in pair:
            process.kill()
    for name in ("checkpoints", "best"):
        assert {path.name for path in (tmp_path / name).iterdir()} == {"9", "10", "seals"}
        assert [damaged_files(tmp_path / name, step) for step in (9, 10)] == [[], []]


def test_a_launch_without_the_number_of_its_processes_says_which_is_missing(tmp_path):
    said = finish(
        start(
            "pretrain",
            "--config",
            "configs/pretrain_unet.py:tiny",
            "--workdir",
            tmp_path / "x",
            LSMFM_COORDINATOR="127.0.0.1:1",
            LSMFM_PROCESSES=2,
        ),
        expect=2,
    )
    assert "LSMFM_COORDINATOR is set, but LSMFM_PROCESSES is '2' and LSMFM_PROCESS is ''" in said
    assert "Traceback" not in said
