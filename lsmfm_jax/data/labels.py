"""What the values of a label file mean: foreground, background, or not annotated; and which files are no labels.

A label file has one value for each voxel. Which values are foreground and which are ignored is a matter of who
annotated it: 0 is background in most files, and "nobody looked here" where only a few slices are annotated.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8

from lsmfm_jax.errors import LsmfmError

# In a target: voxels that count in no loss, no draw of a crop and no metric. Foreground is 1, background 0.
IGNORED = 255

Labels = Num[np.ndarray, "z y x"]
Target = UInt8[np.ndarray, "z y x"]


class LabelError(LsmfmError, ValueError):
    """A label file or the meaning given to its values cannot be used: which, why, and what to do about it."""


@dataclasses.dataclass(frozen=True)
class LabelNames:
    """How the settings are called where a person sets them, for messages."""

    foreground: str = "data.foreground_labels"
    background: str = "data.background_labels"
    ignore: str = "data.ignore_labels"
    dense: str = "data.allow_dense_masks=True"


@dataclasses.dataclass(frozen=True)
class LabelValues:
    """The meaning of the values in label files.

    Attributes:
        foreground: values that are foreground; empty: all above 0 that are not named elsewhere.
        background: values that are background; empty: all that are not named elsewhere. Where both `foreground`
            and this are given, a value in none of the three is an error.
        ignore: values of voxels that count for nothing.
        allow_dense: take masks that are nearly all foreground.
        names: how a person sets these.

    Raises:
        LabelError: a value is no whole number, or has two meanings.
    """

    # Of any type until they are checked: they come from a person.
    foreground: tuple[Any, ...] = ()
    background: tuple[Any, ...] = ()
    ignore: tuple[Any, ...] = ()
    allow_dense: bool = False
    names: LabelNames = LabelNames()

    def __post_init__(self) -> None:
        groups = {name: getattr(self, name) for name in ("foreground", "background", "ignore")}
        meaning: dict[int, str] = {}
        for name, values in groups.items():
            called = getattr(self.names, name)
            for value in values:
                if isinstance(value, bool) or not isinstance(value, int | np.integer) or abs(value) >= 2**31:
                    raise LabelError(f"{called}: {value!r} in {values!r}; label values are whole numbers such as (0,)")
                if meaning.setdefault(int(value), called) != called:
                    raise LabelError(f"{called}: {value} is in {meaning[value]} too; give each value one meaning")

    @property
    def named(self) -> set[int]:
        """All values that are given a meaning."""
        return {*self.foreground, *self.background, *self.ignore}

    def record(self) -> dict[str, list[int]]:
        """The meaning as JSON, for `label_values`."""
        return {name: list(getattr(self, name)) for name in ("foreground", "background", "ignore")}


def label_values(record: dict[str, Sequence[int]] | None) -> LabelValues:
    """The meaning that a finetuning run recorded; that of runs which recorded none is the default."""
    record = record or {}
    return LabelValues(**{name: tuple(record.get(name, ())) for name in ("foreground", "background", "ignore")})


def target_of(labels: Labels, values: LabelValues, *, source: str) -> Target:
    """1 where a label file has foreground, 0 where background, `IGNORED` where it has a value to be ignored.

    Args:
        labels: as read.
        values: their meaning. Without one, whatever is above 0.5 is foreground.
        source: the file, for messages.

    Raises:
        LabelError: values that are no whole numbers though some are named, or without a meaning.
    """
    if not values.named:
        return (labels > 0.5).astype(np.uint8)
    found = np.unique(labels)
    if (np.rint(found) != found).any():
        names = values.names
        raise LabelError(
            f"{source}: its value {found[np.rint(found) != found][0]:g} is no whole number, so it cannot be one of "
            f"{names.foreground}, {names.background} or {names.ignore}; save label values as integers"
        )
    if values.foreground and values.background:
        unnamed = [int(value) for value in found if int(value) not in values.named]
        if unnamed:
            raise LabelError(
                f"{source}: its label value {unnamed[0]} is neither foreground {values.foreground} nor background "
                f"{values.background} nor ignored {values.ignore}; add it to {values.names.foreground}, "
                f"{values.names.background} or {values.names.ignore}"
            )
    if values.foreground:
        foreground = np.isin(labels, values.foreground)
    else:
        foreground = (labels > 0) & ~np.isin(labels, (*values.background, *values.ignore))
    target = foreground.astype(np.uint8)
    target[np.isin(labels, values.ignore)] = IGNORED
    return target
