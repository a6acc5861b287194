"""A disk that takes no more: every command ends in one line that names the file, and leaves nothing half-written."""

import contextlib
import errno
import os
import random
import re
import resource
import subprocess

import jax
import numpy as np
import pytest
from labelled_toy import write_patches
from test_predict import ARCHITECTURE, RECORD
from tiny_runs import ROOT, lsmfm, make_store, pretraining

from lsmfm_jax.cli import main
from lsmfm_jax.files import TEMPORARY, WriteError, replace_file, replace_text, replacing, replacing_folder
from lsmfm_jax.tasks.finetuning import Network, backbone_of, init_linear
from lsmfm_jax.train.weights import write_weights

SEED = int(os.environ.get("LSMFM_SOAK_SEED", "0"))


@contextlib.contextmanager
def no_more_than(size):
    """No file may grow beyond so many bytes: the system refuses the write itself, in native code and threads too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Patches, a store of them, and a run that predicts."""
    folder = tmp_path_factory.mktemp("made")
    write_patches(folder / "patches")
    source = ["--layout", "flat", "--root", str(folder / "patches")]
    assert main(["data", "ingest", *source, "--out", str(folder / "store")]) == 0
    network = Network(backbone_of(ARCHITECTURE))
    params, stats = jax.jit(lambda key: network.init(key, (16, 16, 16)))(jax.random.key(0))
    write_weights(
        folder / "run",
        record={**RECORD, "task": "segment", "head": {"kind": "dense", "outputs": 1}},
        params={"backbone": params, "head": init_linear(jax.random.key(1), 6, 1)},
        batch_stats={"backbone": stats},
    )
    (folder / "run" / "config.json").write_text('{"task": "segment", "seed": 0, "model": {"name": "unet"}}')
    (folder / "run" / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": 1.0}\n{"step": 2, "ki')
    plain = folder / "plain.safetensors"
    assert main(["convert", "export", str(folder / "run"), "--out", str(plain)]) == 0
    masks = folder / "masks"
    masks.mkdir()
    for label in (folder / "patches").glob("*_label.nii.gz"):
        (masks / label.name.replace("_label", "_pred")).write_bytes(label.read_bytes())
    return folder


COMMANDS = {
    "phantom": lambda made, out: ["data", "phantom", "--out", out / "p", "--count", "2", "--size", "16,16,16"],
    "ingest": lambda made, out: ["data", "ingest", "--layout", "flat", "--root", made / "patches", "--out", out / "s"],
    "info": lambda made, out: ["data", "info", made / "store", "--png", out / "sheet.png"],
    "evaluate": lambda made, out: [
        *("evaluate", "--pred", made / "masks", "--label", made / "patches", "--out", out / "scores.csv")
    ],
    "export": lambda made, out: ["convert", "export", made / "run", "--out", out / "network.pt"],
    "import": lambda made, out: ["convert", "import", made / "plain.safetensors", "--out", out / "imported"],
    "report": lambda made, out: ["report", out / "run"],
    "predict": lambda made, out: ["predict", "--checkpoint", made / "run", made / "patches", "--out", out / "results"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line_and_nothing_is_left_half_written(made, tmp_path, capsys, command):
    if command == "report":
        (tmp_path / "run").mkdir()
        for file in (made / "run").glob("*.json*"):
            (tmp_path / "run" / file.name).write_bytes(file.read_bytes())
    arguments = [str(part) for part in COMMANDS[command](made, tmp_path)]
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    chance = random.Random(f"{command} {SEED}")
    for limit in (0, chance.randrange(20, 300)):
        capsys.readouterr()
        with no_more_than(limit):
            code = main(arguments)
        err = capsys.readouterr().err
        assert code == 2, err
        line = err.strip().splitlines()[-1]
        assert (
            line.startswith("lsmfm: ") and str(tmp_path) in line and re.search("(could not|cannot) be written", line)
        ), err
        assert "Traceback" not in err
        halves = [path for path in tmp_path.rglob("*") if path.name.endswith(TEMPORARY) or "orbax" in path.name]
        assert halves == []
        if command in ("info", "evaluate", "export", "import", "report"):
            assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert main([*arguments, *(["--overwrite"] if command == "predict" else [])]) == 0, capsys.readouterr().err


def test_what_was_there_stays_when_the_new_file_does_not_fit(tmp_path):
    path = tmp_path / "file"
    chance = random.Random(SEED)
    replace_file(path, b"old")
    for size in (1, chance.randrange(2, 5000), 5000):
        with no_more_than(size - 1), pytest.raises(WriteError, match=str(path)):
            replace_file(path, bytes(size))
        assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_called_by_its_name(tmp_path):
    with pytest.raises(WriteError, match="the disk is full: make room") as caught, replacing(tmp_path / "x") as path:
        path.write_bytes(b"half")
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
    with pytest.raises(WriteError, match="the disk is full"), replacing_folder(tmp_path / "folder") as folder:
        np.save(folder / "a.npy", np.zeros(3))
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_put_in_place_whole_and_never_over_files(tmp_path):
    with replacing_folder(tmp_path / "new") as folder:
        replace_text(folder / "a", "b")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "a").read_text() == "b"
    with pytest.raises(WriteError, match="new: could not be written"), replacing_folder(tmp_path / "new") as folder:
        replace_text(folder / "a", "c")
    assert (tmp_path / "new" / "a").read_text() == "b" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("reason", ["a folder", "below a file", "no permission"])
def test_a_path_that_cannot_be_written_is_one_line(tmp_path, reason):
    target = tmp_path / "x"
    if reason == "a folder":
        target.mkdir()
    elif reason == "below a file":
        target.write_text("a file")
        target = target / "y"
    elif os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(WriteError, match=str(target)):
        replace_file(target, b"x")


@pytest.mark.slow
def test_a_disk_that_fills_up_while_training_is_told_without_tracebacks(tmp_path):
    """Each tensor of a save that fails has a thread, and each printed a traceback."""
    store = make_store(tmp_path)
    command, environment = lsmfm(*pretraining(store, tmp_path / "run", epochs=1, text__enabled=False))
    limit = 60 * 2**10  # bytes: records are written, states are not

    def less_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(command, env=environment, cwd=ROOT, preexec_fn=less_room, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert re.search(r"lsmfm: checkpoint at step \d+ could not be written to .*run", done.stderr)
