"""Which labelled patches train and which validate: by name, by folder, or drawn by whole volumes of each class."""

from collections.abc import Sequence
from typing import NamedTuple

from lsmfm_jax.data.labelled import LabelledDataError, LabelledFile, rows_of
from lsmfm_jax.data.splits import choose_few, split_by_volume


class Sides(NamedTuple):
    """The patches to train on, and those to validate on (perhaps none)."""

    train: tuple[LabelledFile, ...]
    validation: tuple[LabelledFile, ...]


def choose_sides(
    found: "Sequence[LabelledFile] | Sides",
    *,
    validation_frac: float,
    seed: int,
    by_file: bool = False,
    train_names: Sequence[str] = (),
    validation_names: Sequence[str] = (),
    few_shot: int = 0,
) -> Sides:
    """Which patches train and which validate.

    Args:
        found: all patches, or the sides that the folders give.
        validation_frac: share of the patches for validation, by whole volumes; 0 for none.
        seed: of the draws.
        by_file: let patches of one volume stand on both sides.
        train_names: names of the training patches, as in `LabelledFile.name` or without the folder; with these or
            `validation_names` both sides are as named, one volume on both sides included.
        validation_names: names of the validation patches.
        few_shot: training patches drawn from those there are, of each class; 0 for all.

    Raises:
        LabelledDataError: an unknown name, a patch on both sides, a volume on both sides that was not asked for,
            too few patches.
    """
    if train_names or validation_names:
        every = list(found) if not isinstance(found, Sides) else [*found.train, *found.validation]
        sides = Sides(_by_name(every, train_names), _by_name(every, validation_names))
        both = {file.path for file in sides.train} & {file.path for file in sides.validation}
    elif isinstance(found, Sides):
        sides = found
        both = set() if by_file else {f.volume for f in found.train} & {f.volume for f in found.validation}
    else:
        sides, both = _drawn(found, validation_frac=validation_frac, seed=seed, by_file=by_file), set()
    if both:
        raise LabelledDataError(
            f"on both the training and the validation side: {', '.join(sorted(map(str, both)))}. Move patches so that "
            "a volume is on one side, or set data.split_by to file if this is meant"
        )
    if not sides.train:
        raise LabelledDataError("data.train_names: (); name at least one training patch")
    if few_shot:
        sides = Sides(_few_of_each(sides.train, few_shot, seed=seed), sides.validation)
    return sides


def _drawn(found: Sequence[LabelledFile], *, validation_frac: float, seed: int, by_file: bool) -> Sides:
    if not validation_frac:
        return Sides(tuple(found), ())
    if len(found) == 1:
        raise LabelledDataError(
            f"{found[0].path} is the only patch: nothing is left to validate on. Add patches, or set "
            "data.validation_frac to 0 to train on it without validation"
        )
    classes_of = {file.volume: set[str]() for file in found}
    for file in found:
        classes_of[file.volume].add(file.class_name)
    if len({file.class_name for file in found}) == 1 or max(map(len, classes_of.values())) > 1:
        return _split(found, validation_frac=validation_frac, seed=seed, by_file=by_file)
    # Class by class, so that each is judged; a class of one volume can only train.
    train: list[LabelledFile] = []
    validation: list[LabelledFile] = []
    for class_name in sorted({file.class_name for file in found}):
        of_class = [file for file in found if file.class_name == class_name]
        if len(of_class if by_file else {file.volume for file in of_class}) == 1:
            train += of_class
            continue
        sides = _split(of_class, validation_frac=validation_frac, seed=seed, by_file=by_file)
        train += sides.train
        validation += sides.validation
    return Sides(tuple(train), tuple(validation))


def _split(found: Sequence[LabelledFile], *, validation_frac: float, seed: int, by_file: bool) -> Sides:
    split = split_by_volume(rows_of(found), seed=seed, validation_frac=validation_frac, by_file=by_file)
    return Sides(tuple(found[i] for i in split.train), tuple(found[i] for i in split.validation))


def _few_of_each(files: Sequence[LabelledFile], count: int, *, seed: int) -> tuple[LabelledFile, ...]:
    chosen = []
    for class_name in sorted({file.class_name for file in files}):
        of_class = [file for file in files if file.class_name == class_name]
        if count > len(of_class):
            of_what = f" of class {class_name}" if class_name else ""
            raise LabelledDataError(f"data.few_shot: {count}; there are {len(of_class)} training patches{of_what}")
        chosen += [of_class[index] for index in choose_few(rows_of(of_class), count=count, seed=seed)]
    return tuple(chosen)


def _by_name(files: Sequence[LabelledFile], names: Sequence[str]) -> tuple[LabelledFile, ...]:
    chosen = []
    for name in names:
        fits = [file for file in files if name in (file.name, file.name.rpartition("/")[2])]
        if len(fits) != 1:
            near = ", ".join(file.name for file in (fits or files)[:8])
            raise LabelledDataError(
                f"data.train_names, data.validation_names: {name!r} fits {len(fits)} patches; there are {near}"
            )
        chosen.append(fits[0])
    return tuple(chosen)
