"""What experts are shown: the images of a folder, each method's mask of them, which are drawn, and under what letter.

Nothing here reads a voxel. All draws are of one seed, so that the same folders give the same kit.
"""

import pathlib
import string
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lsmfm_jax.data.mask_folders import masks_in
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.volumes.names import NO_IMAGES, SUFFIXES, printable, stem, volume_of

# Each method is one bit of a byte in the kit, and one of the keys 1 to 8.
LARGEST_METHODS = 8
LETTERS = string.ascii_uppercase
_NAMED = 5


class RankingError(LsmfmError, ValueError):
    """A kit cannot be made or its results not be scored; the message names the file, the reason and what to do."""


class Sample(NamedTuple):
    """An image, the volume that it is from, and the mask that each method made of it."""

    name: str
    volume: str
    image: pathlib.Path
    masks: dict[str, pathlib.Path]


class Case(NamedTuple):
    """A sample as experts see it.

    Attributes:
        name: that experts see, such as `case_001`; it says nothing of the image.
        sample: what is shown.
        methods: by letter: the first is shown as A.
    """

    name: str
    sample: Sample
    methods: tuple[str, ...]


def parse_methods(texts: Sequence[str]) -> dict[str, pathlib.Path]:
    """The folder of each method by its name, from texts such as `pretrained=predictions/a`.

    Raises:
        RankingError: no name or no folder in a text, a name twice, one method, or more than eight.
    """
    methods: dict[str, pathlib.Path] = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if not name.strip() or not folder:
            raise RankingError(f"--method {text!r}: a name and a folder are needed, as in --method pretrained=FOLDER")
        name = printable(name.strip())
        if name in methods:
            raise RankingError(f"--method {name}: two folders have this name; give each method one of its own")
        methods[name] = pathlib.Path(folder)
    if not 2 <= len(methods) <= LARGEST_METHODS:
        raise RankingError(
            f"--method: {len(methods)} given; from two up to {LARGEST_METHODS} can be ranked against each other, "
            "three is usual"
        )
    return methods


def find_samples(
    images: str | pathlib.Path,
    methods: Mapping[str, pathlib.Path],
    *,
    pattern: str | None = None,
    volume_pattern: str | None = None,
) -> tuple[list[Sample], list[pathlib.Path]]:
    """The images of a folder with the mask of each method, and the masks left out because they have no image.

    Masks are found and called as `lsmfm evaluate` has it (`masks_in`): `<name>`, or `<name>` with `_mask`, `_pred`,
    `_label` and the like behind it. In the folder of images such files are no images.

    Args:
        images: folder of the image files.
        methods: folder of each method.
        pattern: see `masks_in`.
        volume_pattern: see `volume_of`.

    Raises:
        RankingError: no folder, no image in it, two images of one name, or images without a mask of each method.
        MaskFolderError: a method's folder that is none, is empty, or has two masks for one image.
    """
    folder = pathlib.Path(images)
    named: dict[str, pathlib.Path] = {}
    for path in _image_files(folder):
        if stem(path) in named:
            raise RankingError(f"{named[stem(path)]} and {path} are of one name; keep one of them in the folder")
        named[stem(path)] = path
    found: dict[str, dict[str, pathlib.Path]] = {}
    unused: list[pathlib.Path] = []
    for method, of_method in methods.items():
        found[method] = masks_in(of_method, pattern=pattern)[0]
        absent = [path.name for name, path in named.items() if name not in found[method]]
        if absent:
            raise RankingError(
                f"--method {method}: {of_method} has no mask of {_listed(absent)}; a mask has the name of its image "
                "but for endings such as _mask and _pred: add it, take the image away, or name the part that is the "
                "image with --pattern"
            )
        unused += [path for name, path in found[method].items() if name not in named]
    samples = [
        Sample(name, volume_of(name, pattern=volume_pattern), path, {method: found[method][name] for method in methods})
        for name, path in named.items()
    ]
    return samples, unused


def _image_files(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise RankingError(f"--images {folder}: not a folder; name the one that holds the images")
    files = sorted(path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES) and path.name[0] != ".")
    found = [path for path in files if not stem(path).lower().endswith(NO_IMAGES)]
    if not found:
        raise RankingError(
            f"--images {folder}: none of its {len(files)} volumes is an image; images end in {', '.join(SUFFIXES)}, "
            f"and not in {', '.join(NO_IMAGES)} before that"
        )
    return found


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def draw_cases(samples: Sequence[Sample], *, count: int, seed: int) -> list[Case]:
    """Draw cases at random, in random order, each volume as often as any other while it has images left.

    Args:
        samples: to draw from, without repetition; their order does not matter.
        count: how many; all samples where there are fewer.
        seed: of the draws.

    Returns:
        The cases in the order in which experts see them.
    """
    random = np.random.default_rng(seed)
    of_volume: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda one: one.name):
        of_volume[sample.volume].append(sample)
    shuffled = [[own[k] for k in random.permutation(len(own))] for _, own in sorted(of_volume.items())]
    drawn: list[Sample] = []
    for turn in range(max(map(len, shuffled))):
        left = [own for own in shuffled if len(own) > turn]
        drawn += [left[k][turn] for k in random.permutation(len(left))]
    drawn = drawn[:count]
    drawn = [drawn[k] for k in random.permutation(len(drawn))]
    orders = balanced_orders(sorted(drawn[0].masks), len(drawn), random)
    return [
        Case(f"case_{number:03d}", sample, order)
        for number, (sample, order) in enumerate(zip(drawn, orders, strict=True), start=1)
    ]


def balanced_orders(methods: Iterable[str], count: int, random: np.random.Generator) -> list[tuple[str, ...]]:
    """Random orders in which each method stands at each place equally often, as far as the count allows.

    Of every k cases, k the number of methods, each method is once at each place: the k turns of a random order. So
    somebody who always prefers the picture on the left gives all methods the same points.
    """
    names = list(methods)
    orders: list[tuple[str, ...]] = []
    while len(orders) < count:
        base = [names[k] for k in random.permutation(len(names))]
        orders += [tuple(base[turn:] + base[:turn]) for turn in random.permutation(len(names))]
    return orders[:count]
