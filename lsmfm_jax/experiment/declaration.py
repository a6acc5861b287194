"""What an experiment is: tasks, types of data, arms, sizes, folds and seeds, in the words of the paper's tables."""

import dataclasses
import re
from typing import Any

from lsmfm_jax.errors import LsmfmError

TASKS = ("segment", "classify", "deblur")
# The companion that a patch must have to be of use for a task.
NEEDS = {"segment": "_label", "classify": "", "deblur": "_blurred"}
BASELINES = "baselines"
TOOL = "tool:"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class ExperimentError(LsmfmError, ValueError):
    """An experiment cannot be run as declared, or not in this folder: what, what is allowed, what to do."""


@dataclasses.dataclass(frozen=True)
class DataType:
    """One type of data, a column group of the tables.

    Attributes:
        name: of its folder and its rows.
        prefix: what the names of its patches start with.
        channels: only patches with `_ch<n>` of one of these numbers; empty: all.
        paper: how the paper's tables call it, where these are the paper's data; empty: no printed figures beside ours.
    """

    name: str
    prefix: str
    channels: tuple[int, ...] = ()
    paper: str = ""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to get a result.

    Attributes:
        name: of its folder and its rows.
        recipe: what `lsmfm finetune --config` takes; `baselines` for what `lsmfm baseline` fits; `tool:NAME` for an
            outside tool, by its file (see `tools.py`).
        overrides: keys of the recipe that are others here, with their values.
        pretrained: name of the pretrained run that it starts from; empty: from scratch.
        against: the arm that a claim compares it with; empty: it is no claim. For baselines: the arm whose run (its
            patches, not its weights) they are fitted on.
        paper: how the paper's tables call it.
    """

    name: str
    recipe: str
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    pretrained: str = ""
    against: str = ""
    paper: str = ""

    @property
    def tool(self) -> str:
        """Name or path of the file of an outside tool; empty: it is none."""
        return self.recipe.removeprefix(TOOL) if self.recipe.startswith(TOOL) else ""


@dataclasses.dataclass(frozen=True)
class Study:
    """One task: what is judged, on what, with how many annotated patches.

    Attributes:
        task: segment, classify or deblur.
        types: of data; for classification they are the classes, which one network tells apart.
        arms: in the order of the table.
        sizes: annotated patches of a cell, training and validation together; of each type, for classification of all
            classes together.
        paper_sizes: the size that the paper calls `few` and the one it calls `many`; 0: neither is run.
    """

    task: str
    types: tuple[DataType, ...]
    arms: tuple[Arm, ...]
    sizes: tuple[int, ...]
    paper_sizes: tuple[int, int] = (0, 0)

    @property
    def groups(self) -> dict[str, tuple[DataType, ...]]:
        """What one network is trained on: each type by itself, or all classes together."""
        return {"classes": self.types} if self.task == "classify" else {one.name: (one,) for one in self.types}


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """A pretrained run: one that is there, or one that the experiment makes of generated patches.

    Attributes:
        name: what arms call it.
        path: folder of the run; `--pretrained NAME=RUN` replaces it. Empty: it must be given, or be made.
        recipe: what `lsmfm pretrain --config` takes, where it is made.
        overrides: keys of the recipe that are others here.
    """

    name: str
    path: str = ""
    recipe: str = ""
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Phantoms:
    """Patches that the experiment generates, so that it needs no data of others.

    Attributes:
        count: labelled patches over all kinds.
        pretraining_count: patches of other volumes for pretraining.
        size: voxels Z, Y, X.
        seed: of the volumes.
    """

    count: int
    pretraining_count: int
    size: tuple[int, int, int]
    seed: int = 7


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A grid of task x type x arm x size x fold x seed.

    Attributes:
        name: for the page.
        studies: one for each task.
        pretrained: runs that arms start from.
        folder: labelled patches as `lsmfm finetune` takes them; `--data` replaces it. Empty: phantoms are made.
        phantoms: what is made where there is no folder.
        folds: of the cross-validation; patches of one volume never stand on two sides.
        seeds: of the networks.
        validation_frac: share of the annotated patches that is for validation.
        test_patches: of each type, held out in each fold.
        split_seed: of the splits, which all arms, sizes and seeds share.
        interpreters: Python of the environment of each outside tool that is at hand, by the tool's name; arms of
            others are left out. `--tool NAME=PYTHON` adds to it.
    """

    name: str
    studies: tuple[Study, ...]
    pretrained: tuple[Pretraining, ...] = ()
    folder: str = ""
    phantoms: Phantoms | None = None
    folds: int = 3
    seeds: tuple[int, ...] = (1, 2, 3)
    validation_frac: float = 0.2
    test_patches: int = 2
    split_seed: int = 1
    interpreters: dict[str, str] = dataclasses.field(default_factory=dict)


