"""Which boxes of volumes are worth annotating next: those of the highest mean uncertainty, shared out over volumes."""

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Num, Shaped

Size = tuple[int, int, int]
Item = TypeVar("Item")

# Of a box at most so much may be padding. What is dark around a specimen counts: runs can disagree at its border.
MOST_PADDING_FRAC = 0.1
# Voxels along each side of a block. One whose voxels are all the same is padding; no camera records that.
BLOCK = 6


def padding_of(image: Num[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """Which voxels of an image are padding: those of blocks that hold one value alone.

    Args:
        image: raw counts.
    """
    grid = [-(-size // BLOCK) for size in image.shape]
    widths = [(0, count * BLOCK - size) for count, size in zip(grid, image.shape, strict=True)]
    z, y, x = grid
    blocks = np.pad(image, widths, mode="edge").reshape(z, BLOCK, y, BLOCK, x, BLOCK)
    padding = blocks.min(axis=(1, 3, 5)) == blocks.max(axis=(1, 3, 5))
    for axis in range(3):
        padding = np.repeat(padding, BLOCK, axis)
    return padding[tuple(slice(size) for size in image.shape)]


def box_means(values: Shaped[np.ndarray, "z y x"], size: Size) -> Float[np.ndarray, "a b c"]:
    """Mean of the values in the box at each place where it fits, by its first voxel.

    Args:
        values: of each voxel.
        size: ZYX voxels of a box, along no axis more than the volume has.
    """
    means = values.astype(np.float64)
    for axis, side in enumerate(size):
        widths = [(int(other == axis), 0) for other in range(3)]
        sums = np.pad(np.cumsum(means, axis=axis), widths)
        length = sums.shape[axis]
        means = (np.take(sums, range(side, length), axis) - np.take(sums, range(length - side), axis)) / side
    return means


def best_boxes(
    uncertainty: Float[np.ndarray, "z y x"], image: Num[np.ndarray, "z y x"], *, size: Size, count: int
) -> list[tuple[Size, float]]:
    """The boxes of the highest mean uncertainty that do not overlap: the best one, the best beside it, and so on.

    Boxes with more than `MOST_PADDING_FRAC` of padding are none. Of equal ones the first along Z, Y, X is taken, so
    that the same volume always gives the same boxes.

    Args:
        uncertainty: of each voxel.
        image: raw counts.
        size: ZYX voxels of a box, along no axis more than the volume has.
        count: the most to give.

    Returns:
        First voxel (Z, Y, X) and mean uncertainty of each, the most uncertain first.
    """
    means = box_means(uncertainty, size)
    means[box_means(padding_of(image), size) > MOST_PADDING_FRAC + 1e-9] = -np.inf
    found: list[tuple[Size, float]] = []
    while len(found) < count:
        z, y, x = (int(place) for place in np.unravel_index(means.argmax(), means.shape))
        value = float(means[z, y, x])
        if value == -np.inf:
            break
        found.append(((z, y, x), value))
        overlapping = zip((z, y, x), size, strict=True)
        means[tuple(slice(max(0, start - side + 1), start + side) for start, side in overlapping)] = -np.inf
    return found


def round_robin(
    groups: dict[str, Sequence[Item]], *, count: int, value: Callable[[Item], float]
) -> list[tuple[str, Item]]:
    """One item of each group, then a second of each, until there are enough; in each round the highest value first.

    No group so has more than `count` divided by the number of groups, rounded up, unless others have no more items.

    Args:
        groups: items by group, each group's highest value first.
        count: the most to give.
        value: of an item.

    Returns:
        Group and item, in the order in which they were taken.
    """
    taken: list[tuple[str, Item]] = []
    for number in itertools.count():
        left = [(name, items[number]) for name, items in groups.items() if number < len(items)]
        taken += sorted(left, key=lambda one: (-value(one[1]), one[0]))
        if not left or len(taken) >= count:
            return taken[:count]
