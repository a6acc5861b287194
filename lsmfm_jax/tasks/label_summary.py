"""What a person should see of label images before a segmentation trains on them."""

import collections
from collections.abc import Sequence

from ml_collections import ConfigDict

from lsmfm_jax.data.labelled import LabelledDataError
from lsmfm_jax.data.labelled_patches import LabelledPatch
from lsmfm_jax.data.labels import IGNORED
from lsmfm_jax.planning.plan import disagreement
from lsmfm_jax.tasks.declaration import Patches, PrintLine

_VOLUMES_SHOWN = 40


def describe_labels(config: ConfigDict, patches: Patches, print_line: PrintLine) -> None:
    """Prints label values and foreground of each volume.

    Raises:
        LabelledDataError: no training patch has any foreground.
    """
    for line in _described_labels([*patches.train, *patches.validation]):
        print_line(line)
    if not any((patch.target == 1).any() for patch in patches.train):
        found = sorted({value for patch in patches.train for value, _ in patch.label_counts})
        named = tuple(config.data.foreground_labels)
        wanted = f"; none of data.foreground_labels {named} occurs in them, but {_listed(found)}" if named else ""
        names = ", ".join(patch.name for patch in patches.train[:5]) + (", ..." if len(patches.train) > 5 else "")
        raise LabelledDataError(
            f"{config.data.folder}: the masks of all training patches are empty: there is nothing to learn from{wanted}"
            f"; annotate a patch that has foreground (now {names})"
        )


def suggest_plan(config: ConfigDict, patches: Patches, print_line: PrintLine) -> None:
    """Prints a line where the objects of the training patches do not fit the configured background or crops."""
    line = disagreement(config, patches.train)
    if line:
        print_line(line)


def _described_labels(patches: Sequence[LabelledPatch]) -> list[str]:
    """A line for each volume: its label values with their shares, and the share of the foreground."""
    of_volume: dict[str, list[LabelledPatch]] = {}
    for patch in patches:
        of_volume.setdefault(patch.volume, []).append(patch)
    lines = []
    for volume, mine in list(of_volume.items())[:_VOLUMES_SHOWN]:
        counts: collections.Counter[float] = collections.Counter()
        for patch in mine:
            counts.update(dict(patch.label_counts))
        total = sum(counts.values())
        shares = {value: f"{value:g} ({100 * counts[value] / total:.2f} %)" for value in sorted(counts)}
        values = ", ".join(shares.values()) if len(shares) <= 8 else _listed(sorted(counts))
        annotated = sum(int((patch.target != IGNORED).sum()) for patch in mine)
        foreground = sum(int((patch.target == 1).sum()) for patch in mine)
        part = f" of the {100 * annotated / total:.2f} % annotated" if annotated < total else ""
        lines.append(f"{volume}: label values {values}; foreground {100 * foreground / annotated:.2f} %{part}")
    if len(of_volume) > _VOLUMES_SHOWN:
        lines.append(f"and {len(of_volume) - _VOLUMES_SHOWN} volumes more")
    return lines


def _listed(values: Sequence[float]) -> str:
    """Values, or how many there are where that is too long."""
    if len(values) > 8:
        return f"{len(values)} values from {values[0]:g} to {values[-1]:g}"
    return ", ".join(f"{value:g}" for value in values)
