"""An experiment goes on after a kill, runs no cell twice, lists what failed and tries it again; one real cell."""

import collections
import contextlib
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from experiment_process import declared, stand_in
from labelled_toy import write_patch
from quick_compiling import quick_flags

from lsmfm_jax.cli import main
from lsmfm_jax.experiment.command import describe, run_experiment
from lsmfm_jax.experiment.grid import DONE, FAILED, expand
from lsmfm_jax.experiment.load import load_experiment
from lsmfm_jax.experiment.prepare import with_inputs
from lsmfm_jax.experiment.runner import projected_hours

ROOT = pathlib.Path(__file__).resolve().parent.parent
CELLS = 2 * 2 * 3 * (2 * 2 + 1)  # types x sizes x folds x (arms x seeds, and baselines)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """Twelve patches of two types, two of each of three volumes, and one more of each of a fourth and fifth."""
    folder = tmp_path_factory.mktemp("patches")
    for kind, balls in (("dense", 5), ("sparse", 2)):
        for number in range(8):
            write_patch(
                folder, f"{kind}_patch_{number:03d}_vol{number // 2:03d}_ch0", size=20, seed=number, balls=balls
            )
    return folder


def _marks(workdir):
    return {str(path.parent.relative_to(workdir)): path.stat().st_mtime_ns for path in workdir.rglob(DONE)}


def _started(workdir):
    return collections.Counter((workdir / "started.txt").read_text().split())


