"""Before the first cell: the declaration on record, generated patches where there are no others, the splits."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from lsmfm_jax.config import load_config
from lsmfm_jax.config.workdir import check_workdir
from lsmfm_jax.errors import MissingInput
from lsmfm_jax.experiment.cells import Place
from lsmfm_jax.experiment.commands import overriding
from lsmfm_jax.experiment.declaration import BASELINES, Experiment, ExperimentError, Phantoms, as_record
from lsmfm_jax.experiment.splits import draw_splits, write_splits
from lsmfm_jax.experiment.tools import read_tool
from lsmfm_jax.files import replace_file, replace_json, replacing_folder, seal
from lsmfm_jax.phantom import write_phantoms
from lsmfm_jax.store.ingest import ingest

RECORD = "experiment.json"


def with_inputs(
    experiment: Experiment, *, data: pathlib.Path | None, pretrained: Sequence[str], tools: Sequence[str] = ()
) -> Experiment:
    """The experiment with the folders that the command line names.

    Args:
        experiment: as declared.
        data: folder of labelled patches; None: the declared one, or phantoms.
        pretrained: `NAME=RUN` each.
        tools: `NAME=PYTHON` each, the interpreter of the tool's own environment.

    Raises:
        ExperimentError: an unknown name, or runs and patches that are declared nowhere.
        MissingInput: a folder or an interpreter is not there.
    """
    experiment = dataclasses.replace(experiment, interpreters={**experiment.interpreters, **_tools(experiment, tools)})
    given = dict(_pair(text, "--pretrained", "RUN") for text in pretrained)
    known = [one.name for one in experiment.pretrained]
    for name in given:
        if name not in known:
            raise ExperimentError(f"--pretrained {name}: unknown; declared are {', '.join(known) or 'none'}")
    named = tuple(
        dataclasses.replace(one, path=given[one.name]) if one.name in given else one for one in experiment.pretrained
    )
    for one in named:
        if one.path and not pathlib.Path(one.path).is_dir():
            raise MissingInput(f"{one.path}: no such run; name the folder of pretrained run {one.name!r}")
        if not one.path and not (one.recipe and experiment.phantoms):
            raise ExperimentError(
                f"pretrained run {one.name!r} is needed: give --pretrained {one.name}=RUN, a run of lsmfm pretrain"
            )
    absolute = tuple(
        dataclasses.replace(one, path=str(pathlib.Path(one.path).resolve())) if one.path else one for one in named
    )
    folder = str(data or experiment.folder)
    if folder in ("", ".") and data is None:
        if experiment.phantoms is None:
            raise ExperimentError(
                f"{experiment.name} needs labelled patches: give --data FOLDER, or take its variant tiny"
            )
        return dataclasses.replace(experiment, pretrained=absolute)
    if not pathlib.Path(folder).is_dir():
        raise MissingInput(f"--data {folder}: no such folder; name the one that holds the labelled patches")
    return dataclasses.replace(experiment, pretrained=absolute, folder=str(pathlib.Path(folder).resolve()))


def _tools(experiment: Experiment, given: Sequence[str]) -> dict[str, str]:
    """Interpreters by the name of their tool, which an arm declares."""
    declared = [arm.tool for study in experiment.studies for arm in study.arms if arm.tool]
    found = {}
    for name, python in (_pair(text, "--tool", "PYTHON") for text in given):
        if name not in declared:
            raise ExperimentError(f"--tool {name}: unknown; declared are {', '.join(declared) or 'none'}")
        tool = read_tool(name)
        path = pathlib.Path(python).absolute()  # not resolved: the link is what makes it that of its environment
        if not path.is_file():
            raise MissingInput(f"--tool {name}={python}: no such interpreter; install it so: {'; '.join(tool.install)}")
        found[name] = str(path)
    return found


def _pair(text: str, option: str, what: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise ExperimentError(f"{option} {text}: NAME={what} is needed")
    return name, path


def check_recipes(experiment: Experiment) -> None:
    """Reads the recipe of every arm and pretrained run with its changes, so that a mistake is told before any work.

    Raises:
        ConfigError: an unknown recipe or key, or an impossible value.
        ExperimentError: a recipe of another task, or an outside tool whose file is missing or wrong.
    """
    arms = [(study.task, arm) for study in experiment.studies for arm in study.arms]
    for _, arm in arms:
        if arm.tool:
            read_tool(arm.tool)
    runs = [(task, arm) for task, arm in arms if arm.recipe != BASELINES and not arm.tool]
    runs += [("pretrain", one) for one in experiment.pretrained if one.recipe and not one.path]
    for task, run in runs:
        found = load_config(run.recipe, overriding(run.overrides)).task
        if found != task:
            raise ExperimentError(
                f"{experiment.name}: {run.name}: {run.recipe} is of task {found!r}; {task!r} is needed"
            )


def prepare(experiment: Experiment, workdir: pathlib.Path, *, print_line: Callable[[str], None] = print) -> Place:
    """Writes the declaration, generated patches and splits into the workdir, or finds them there unchanged.

    Raises:
        ConfigError: see `check_recipes`.
        ExperimentError: the workdir holds another experiment or other splits, or the patches do not suffice.
        DamagedFile: a record was edited.
    """
    check_recipes(experiment)
    workdir = workdir.resolve()
    record = as_record(experiment)
    path = workdir / RECORD
    begun = check_workdir(path, "experiment", record, ExperimentError)
    folder = pathlib.Path(experiment.folder) if experiment.folder else workdir / "phantoms" / "labelled"
    if experiment.folder:
        # Before anything is written: too few patches are the commonest mistake.
        drawn = draw_splits(experiment, folder)
    if not begun:
        replace_file(path, seal({"experiment": record}))
    if not experiment.folder or any(not one.path for one in experiment.pretrained):
        _make_phantoms(experiment, experiment.phantoms, workdir / "phantoms", print_line)
    if not experiment.folder:
        drawn = draw_splits(experiment, folder)
    write_splits(workdir, drawn)
    return Place(experiment, workdir, folder)


def _make_phantoms(
    experiment: Experiment, phantoms: Phantoms, folder: pathlib.Path, print_line: Callable[[str], None]
) -> None:
    how: dict[str, Any] = {"size": phantoms.size, "blurred": True}
    if not experiment.folder and not (folder / "labelled").exists():
        print_line(f"generating {phantoms.count} labelled patches in {folder}")
        with replacing_folder(folder / "labelled") as made:
            write_phantoms(made, count=phantoms.count, seed=phantoms.seed, layout="flat", **how)
    mark = folder / "store.json"
    if any(not one.path for one in experiment.pretrained) and not mark.exists():
        print_line(f"generating {phantoms.pretraining_count} patches of other volumes for pretraining")
        source = folder / "pretraining"
        if not source.exists():
            with replacing_folder(source) as made:
                count, seed = phantoms.pretraining_count, phantoms.seed + 1
                write_phantoms(made, count=count, seed=seed, size=phantoms.size, layout="selma")
        summary = ingest(layout="selma", root=source, out=folder / "store", captions=[source / "captions.json"])
        replace_json(mark, {"store": summary.text()})