def check(experiment: Experiment) -> None:
    """Refuses a declaration that cannot be run, before anything is written.

    Raises:
        ExperimentError: names the entry, its value and what is allowed.
    """
    if not experiment.studies:
        raise ExperimentError(f"{experiment.name}: studies is empty; declare at least one of {', '.join(TASKS)}")
    if experiment.folds < 2:
        raise ExperimentError(f"{experiment.name}: folds is {experiment.folds}; at least 2 are needed")
    if not 0 < experiment.validation_frac < 1:
        raise ExperimentError(
            f"{experiment.name}: validation_frac is {experiment.validation_frac}; a share between 0 and 1 is needed"
        )
    if experiment.test_patches < 1 or not experiment.seeds or len(set(experiment.seeds)) < len(experiment.seeds):
        raise ExperimentError(
            f"{experiment.name}: test_patches {experiment.test_patches}, seeds {experiment.seeds}; at least one patch "
            "and one seed are needed, and no seed twice"
        )
    made = {one.name for one in experiment.pretrained}
    _unique(experiment.name, "pretrained", [one.name for one in experiment.pretrained])
    _unique(experiment.name, "studies", [study.task for study in experiment.studies])
    for study in experiment.studies:
        _check_study(experiment.name, study, made)


def _check_study(name: str, study: Study, made: set[str]) -> None:
    if study.task not in TASKS:
        raise ExperimentError(f"{name}: task {study.task!r} is unknown; allowed: {', '.join(TASKS)}")
    if not study.sizes or min(study.sizes) < 2:
        raise ExperimentError(
            f"{name}: {study.task}: sizes {study.sizes}; each needs 2 patches, one to train and one to validate"
        )
    _unique(name, f"{study.task}: types", [one.name for one in study.types])
    _unique(name, f"{study.task}: arms", [one.name for one in study.arms])
    arms = {arm.name: arm for arm in study.arms}
    for arm in study.arms:
        if arm.tool and (study.task != "segment" or arm.overrides or arm.pretrained):
            raise ExperimentError(
                f"{name}: {study.task}: arm {arm.name}: {arm.recipe} only segments, and takes neither overrides nor a "
                "pretrained run; what it can be told stands in its file"
            )
        if arm.pretrained and arm.pretrained not in made:
            raise ExperimentError(
                f"{name}: {study.task}: arm {arm.name} starts from {arm.pretrained!r}; declared are "
                f"{', '.join(sorted(made)) or 'no pretrained runs'}"
            )
        other = arms.get(arm.against)
        if (arm.against and other is None) or (arm.recipe == BASELINES and (other is None or other.pretrained)):
            raise ExperimentError(
                f"{name}: {study.task}: arm {arm.name} is against {arm.against!r}; allowed are other arms, for "
                f"baselines one from scratch: {', '.join(arms)}"
            )


def _unique(name: str, what: str, names: list[str]) -> None:
    if not names and what != "pretrained":
        raise ExperimentError(f"{name}: {what} is empty; declare at least one")
    for one in names:
        if not _NAME.fullmatch(one):
            raise ExperimentError(f"{name}: {what}: {one!r} is no name of a folder; take letters, digits, _ . and -")
        if names.count(one) > 1:
            raise ExperimentError(f"{name}: {what}: {one!r} is there twice; give each a name of its own")


def as_record(experiment: Experiment) -> dict[str, Any]:
    """The declaration as JSON values, for the record in the folder.

    Where tools are installed is no part of it: one may be added to an experiment that has run.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        return [plain(one) for one in value] if isinstance(value, tuple | list) else value

    record = dataclasses.asdict(experiment)
    del record["interpreters"]
    return plain(record)
