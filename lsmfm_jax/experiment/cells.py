"""What one cell does: its commands one after another, each marked when done, and its scores in the mark of the cell."""

import contextlib
import dataclasses
import fcntl
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lsmfm_jax.data.labelled import find_labelled
from lsmfm_jax.experiment.commands import Command, CommandFailed, finetune_command, lsmfm, overriding, run_once
from lsmfm_jax.experiment.declaration import BASELINES, Arm, Experiment, Study
from lsmfm_jax.experiment.grid import DONE, FAILED, Cell, is_done, pretrained_key
from lsmfm_jax.experiment.scores import Scores, evaluated, predicted_classes, predicted_volumes
from lsmfm_jax.experiment.splits import Sides, read_sides, split_path
from lsmfm_jax.experiment.tool_files import gather, hand_over, only_file
from lsmfm_jax.experiment.tools import environment_of_tool, filled, read_tool
from lsmfm_jax.files import read_json, read_sealed, replace_json

log = logging.getLogger(__name__)
LOG = "log.txt"
# Of a cell with several methods, as `lsmfm baseline` gives them, the others have names of their own.
OWN = "prediction"


@dataclasses.dataclass(frozen=True)
class Place:
    """An experiment with the folders that it works in.

    Attributes:
        experiment: as declared, with what the command line replaces.
        workdir: where its cells are.
        folder: the labelled patches.
    """

    experiment: Experiment
    workdir: pathlib.Path
    folder: pathlib.Path

    def study(self, task: str) -> Study:
        """The study of a task."""
        return next(study for study in self.experiment.studies if study.task == task)

    def arm(self, cell: Cell) -> Arm:
        """The arm of a cell."""
        return next(arm for arm in self.study(cell.task).arms if arm.name == cell.arm)


def run_cell(place: Place, cell: Cell) -> None:
    """Does what is left of a cell; its mark is written last.

    A command that an earlier, killed call has started is waited for: it goes on by itself until it ends.

    Raises:
        CommandFailed: a command ended with an error, or its table lacks what is needed; the message says which.
    """
    folder = place.workdir / cell.key
    with _alone(folder) as handle:
        if is_done(place.workdir, cell):  # by another process, while this one waited
            return
        (folder / FAILED).unlink(missing_ok=True)
        start = time.monotonic()
        work = _Work(place, cell, folder, handle)
        if cell.task == "pretrain":
            methods = work.pretrain()
        elif place.arm(cell).recipe == BASELINES:
            methods = work.baselines()
        elif place.arm(cell).tool:
            methods = work.tool()
        else:
            methods = work.network()
        replace_json(
            folder / DONE,
            {"cell": cell._asdict(), "seconds": round(time.monotonic() - start, 1), "methods": methods},
        )


