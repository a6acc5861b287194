"""`lsmfm verify` on folders that no run of ours left so: it ends, with a line for each thing that is wrong."""

import json
import os
import random
import shutil
import signal

import numpy as np
import pytest

from lsmfm_jax.cli import main
from lsmfm_jax.train.checkpoint import CheckpointError
from lsmfm_jax.train.weights import read_weights, write_weights

SEED = int(os.environ.get("LSMFM_SOAK_SEED", "0"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    leaf = {"backbone": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4)}}
    write_weights(folder, record={"task": "backbone", "architecture": {"name": "unet"}}, params=leaf, batch_stats={})
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture(autouse=True)
def bounded():
    """No verification takes more than a minute: reading a pipe would take for ever."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def late(number, frame):
        raise TimeoutError("verify does not end")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _verified(path, capsys):
    capsys.readouterr()
    code = main(["verify", str(path)])
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, said.out.splitlines(), said.err


def test_a_whole_folder_is_whole(run, capsys):
    assert _verified(run, capsys) == (0, [f"{run}: whole"], "")


@pytest.mark.parametrize("left", ["nothing", "no steps", "best only empty"])
def test_a_run_without_a_checkpoint_is_not_whole(run, capsys, left):
    shutil.rmtree(run / "best")
    if left != "nothing":
        (run / ("checkpoints" if left == "no steps" else "best") / "seals").mkdir(parents=True)
        (run / "config.json").write_text("{}")
    code, lines, _ = _verified(run, capsys)
    assert code == 1 and any(f"{run}: no checkpoint there" in line for line in lines)


def _spoil(victim, kind):
    """Puts something odd where a file was."""
    victim.unlink()
    if kind == "pipe":
        os.mkfifo(victim)
    elif kind == "circle":
        other = victim.with_name("other")
        victim.symlink_to(other)
        other.symlink_to(victim)
    elif kind == "folder":
        (victim / "inside").mkdir(parents=True)
    elif kind == "empty":
        victim.touch()
    elif kind == "junk":
        victim.write_bytes(random.Random(SEED).randbytes(300))
    elif kind == "nested":
        victim.write_text("[" * 100_000)
    elif kind == "other JSON":
        victim.write_text(json.dumps(random.Random(SEED).choice([[1, 2], "text", None, {"files": 3}, {"a": {"b": 1}}])))
    else:
        victim.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["pipe", "circle", "folder", "empty", "junk", "nested", "other JSON", "device"])
def test_odd_files_anywhere_are_named_in_one_line_each(run, tmp_path, capsys, kind):
    files = sorted(file for file in run.rglob("*") if file.is_file())
    for file in random.Random(f"{kind} {SEED}").sample(files, 5):
        copy = shutil.copytree(run, tmp_path / "copy")
        victim = copy / file.relative_to(run)
        _spoil(victim, kind)
        code, lines, err = _verified(copy, capsys)
        assert code == 1 and err == "", (victim, lines, err)
        assert any(victim.name in line for line in lines), (victim, lines)
        assert lines[-1].endswith(" damaged")
        # Its weights are refused as well, or are whole beside it.
        try:
            weights = read_weights(copy)
        except CheckpointError as error:
            assert str(copy) in str(error)
        else:
            np.testing.assert_array_equal(weights.params["backbone"]["kernel"], np.arange(12.0).reshape(3, 4))
        shutil.rmtree(copy)


def test_odd_things_in_place_of_folders_and_beside_them(run, capsys):
    os.mkfifo(run / "best" / "0" / "extra")
    (run / "best" / "²").mkdir()
    (run / "best" / "007").mkdir()
    (run / "checkpoints").write_text("a file")
    (run / "best" / "0" / "two\nlines\x1b[31m").touch()
    code, lines, _ = _verified(run, capsys)
    assert code == 1
    for word in ("extra: neither a file nor a folder", "checkpoints: not a folder of checkpoints"):
        assert any(word in line for line in lines), lines
    (run / "best" / "0" / "extra").unlink()
    code, lines, _ = _verified(run, capsys)
    assert any("two\\nlines\\x1b[31m: was not written with the checkpoint" in line for line in lines)


@pytest.mark.parametrize("kind", ["pipe", "circle", "folder", "empty", "junk", "nested", "other JSON", "device"])
def test_odd_files_in_a_store(tmp_path, capsys, kind):
    from labelled_toy import write_patches

    source = ["data", "ingest", "--layout", "flat", "--root", str(write_patches(tmp_path / "p", count=2))]
    assert main([*source, "--out", str(tmp_path / "s")]) == 0
    files = sorted(file for file in (tmp_path / "s").rglob("*") if file.is_file())
    for file in files:
        copy = shutil.copytree(tmp_path / "s", tmp_path / "copy")
        _spoil(copy / file.relative_to(tmp_path / "s"), kind)
        code, lines, err = _verified(copy, capsys)
        assert code in (1, 2) and (len(lines) > 1 or len(err.strip().splitlines()) == 1), (file, lines, err)
        assert file.name in " ".join(lines) + err or str(copy) in " ".join(lines) + err
        shutil.rmtree(copy)


@pytest.mark.parametrize("path", ["missing", "file", "pipe", "empty folder", "circle"])
def test_what_is_no_run_and_no_store_is_refused_in_one_line(tmp_path, capsys, path):
    target = tmp_path / "x"
    if path == "file":
        target.write_text("x")
    elif path == "pipe":
        os.mkfifo(target)
    elif path == "empty folder":
        target.mkdir()
    elif path == "circle":
        target.symlink_to(target)
    code, lines, err = _verified(target, capsys)
    assert code == 2 and lines == [] and len(err.strip().splitlines()) == 1 and str(target) in err
