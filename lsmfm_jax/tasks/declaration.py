"""What a finetuning task declares of itself, so that no other file needs to know it by name."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lsmfm_jax.data.labelled import LabelledFile
from lsmfm_jax.data.labelled_patches import LabelledPatch
from lsmfm_jax.tasks.finetuning import Network
from lsmfm_jax.train.task import Task

PrintLine = Callable[[str], None]
Read = Callable[[LabelledFile], LabelledPatch]


class Patches(NamedTuple):
    """The patches of both sides in memory, and the names of their classes (none but for tasks with classes)."""

    train: list[LabelledPatch]
    validation: list[LabelledPatch]
    classes: tuple[str, ...]


def _no_companion(config: ConfigDict) -> str:
    del config
    return ""


def _no_sampling(config: ConfigDict) -> dict[str, Any]:
    del config
    return {}


def _nothing_to_describe(config: ConfigDict, patches: Patches, print_line: PrintLine) -> None:
    del config, patches, print_line


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneTask:
    """A finetuning task: its patches, its functions, and what prediction needs of it.

    Its keys stand in `config.schema.TASKS`, what it writes for a file in `predict.run.WRITERS`.

    Attributes:
        functions: of the configuration, the network and the patches: the task's functions, pictures included, and what
            its record has beside that of others; `head` in it says which heads are alike. It may print lines.
        reader: of the configuration and the classes: a function that reads one labelled file.
        network: of a run's record: a pure `apply(params, batch_stats, volumes)`, for prediction.
        monitor: the metric that decides which state is the best.
        higher_is_better: whether more of it is better.
        companion: ending of the file that a patch needs beside it, such as `_label`; empty: none.
        describe: prints what a person should see of the patches before training, and refuses what cannot be learnt.
        sampling: settings of `training_batches` beyond those of every task.
        has_classes: whether patches have classes, found by `data.class_from`.
        uses_decoder: whether it has a use for the backbone's decoder; else it is frozen.
        clips: whether prediction clips volumes to [0, 1] after scaling them.
        image_ending: of the images to predict on, such as `_blurred`; empty: any that is no companion.
        truth_ending: of the truth beside an image, `_label` or empty for the bare name; None: files have no truth.
    """

    functions: Callable[[ConfigDict, Network, Patches, PrintLine], tuple[Task, dict[str, Any]]]
    reader: Callable[[ConfigDict, tuple[str, ...]], Read]
    network: Callable[..., Any]
    monitor: str
    higher_is_better: bool
    companion: Callable[[ConfigDict], str] = _no_companion
    describe: Callable[[ConfigDict, Patches, PrintLine], None] = _nothing_to_describe
    sampling: Callable[[ConfigDict], dict[str, Any]] = _no_sampling
    has_classes: bool = False
    uses_decoder: bool = True
    clips: bool = True
    image_ending: str = ""
    truth_ending: str | None = "_label"
