"""Outside tools as arms of an experiment: what a tool needs to be told, from a TOML file that a person can write.

A tool is run in an environment of its own, never in this one, so that its requirements and ours cannot disagree. The
file says how it is installed and called, in which format it takes images, and what it calls its masks:

    title = "Cellpose 3"
    licence = "BSD-3-Clause"
    home = "https://www.cellpose.org"
    install = ["python -m venv ENV", "ENV/bin/pip install 'cellpose>=3.1,<4'"]
    images = "tif"                          # or nii.gz
    masks = "labels"                        # an instance has a number; or mask
    output = "{patch}_cp_masks.tif"         # in {out}

    [settings]                              # what commands name in braces, besides the folders
    model = "cyto3"

    [train]                                 # left out: the tool is used as it comes
    labels = "{patch}_masks.tif"            # in {train}, beside the images
    planes = true                           # of Z, one file each, where it learns in 2D; left out: whole patches
    command = ["{python}", "-m", "cellpose", "--train", "--dir", "{train}", "--pretrained_model", "{model}"]
    gives = {model = "models/*"}            # below {train}: what prediction then uses

    [predict]
    command = ["{python}", "-m", "cellpose", "--dir", "{images}", "--savedir", "{out}", "--pretrained_model", "{model}"]

A tool without a command line for it is called by a script beside the file: `{here}/script.py`.
"""

import dataclasses
import pathlib
import string
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from lsmfm_jax.config.recipes import recipes_folder
from lsmfm_jax.experiment.declaration import ExperimentError

FORMATS = ("tif", "nii.gz")
MASKS = ("labels", "mask")
# Folders (here: that of the file) and the interpreter, which every command may name.
PLACES = ("python", "here", "train", "images", "out")
_TEXTS = ("title", "licence", "home", "images", "masks", "output")


@dataclasses.dataclass(frozen=True)
class ToolFile:
    """A tool as its file describes it.

    Attributes:
        title: its name in words.
        licence: SPDX identifier.
        home: where it comes from.
        install: shell lines that make its environment.
        images: ending of the images that it is given, one of `FORMATS`.
        masks: what its output holds, one of `MASKS`.
        output: name of the mask of a patch, with `{patch}`.
        predict: words of the command that writes masks of all of `{images}` into `{out}`.
        train: words of the command that trains it; empty: it is used as it comes.
        labels: name of the label of a training patch, with `{patch}`.
        planes: it is trained on those planes of Z that hold labels.
        gives: settings that training replaces, each by the one file below `{train}` that its pattern finds.
        settings: values that commands name in braces.
        here: folder of the file, where scripts for the tool may lie beside it.
    """

    title: str
    licence: str
    home: str
    install: tuple[str, ...]
    images: str
    masks: str
    output: str
    predict: tuple[str, ...]
    train: tuple[str, ...]
    labels: str
    planes: bool
    gives: Mapping[str, str]
    settings: Mapping[str, str]
    here: str


def tools_folder() -> pathlib.Path:
    """Where the files of known tools are: beside the experiments of the package."""
    return recipes_folder() / "experiments" / "tools"


def read_tool(name: str) -> ToolFile:
    """Reads the file of a tool.

    Args:
        name: of a file of the package, or path of a TOML file.

    Raises:
        ExperimentError: no such file, no TOML, or an entry that is missing, unknown or impossible.
    """
    path = pathlib.Path(name) if name.endswith(".toml") else tools_folder() / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in tools_folder().glob("*.toml")))
        raise ExperimentError(f"{name}: neither a tool of the package ({known}) nor a TOML file")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: no TOML: {error}") from error
    entries = _Entries(path, table)
    entries.only(*_TEXTS, "install", "settings", "train", "predict")
    train, predict = entries.table("train", "labels", "planes", "command", "gives"), entries.table("predict", "command")
    tool = ToolFile(
        **{key: entries.text(key) for key in _TEXTS},
        install=entries.words("install"),
        predict=predict.words("command"),
        train=train.words("command") if "train" in table else (),
        labels=train.text("labels") if "train" in table else "",
        planes=train.flag("planes"),
        gives=train.texts("gives"),
        settings=entries.texts("settings"),
        here=str(path.absolute().parent),
    )
    _check(path, tool)
    return tool


