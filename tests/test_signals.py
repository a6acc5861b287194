"""Ctrl-C and a scheduler's signals at several moments of real commands: one line, the right code, no process left."""

import contextlib
import os
import pathlib
import signal
import subprocess
import time

import pytest
from tiny_runs import ROOT, lsmfm, make_store, pretraining

pytestmark = [pytest.mark.slow, pytest.mark.kill]
DONE = ("saving", "the same command continues this run; exit code 75")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def _start(*arguments, **variables):
    """In a session of its own, so that a signal can be sent to all of its processes, as a terminal does."""
    command, environment = lsmfm(*arguments, **variables)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def _in_session(session):
    """Processes of a session that are still there, by number."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(after_name[3]) == session and after_name[0] != "Z":
                found.append(int(entry.name))
    return found


def _signalled(process, number, sign, *, expect):
    """Sends the signal to the session once the sign is there, and gives what was printed on stdout and stderr."""
    until = time.monotonic() + 150
    while not sign():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "the sign does not come"
        time.sleep(0.005)
    os.killpg(process.pid, number)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == expect, (process.returncode, out[-2000:], err[-3000:])
    for _ in range(100):
        if not _in_session(process.pid):
            break
        time.sleep(0.05)
    assert _in_session(process.pid) == [], "processes are left"
    assert "Traceback" not in out + err and "Warning" not in err, err
    return out, err, time.monotonic() - began


def _after(seconds):
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until


MOMENTS = {
    "imports": lambda folder: _after(0.6),
    # The last of the records; the step is compiled next.
    "compiling": lambda folder: (folder / "seal.json").exists,
    "steps": lambda folder: lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_ends_a_run_in_one_line(store, cache, tmp_path, moment):
    folder = tmp_path / "run"
    # Workers at the moment when there are any: they too get the signal of the terminal.
    workers = 2 if moment == "steps" else 0
    where = cache if moment == "steps" else tmp_path / "cache"
    process = _start(*pretraining(store, folder, epochs=300, data__workers=workers), XDG_CACHE_HOME=where)
    _, err, seconds = _signalled(process, signal.SIGINT, MOMENTS[moment](folder), expect=130)
    assert err.strip().splitlines() == ["lsmfm: stopped by Ctrl-C; the same command continues from the last checkpoint"]
    assert seconds < 5
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(("moment", "number"), zip(MOMENTS, ("SIGTERM", "SIGUSR1", "SIGTERM"), strict=True))
def test_a_scheduler_ends_a_run_with_the_code_that_has_it_started_again(store, cache, tmp_path, moment, number):
    folder = tmp_path / "run"
    workers = 2 if moment == "steps" else 0
    where = cache if moment == "steps" else tmp_path / "cache"
    process = _start(*pretraining(store, folder, epochs=300, data__workers=workers), XDG_CACHE_HOME=where)
    out, err, _ = _signalled(process, signal.Signals[number], MOMENTS[moment](folder), expect=75)
    if moment == "steps":
        assert f"{number}: stopping at step" in out and out.strip().endswith(DONE[1])
        assert any(entry.name.isdigit() for entry in (folder / "checkpoints").iterdir())
    else:
        assert err.strip() == f"lsmfm: {number} before the first step; {DONE[1]}"


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_other_commands_end_in_one_line_and_leave_whole_files(tmp_path, number, code):
    folder = tmp_path / "p"
    process = _start("data", "phantom", "--out", folder, "--count", 500, "--size", "64,64,64")
    sign = lambda: len(list(folder.rglob("*.nii.gz"))) > 3  # noqa: E731
    _, err, seconds = _signalled(process, signal.Signals[number], sign, expect=code)
    assert err.strip().startswith("lsmfm: stopped by ") and len(err.strip().splitlines()) == 1 and seconds < 5
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_signal_that_was_ignored_from_the_start_stays_ignored(tmp_path):
    """Scripts start background processes with Ctrl-C ignored, and stop them by SIGTERM."""
    command, environment = lsmfm("data", "phantom", "--out", tmp_path / "p", "--count", 3, "--size", "32,32,32")
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


def test_a_second_process_on_a_run_folder_is_refused_by_name(store, cache, tmp_path):
    folder = tmp_path / "run"
    arguments = pretraining(store, folder, epochs=300)
    first = _start(*arguments, XDG_CACHE_HOME=cache)
    try:
        until = time.monotonic() + 150
        while not (folder / ".lock").exists() or not (folder / ".lock").read_text():
            assert time.monotonic() < until and first.poll() is None
            time.sleep(0.02)
        second = _start(*arguments, XDG_CACHE_HOME=cache)
        _, err = second.communicate(timeout=100)
        assert second.returncode == 2
        line = err.strip().splitlines()[-1]
        assert f"{folder}: another process is writing there: training, process {first.pid} on " in line
        assert "since 20" in line and "Traceback" not in err
    finally:
        first.kill()
        first.communicate()
    # The lock of a process that was killed is no lock.
    third = _start(*pretraining(store, folder, epochs=300), XDG_CACHE_HOME=cache)
    _signalled(third, signal.SIGTERM, lambda: (folder / "metrics.jsonl").exists(), expect=75)
