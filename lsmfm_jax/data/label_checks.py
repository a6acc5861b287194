"""Label files that cannot be what they are taken for: a copy of the image, raw counts, values of another meaning."""

import numpy as np
from jaxtyping import Num

from lsmfm_jax.data.labels import IGNORED, LabelError, Labels, LabelValues, Target

# More foreground than this is rare in light-sheet data, and common where values were misread.
DENSE_FRAC = 0.6
# More values than a person gives to classes; instances of one image can be as many.
_CLASSES = 16
# Neighbouring voxels of one instance are equal; those of an image are not.
_PAIRS_NEEDED, _EQUAL_FRAC = 100, 0.5
# What tools write for "ignore" beside a few small values.
_USUAL_IGNORED = (255, 65535)


def check_labels(
    labels: Labels, values: LabelValues, *, source: str, image: Num[np.ndarray, "_ _ _"] | None = None
) -> None:
    """Refuses a label file whose values are no labels, or whose meaning a person must give.

    Args:
        labels: as read.
        values: what they mean.
        source: the file.
        image: that it is the label of.

    Raises:
        LabelError: a copy of the image, intensities, or a value that looks like an ignore value and is not named.
    """
    if image is not None and image.shape == labels.shape and np.array_equal(image, labels):
        raise LabelError(
            f"{source}: it has the voxels of its image, so it is no label; put the label in its place, or move it away"
        )
    found = np.unique(labels)
    if len(found) > _CLASSES and _is_intensity(labels):
        raise LabelError(
            f"{source}: it has {len(found)} values from {found[0]:g} to {found[-1]:g} that change from voxel to voxel, "
            "as an image has and a label has not; put the label in its place, or threshold it first"
        )
    if found[-1] > 1 and (np.rint(found) != found).any():
        raise LabelError(
            f"{source}: its values from {found[0]:g} to {found[-1]:g} are neither labels (whole numbers) nor a mask "
            "(0 to 1); save label values as integers, or threshold it first"
        )
    unnamed = [int(value) for value in found if value not in values.named]
    others = [value for value in unnamed if value > 0 and value not in _USUAL_IGNORED]
    # Where foreground is named, everything else has been given a meaning by that.
    asked = [value for value in unnamed if value < 0 or (value in _USUAL_IGNORED and others)]
    gap = len(others) <= _CLASSES and max(others, default=0) < 128
    if asked and not values.foreground and (gap or asked[0] < 0):
        names = values.names
        raise LabelError(
            f"{source}: the label value {asked[0]} stands beside {', '.join(map(str, sorted({0, *others})[:6]))}; "
            f"is it to be ignored, or an object? Add it to {names.ignore}, or name the foreground with "
            f"{names.foreground}"
        )


def check_share(target: Target, values: LabelValues, *, source: str, found: list[int]) -> None:
    """Refuses a mask that is nearly all foreground, unless that was allowed.

    Args:
        target: 0, 1 or `IGNORED`.
        values: what the label values mean.
        source: the file.
        found: label values in it.

    Raises:
        LabelError: all or more than `DENSE_FRAC` of what is annotated is foreground.
    """
    annotated = target != IGNORED
    share = float((target == 1).sum()) / max(int(annotated.sum()), 1)
    if share <= DENSE_FRAC or values.allow_dense:
        return
    names, shown = values.names, ", ".join(map(str, found[:6])) + (", ..." if len(found) > 6 else "")
    usual = f"{names.foreground} names those that are" if not values.foreground else f"look at {names.foreground}"
    if share == 1.0:
        raise LabelError(
            f"{source}: 100 % of what is annotated is foreground: its values are {shown}, and none of them is "
            f"background; {usual}, {names.background} the others, or allow it with {names.dense}"
        )
    raise LabelError(
        f"{source}: {100 * share:.1f} % of what is annotated is foreground, of the label values {shown}; is foreground "
        f"0 there? {usual}; if it is so dense, allow it with {names.dense}"
    )


def _is_intensity(labels: Labels) -> bool:
    """Whether neighbours along X that are both above 0 are mostly different."""
    left, right = labels[..., :-1], labels[..., 1:]
    both = (left > 0) & (right > 0)
    pairs = int(both.sum())
    return pairs >= _PAIRS_NEEDED and int((both & (left == right)).sum()) < _EQUAL_FRAC * pairs