def mark_failed(place: Place, cell: Cell, error: Exception) -> str:
    """Writes what went wrong into a cell's folder; gives it as one line."""
    line = str(error) if isinstance(error, CommandFailed) else f"{type(error).__name__}: {error}"
    output = place.workdir / cell.key / LOG
    replace_json(place.workdir / cell.key / FAILED, {"error": line, "log": str(output)})
    return f"{cell.key} failed: {line} (all of it: {output})"


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[int]:
    """A lock of the cell that its commands hold too, so that it lasts until the last of them has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".running", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: a command of an earlier call still works there and is waited for", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: nothing to do but trust that no other call works there
        yield handle
    finally:
        os.close(handle)


@dataclasses.dataclass(frozen=True)
class _Work:
    """The commands of one cell."""

    place: Place
    cell: Cell
    folder: pathlib.Path
    handle: int

    def network(self) -> dict[str, Scores]:
        """Finetunes, predicts on the test patches, judges."""
        arm, sides = self.place.arm(self.cell), self._sides()
        run, out, tests = self.folder / "run", self.folder / "predictions", self._tests(sides)
        self._once(
            "finetune",
            finetune_command(
                arm.recipe,
                run,
                folder=self.place.folder,
                train=sides.train,
                validation=sides.validation,
                seed=self.cell.seed,
                init_from=self._start(arm),
                overrides=arm.overrides,
            ),
        )
        self._once("predict", lsmfm("predict", "--checkpoint", run, tests, "--out", out, "--overwrite"))
        return self._judge(out, tests, sides)

    def baselines(self) -> dict[str, Scores]:
        """What needs no network, fitted on the training patches of the run that it stands beside."""
        sides = self._sides()
        out, tests = self.folder / "baselines", self._tests(sides)
        run = self.place.workdir / self.cell.after[0] / "run"
        self._once("baseline", lsmfm("baseline", "--run", run, tests, "--out", out, "--overwrite"))
        folders = sorted(path for path in out.iterdir() if path.is_dir())
        return {folder.name: self._judge(folder, tests, sides)[OWN] for folder in folders}

    def tool(self) -> dict[str, Scores]:
        """An outside tool, trained on the same patches where it can be, on the test patches."""
        arm, sides = self.place.arm(self.cell), self._sides()
        tool, tests = read_tool(arm.tool), self._tests(sides)
        out, train = self.folder / "out", self.folder / "train"
        places = {"images": self.folder / "images", "out": out, "train": train}
        values = {
            **tool.settings,
            **{name: str(path) for name, path in places.items()},
            "python": self.place.experiment.interpreters[arm.tool],
            "here": tool.here,
        }
        known = {file.name: file for file in find_labelled(self.place.folder)}
        environment = environment_of_tool(os.environ)
        if tool.train:
            self._empty_unless("train", train)
            # It has no use for patches to validate on: what is annotated is what it learns from.
            hand_over([known[name] for name in (*sides.train, *sides.validation)], train, tool, labels=True)
            self._once("train", filled(tool.train, values), environment=environment)
            values |= {key: str(only_file(train, pattern, tool)) for key, pattern in tool.gives.items()}
        hand_over([known[name] for name in sides.test], places["images"], tool, labels=False)
        self._empty_unless("predict", out)
        out.mkdir(exist_ok=True)
        self._once("predict", filled(tool.predict, values), environment=environment)
        predictions = self.folder / "predictions"
        gather([name.rpartition("/")[2] for name in sides.test], out, predictions, tool)
        return self._judge(predictions, tests, sides, kind=tool.masks)

    def pretrain(self) -> dict[str, Scores]:
        """Pretrains on the generated store."""
        made = next(one for one in self.place.experiment.pretrained if one.name == self.cell.group)
        store = self.place.workdir / "phantoms" / "store"
        given = overriding({"data.stores": (str(store),), **made.overrides})
        self._once("pretrain", lsmfm("pretrain", "--config", made.recipe, "--workdir", self.folder / "run", *given))
        return {}

    def _start(self, arm: Arm) -> str:
        """The folder of the pretrained run of an arm; empty: from scratch."""
        if not arm.pretrained:
            return ""
        named = next(one for one in self.place.experiment.pretrained if one.name == arm.pretrained)
        return named.path or str(self.place.workdir / pretrained_key(arm.pretrained) / "run")

    def _judge(self, out: pathlib.Path, tests: pathlib.Path, sides: Sides, *, kind: str = "auto") -> dict[str, Scores]:
        """Scores of what was predicted into a folder; `kind` as `lsmfm evaluate` takes it."""
        if self.cell.task == "segment":
            table = out.with_name(f"{out.name}.csv")
            command = lsmfm("evaluate", "--pred", out, "--label", tests, "--out", table, "--kind", kind)
            self._once(f"evaluate_{out.name}", command)
            found = {OWN: evaluated(table)[OWN]}
        elif self.cell.task == "classify":
            found = {OWN: predicted_classes(out / "predictions.csv")}
        else:
            found = predicted_volumes(out / "predictions.csv")
        wanted = {name.rpartition("/")[2] for name in sides.test}
        for method, scores in found.items():
            if scores.keys() != wanted:
                raise CommandFailed(
                    f"{method}: {len(scores)} patches were judged where the split has {len(wanted)}: "
                    f"{', '.join(sorted(wanted ^ scores.keys())[:3])}"
                )
        return found

    def _once(self, step: str, command: Command, *, environment: Mapping[str, str] | None = None) -> None:
        log, held = self.folder / LOG, (self.handle,)
        run_once(command, self._mark(step), log=log, pass_fds=held, environment=environment)

    def _mark(self, step: str) -> pathlib.Path:
        return self.folder / "steps" / f"{step}.json"

    def _empty_unless(self, step: str, folder: pathlib.Path) -> None:
        """Removes what a command that did not end has left: a tool of others may take it for its own result."""
        if not self._mark(step).exists() and folder.exists():
            shutil.rmtree(folder)

    def _sides(self) -> Sides:
        cell = self.cell
        return read_sides(split_path(self.place.workdir, cell.task, cell.group, cell.fold), cell.size)

    def _tests(self, sides: Sides) -> pathlib.Path:
        """A folder of links to the test patches and what lies beside them, and nothing else."""
        cell = self.cell
        tests = self.place.workdir / "tests" / cell.task / cell.group / f"fold{cell.fold}"
        return gather_patches(self.place.folder, sides.test, tests)


def gather_patches(folder: pathlib.Path, names: Sequence[str], out: pathlib.Path) -> pathlib.Path:
    """Links some patches of a folder and their companions into another folder, and gives that one.

    Raises:
        CommandFailed: a patch is not there any more, or two of them would have one name.
    """
    known = {file.name: file for file in find_labelled(folder)}
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name not in known:
            raise CommandFailed(f"{folder}: {name} of the split is not there any more")
        for path in (known[name].path, *known[name].companions.values()):
            link = out / path.name
            # Cells of several arms want the same folder, and may come here at the same time.
            with contextlib.suppress(FileExistsError):
                link.symlink_to(path.resolve())
            if link.resolve() != path.resolve():
                raise CommandFailed(f"{link} links to {link.resolve()} and not to {path}: two patches have one name")
    return out


def read_done(workdir: pathlib.Path, cell: Cell) -> dict[str, Any]:
    """What the mark of a finished cell holds: seconds, and the scores of each method."""
    return read_json(workdir / cell.key / DONE)


def volumes_of(place: Place, cell: Cell) -> dict[str, str]:
    """The volume of each test patch of a cell, by the patch's short name, which is unique within its type."""
    body = read_sealed(split_path(place.workdir, cell.task, cell.group, cell.fold))
    return {name.rpartition("/")[2]: body["patches"][name]["volume"] for name in body["test"]}
