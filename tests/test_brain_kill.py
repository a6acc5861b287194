"""Whole-volume prediction that is killed: resumed, it ends bit for bit where the undisturbed one does."""

import contextlib
import os
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from brain_runs import blobs, written

from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.merge import merge
from lsmfm_jax.predict.output import INSTANCES, MASK, PROBABILITY

ROOT = pathlib.Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("LSMFM_SOAK_KILLS", "3"))
SEED = int(os.environ.get("LSMFM_SOAK_SEED", "0"))

pytestmark = [pytest.mark.slow, pytest.mark.kill]


def start(volume, out, *, part=1, parts=1, pause_s=0.0):
    command = [sys.executable, ROOT / "tests" / "brain_process.py", volume, out, part, parts, pause_s]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    pipe = subprocess.PIPE
    return subprocess.Popen(list(map(str, command)), env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(process):
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, out + err
    return out


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A volume, with a blank quarter, and its result."""
    folder = tmp_path_factory.mktemp("undisturbed")
    array = blobs((96, 64, 64), seed=7)
    array[:40, :, :32] = 0
    np.save(folder / "a.npy", array)
    finish(start(folder / "a.npy", folder / "r.ome.zarr"))
    return folder / "a.npy", folder / "r.ome.zarr"


def files_of(root):
    """What a result holds, by file; not when it was made."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("c/*/*/*"))
        if "lock" not in path.name
    }


def test_killed_again_and_again_it_ends_where_the_undisturbed_one_does(undisturbed, tmp_path):
    volume, reference = undisturbed
    chance, out, killed = random.Random(SEED), tmp_path / "r.ome.zarr", 0
    for number in range(KILLS):
        process = start(volume, out, pause_s=0.01)
        done = out / "prediction" / "done"
        before = len(list(done.glob("*.json"))) if done.exists() else 0
        # Alternately while a shard is being written, and anywhere.
        while number % 2 == 0 and process.poll() is None:
            if (done.exists() and len(list(done.glob("*.json"))) > before) or list(out.rglob("*lock*")):
                break
            time.sleep(0.0005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, 0.05 if number % 2 == 0 else 6))
        killed += process.poll() is None
        process.kill()
        process.communicate()
    finish(start(volume, out))
    assert killed
    assert files_of(out) == files_of(reference)
    for image in (PROBABILITY, MASK):
        assert written(out, image).tobytes() == written(reference, image).tobytes()
    assert 0.05 < written(out, MASK).mean() < 0.95
    assert not list(out.rglob("*lock*"))


def test_four_processes_of_which_one_dies_make_the_same_result(undisturbed, tmp_path):
    volume, reference = undisturbed
    out = tmp_path / "r.ome.zarr"
    processes = [start(volume, out, part=part, parts=4, pause_s=0.02 if part == 2 else 0.0) for part in range(1, 5)]
    done = out / "prediction" / "done"
    while not list(done.glob("*.json")) and processes[1].poll() is None:
        time.sleep(0.002)
    assert processes[1].poll() is None
    processes[1].kill()
    processes[1].communicate()
    for part in (0, 2, 3):
        finish(processes[part])
    with pytest.raises(PredictionError, match=r"of 12 shards are not done.*--part I/N that did not end"):
        merge(out, print_line=lambda line: None)
    finish(start(volume, out, part=2, parts=4))
    for root in (out, reference):
        merge(root, print_line=lambda line: None)
    found, expected = written(out, PROBABILITY), written(reference, PROBABILITY)
    # Windows come in other batches in four parts than in one.
    assert np.abs(found.astype(int) - expected).max() <= 1 and (found == expected).mean() > 0.999
    assert written(out, INSTANCES).max() == written(reference, INSTANCES).max() > 1
    table = [(root / "objects.csv").read_text().splitlines() for root in (out, reference)]
    assert len(table[0]) == len(table[1]) == written(out, INSTANCES).max() + 1
    assert "base64" in (out / "report.html").read_text()