@dataclasses.dataclass(frozen=True)
class _Entries:
    """The entries of a table with their types checked."""

    path: pathlib.Path
    values: Mapping[str, Any]
    of: str = ""

    def only(self, *allowed: str) -> None:
        for key in self.values:
            if key not in allowed:
                raise ExperimentError(f"{self.path}: {self.of}{key} is unknown; allowed: {', '.join(allowed)}")

    def table(self, key: str, *allowed: str) -> "_Entries":
        found = _Entries(self.path, self._of_type(key, dict, "a table", {}), f"{key}.")
        found.only(*allowed)
        return found

    def text(self, key: str) -> str:
        return self._of_type(key, str, "a text", None)

    def flag(self, key: str) -> bool:
        return self._of_type(key, bool, "true or false", False)

    def words(self, key: str) -> tuple[str, ...]:
        words = self._of_type(key, list, "a list of texts", None)
        if not words or not all(isinstance(word, str) for word in words):
            raise self._wrong(key, words, "a list of texts")
        return tuple(words)

    def texts(self, key: str) -> dict[str, str]:
        found = self._of_type(key, dict, "a table of texts", {})
        if not all(isinstance(value, str) for value in found.values()):
            raise self._wrong(key, found, "a table of texts")
        return found

    def _of_type(self, key: str, kind: type, called: str, otherwise: Any) -> Any:
        value = self.values.get(key, otherwise)
        if not isinstance(value, kind):
            raise self._wrong(key, value, called)
        return value

    def _wrong(self, key: str, value: Any, called: str) -> ExperimentError:
        said = "missing" if value is None else repr(value)
        return ExperimentError(f"{self.path}: {self.of}{key} is {said}; {called} is needed")


def _check(path: pathlib.Path, tool: ToolFile) -> None:
    """Refuses values that no run could use."""
    for key, value, allowed in (("images", tool.images, FORMATS), ("masks", tool.masks, MASKS)):
        if value not in allowed:
            raise ExperimentError(f"{path}: {key} is {value!r}; allowed: {', '.join(allowed)}")
    if tool.planes and tool.images != "tif":
        raise ExperimentError(f"{path}: train.planes is true, and images is {tool.images!r}; planes are given as tif")
    names = {"output": tool.output, **({"train.labels": tool.labels} if tool.train else {})}
    for key, value in names.items():
        if _named(path, key, value) != {"patch"}:
            raise ExperimentError(f"{path}: {key} is {value!r}; a file name with {{patch}} and nothing else in braces")
    for key in tool.gives:
        if key not in tool.settings:
            raise ExperimentError(f"{path}: train.gives.{key} is no setting; there are {', '.join(tool.settings)}")
    allowed = {*PLACES, *tool.settings}
    for key, command in (("train.command", tool.train), ("predict.command", tool.predict)):
        for word in command:
            if unknown := _named(path, key, word) - allowed:
                raise ExperimentError(
                    f"{path}: {key} names {{{min(unknown)}}}; there are {', '.join(sorted(allowed))} (a brace that is "
                    "meant as one is written twice)"
                )


def _named(path: pathlib.Path, key: str, text: str) -> set[str]:
    """What a text names in braces."""
    try:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise ExperimentError(
            f"{path}: {key}: {text!r}: {error}; a brace that is meant as one is written twice"
        ) from None


def environment_of_tool(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables of this process without those that would lead a tool's Python to packages of ours."""
    return {key: value for key, value in variables.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def filled(words: Sequence[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """The words of a command with what they name in braces."""
    return tuple(word.format_map(values) for word in words)