def test_a_killed_experiment_goes_on_and_runs_no_finished_cell_again(patches, tmp_path):
    work = tmp_path / "w"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    command = [sys.executable, str(ROOT / "tests" / "experiment_process.py"), str(work), str(patches)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while len(_marks(work)) < 4 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[1]
    before = _marks(work)
    assert 4 <= len(before) < CELLS, said
    begun = _started(work)

    lines: list[str] = []
    experiment = declared(patches)
    assert run_experiment(experiment, work, jobs=2, run=stand_in, print_line=lines.append) == 0
    after, started = _marks(work), _started(work)
    assert len(after) == CELLS == len(started) and {key: after[key] for key in before} == before
    assert all(started[key] == 1 for key in before), "what was done is not run again"
    assert all(started[key] <= 2 for key in begun.keys() - before.keys()) and max(started.values()) <= 2
    assert sum(line.startswith("[") for line in lines) == CELLS - len(before)
    assert run_experiment(experiment, work, jobs=2, run=stand_in, print_line=lines.append) == 0
    assert _started(work) == started and _marks(work) == after


def test_failed_cells_are_listed_and_tried_again_and_block_what_needs_them(patches, tmp_path):
    work, lines = tmp_path / "w", []
    experiment = declared(patches, sizes=(3,))
    fail = functools.partial(stand_in, fail="sparse/scratch/size3/fold2/seed1")
    assert run_experiment(experiment, work, jobs=3, run=fail, print_line=lines.append) == 1
    key = "cells/segment/sparse/scratch/size3/fold2/seed1"
    blocked = "cells/segment/sparse/thresholds/size3/fold2/seed1"
    assert lines[-2] == "1 of 30 cells failed, 1 that need them were not started; the same command tries them again:"
    assert lines[-1].startswith(f"  {key} failed: lsmfm: the disk is full (all of it: ")
    assert json.loads((work / key / FAILED).read_text())["error"] == "lsmfm: the disk is full"
    assert len(_marks(work)) == 28 and blocked not in _started(work)
    page = (work / "experiment.html").read_text()
    assert "lsmfm: the disk is full" in page and "28 of 30 cells done; not complete" in page
    assert 'http-equiv="refresh"' not in page

    assert run_experiment(experiment, work, jobs=1, run=stand_in, print_line=lines.append) == 0
    assert len(_marks(work)) == 30 and not list(work.rglob(FAILED))
    assert {key: count for key, count in _started(work).items() if count > 1} == {key: 2}


def test_hours_are_projected_from_cells_of_the_same_kind(patches, tmp_path):
    experiment, work = declared(patches, sizes=(3,)), tmp_path / "w"
    cells = expand(experiment)
    assert projected_hours(work, cells, jobs=1) is None
    fail = functools.partial(stand_in, fail="seed2")
    run_experiment(experiment, work, run=fail, print_line=lambda line: None)
    for path in work.rglob(DONE):
        record = json.loads(path.read_text())
        record["seconds"] = 3600.0 if record["cell"]["arm"] == "scratch" else 1800.0
        path.write_text(json.dumps(record))
    # Of the second seed six cells of either network are left.
    assert projected_hours(work, cells, jobs=2) == pytest.approx((6 * 1.0 + 6 * 0.5) / 2)
    assert "about 4.50 hours are left with --jobs 2" in describe(experiment, work, jobs=2)[-1]


def test_parts_of_an_array_run_each_cell_once(patches, tmp_path, capsys):
    (tmp_path / "toy.py").write_text(
        "import pathlib\nfrom experiment_process import declared\n\n"
        "def get_experiment(variant=''):\n    return declared(pathlib.Path(variant or 'none'))\n"
    )
    work = tmp_path / "w"
    arguments = ["experiment", str(tmp_path / "toy.py"), "--workdir", str(work), "--data", str(patches), "--jobs", "2"]
    assert main([*arguments, "--part", "1/4"]) == 2
    assert "is not prepared; run the command with --slurm N first" in capsys.readouterr().err
    assert main([*arguments, "--slurm", "4"]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --array=1-4\n" in script and f"# {CELLS} cells in 4 parts." in script
    line = script.splitlines()[-1]
    assert line == f'exec lsmfm {" ".join(arguments[:4])} --jobs 2 --data {patches} --part "$SLURM_ARRAY_TASK_ID/4"'
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0

    experiment = with_inputs(load_experiment(str(tmp_path / "toy.py")), data=patches, pretrained=[])
    sizes = []
    for number in (1, 2, 3, 4):
        before = len(_marks(work))
        assert run_experiment(experiment, work, part=(number, 4), run=stand_in, print_line=lambda line: None) == 0
        sizes.append(len(_marks(work)) - before)
    assert sum(sizes) == CELLS and max(sizes) - min(sizes) <= 3
    assert set(_started(work).values()) == {1} and not (work / "results.csv").exists()
    assert run_experiment(experiment, work, run=stand_in, print_line=lambda line: None) == 0
    assert set(_started(work).values()) == {1} and (work / "results.csv").exists()


def test_two_at_once_in_one_folder_are_refused(patches, tmp_path):
    from lsmfm_jax.locks import Locked, locked

    with locked(tmp_path / "w", use="experiment"), pytest.raises(Locked, match="another process is writing there"):
        run_experiment(declared(patches), tmp_path / "w", run=stand_in, print_line=lambda line: None)


OWN = """
from lsmfm_jax.experiment.declaration import BASELINES, Arm, DataType, Experiment, Study

SMALL = {
    "model.unet.channels": (4, 8), "model.unet.strides": (2,), "model.out_channels": 4, "data.patch_size": (16, 16, 16),
    "data.crops_per_patch": 2, "train.epochs": 1, "train.tensorboard": False, "train.pictures_every_epochs": 0,
    "train.pictures_count": 1, "voxel_classifier.enabled": False,
}
ARMS = (Arm("scratch", "segment_unet:tiny", SMALL), Arm("simple", BASELINES, against="scratch"))


def get_experiment(variant=""):
    return Experiment(
        "own", (Study("segment", (DataType("dense", "dense"),), ARMS, sizes=(3,)),), seeds=(1,), folds=2, test_patches=1
    )
"""


@pytest.mark.slow
def test_real_cells_are_killed_in_the_middle_and_finetuned_once(patches, tmp_path, capsys):
    """The command is killed while its first network trains; that one ends by itself, and is waited for."""
    (tmp_path / "own.py").write_text(OWN)
    work = tmp_path / "w"
    arguments = ["experiment", str(tmp_path / "own.py"), "--workdir", str(work), "--data", str(patches), "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick_flags()}
    command = [sys.executable, "-m", "lsmfm_jax.cli", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = work / "cells" / "segment" / "dense" / "scratch" / "size3" / "fold1" / "seed1"
    until = time.monotonic() + 300
    while not (first / "run" / "config.json").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert (first / "run" / "config.json").exists() and not _marks(work)

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(_marks(work)) == 4 and "[4/4]" in done.stdout
    log = (first / "log.txt").read_text()
    assert log.count("validation after epoch") == 1, "the orphan was waited for, and trained it alone"
    record = json.loads((first / DONE).read_text())
    (scores,) = record["methods"]["prediction"].values()
    assert scores.keys() >= {"dice", "iou", "panoptic_quality", "detection_f1", "cl_dice", "total_dice_paper"}
    simple = json.loads((work / str(first.relative_to(work)).replace("scratch", "simple") / DONE).read_text())
    assert {"otsu", "threshold", "threshold_counts", "pixel_classifier"} <= simple["methods"].keys()
    text = (work / "results.csv").read_text()
    assert "segment,dense,pixel_classifier,3,dice," in text and "segment,dense,scratch,3,cl_dice," in text

    capsys.readouterr()
    assert main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("4 cells, 4 done")
    with contextlib.suppress(FileNotFoundError):
        (patches / "dense_patch_000_vol000_ch0_label.nii.gz").rename(tmp_path / "away.nii.gz")
    try:
        assert main(arguments) == 2
        assert "have no _label file beside them" in capsys.readouterr().err
    finally:
        (tmp_path / "away.nii.gz").rename(patches / "dense_patch_000_vol000_ch0_label.nii.gz")
