"""The cells of an experiment: task x group x arm x size x fold x seed, and what they wait for."""

import pathlib
from typing import NamedTuple

from lsmfm_jax.experiment.declaration import BASELINES, Arm, Experiment, Study

DONE, FAILED = "done.json", "failed.json"


class Cell(NamedTuple):
    """One cell of the grid, or a pretrained run that cells wait for.

    Attributes:
        key: its folder below the workdir, and its name in all that is printed.
        task: `pretrain`, or the task of its study.
        group: type of data; of a pretrained run its name.
        arm: name of its arm.
        size: annotated patches.
        fold: from 1.
        seed: of the network.
        after: keys of cells that must be done before.
    """

    key: str
    task: str
    group: str = ""
    arm: str = ""
    size: int = 0
    fold: int = 0
    seed: int = 0
    after: tuple[str, ...] = ()

    @property
    def kind(self) -> tuple[str, str, int]:
        """Cells of one kind take about as long as each other."""
        return self.task, self.arm, self.size


def expand(experiment: Experiment) -> list[Cell]:
    """All cells, in the order in which they are started: pretraining, then fold by fold through all arms.

    Baselines are drawn from no seed and are fitted once, on the patches of the first seed's run; an outside tool is
    told no seed either. Arms of tools that are not at hand have no cells.
    """
    cells = [
        Cell(pretrained_key(one.name), "pretrain", group=one.name)
        for one in experiment.pretrained
        if one.recipe and not one.path
    ]
    made = {cell.key for cell in cells}
    for seed in experiment.seeds:
        for fold in range(1, experiment.folds + 1):
            for study in experiment.studies:
                for group in study.groups:
                    for size in study.sizes:
                        cells += [
                            _cell(study, arm, group, size, fold, seed, made)
                            for arm in study.arms
                            if _is_drawn(arm) or seed == experiment.seeds[0]
                            if not arm.tool or arm.tool in experiment.interpreters
                        ]
    return cells


def _is_drawn(arm: Arm) -> bool:
    """Whether an arm depends on the seed."""
    return arm.recipe != BASELINES and not arm.tool


def pretrained_key(name: str) -> str:
    """Where a pretrained run that the experiment makes lies."""
    return f"pretrained/{name}"


def cell_key(task: str, group: str, arm: str, size: int, fold: int, seed: int) -> str:
    """Where a cell lies."""
    return f"cells/{task}/{group}/{arm}/size{size}/fold{fold}/seed{seed}"


def _cell(study: Study, arm: Arm, group: str, size: int, fold: int, seed: int, made: set[str]) -> Cell:
    after: tuple[str, ...] = ()
    if arm.recipe == BASELINES:
        after = (cell_key(study.task, group, arm.against, size, fold, seed),)
    elif pretrained_key(arm.pretrained) in made:
        after = (pretrained_key(arm.pretrained),)
    key = cell_key(study.task, group, arm.name, size, fold, seed)
    return Cell(key, study.task, group, arm.name, size, fold, seed, after)


def part_of(cells: list[Cell], part: int, parts: int) -> list[Cell]:
    """The cells of one of several equal parts, 1 to `parts`, with the pretrained runs that they wait for.

    Cells on the same patches with the same seed stay together, and with them the baselines of these patches.
    """
    together = dict.fromkeys((cell.seed, cell.fold, cell.task, cell.group, cell.size) for cell in cells if cell.arm)
    mine = {key for place, key in enumerate(together) if place % parts == part - 1}
    own = [cell for cell in cells if (cell.seed, cell.fold, cell.task, cell.group, cell.size) in mine]
    wanted = {key for cell in own for key in cell.after}
    return [cell for cell in cells if not cell.arm and cell.key in wanted] + own


def is_done(workdir: pathlib.Path, cell: Cell) -> bool:
    """Whether a cell carries its mark, which is the last thing that is written of it."""
    return (workdir / cell.key / DONE).is_file()
