"""An experiment with a stand-in for its cells, in a process of its own: `experiment_process.py WORKDIR DATA [FAIL]`.

Each cell writes a line to `started.txt`, takes a moment, and marks itself. One whose key holds FAIL ends in an error.
"""

import pathlib
import sys
import time

from lsmfm_jax.experiment.cells import Place
from lsmfm_jax.experiment.command import run_experiment
from lsmfm_jax.experiment.commands import CommandFailed
from lsmfm_jax.experiment.declaration import BASELINES, Arm, DataType, Experiment, Study
from lsmfm_jax.experiment.grid import DONE, FAILED, Cell
from lsmfm_jax.experiment.splits import read_sides, split_path
from lsmfm_jax.files import replace_json

METRICS = ("dice", "iou", "panoptic_quality", "detection_f1", "cl_dice", "total_dice_paper", "count_dice_paper")
ARMS = (
    Arm("scratch", "segment_unet:tiny"),
    Arm("other", "segment_unet:tiny", against="scratch"),
    Arm("thresholds", BASELINES, against="scratch"),
)


def declared(data: pathlib.Path, *, arms: tuple[Arm, ...] = ARMS, sizes: tuple[int, ...] = (3, 4)) -> Experiment:
    """Two seeds of three folds on patches of `dense` and `sparse`."""
    types = (DataType("dense", "dense"), DataType("sparse", "sparse"))
    study = Study("segment", types, arms, sizes=sizes)
    return Experiment("toy", (study,), folder=str(data), seeds=(1, 2), test_patches=1)


def score(cell: Cell, patch: str, metric: str) -> float:
    """A figure that depends on everything it may depend on."""
    number = int(patch.split("_patch_")[1][:3])
    arm = {"scratch": 0.0, "other": 0.1, "thresholds": -0.2}[cell.arm]
    return 0.4 + arm + 0.01 * number + 0.02 * cell.seed + 0.003 * cell.size + 0.1 * METRICS.index(metric) / 7


def stand_in(place: Place, cell: Cell, *, fail: str = "", takes_s: float = 0.0) -> None:
    """What `run_cell` does, without a network."""
    with (place.workdir / "started.txt").open("a") as file:
        file.write(cell.key + "\n")
    time.sleep(takes_s)
    if fail and fail in cell.key:
        raise CommandFailed("lsmfm: the disk is full")
    sides = read_sides(split_path(place.workdir, cell.task, cell.group, cell.fold), cell.size)
    (place.workdir / cell.key / FAILED).unlink(missing_ok=True)
    scores = {patch: {metric: score(cell, patch, metric) for metric in METRICS} for patch in sides.test}
    method = "otsu" if cell.arm == "thresholds" else "prediction"
    replace_json(
        place.workdir / cell.key / DONE, {"cell": cell._asdict(), "seconds": 36.0, "methods": {method: scores}}
    )


def main() -> int:
    """Runs it; for the command line."""
    workdir, data, *fail = sys.argv[1:]

    def run(place: Place, cell: Cell) -> None:
        stand_in(place, cell, fail=fail[0] if fail else "", takes_s=0.2)

    return run_experiment(declared(pathlib.Path(data)), pathlib.Path(workdir), jobs=2, run=run)


if __name__ == "__main__":
    raise SystemExit(main())
