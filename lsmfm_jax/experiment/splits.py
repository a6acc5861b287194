"""Which patches train, validate and test in each fold: by volume, drawn once, shared by all arms, kept on disk.

The volumes of a type are dealt into folds. A fold tests on a few patches of its own volumes, one of each of as many
volumes as the rest can spare; patches of these volumes are nowhere else in the fold. Of all other volumes some
validate and the others train. Smaller sizes are parts of larger ones, so a
learning curve adds patches and changes none.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from lsmfm_jax.data.labelled import LabelledFile, find_labelled, rows_of
from lsmfm_jax.data.splits import choose_few, folds
from lsmfm_jax.experiment.declaration import NEEDS, DataType, Experiment, ExperimentError, Study
from lsmfm_jax.files import file_sha256, read_sealed, replace_file, seal
from lsmfm_jax.store.manifest import PatchRow


class Sides(NamedTuple):
    """Names of the patches of one cell, without ending."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_path(workdir: pathlib.Path, task: str, group: str, fold: int) -> pathlib.Path:
    """The file of one fold's split."""
    return workdir / "splits" / task / group / f"fold{fold}.json"


def draw_splits(experiment: Experiment, folder: pathlib.Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Draws the splits of all folds, as the files have them: by task, group and fold from 1.

    Raises:
        ExperimentError: a type with too few patches or volumes for what is declared.
        LabelledDataError: the folder lacks what a task needs.
    """
    drawn = {}
    for study in experiment.studies:
        for group, types in study.groups.items():
            parts = [_of_type(experiment, study, one, folder, share) for one, share in _shares(study, types)]
            for fold in range(experiment.folds):
                drawn[study.task, group, fold + 1] = _joined([part[fold] for part in parts])
    return drawn


def write_splits(workdir: pathlib.Path, drawn: dict[tuple[str, str, int], dict[str, Any]]) -> None:
    """Writes what is not there yet, and refuses a folder whose splits are others.

    Raises:
        ExperimentError: a split that is there was drawn from other patches or in another way.
        DamagedFile: a split that is there was edited.
    """
    for key, body in drawn.items():
        path = split_path(workdir, *key)
        if not path.exists():
            replace_file(path, seal(body))
        elif (there := read_sealed(path)) != body:
            raise ExperimentError(
                f"{path}: {_difference(there, body)}; put the patches back as they were, or name another --workdir"
            )


def read_sides(path: pathlib.Path, size: int) -> Sides:
    """The sides of one cell.

    Raises:
        DamagedFile: the split is missing or was edited.
    """
    body = read_sealed(path)
    of_size = body["sizes"][str(size)]
    return Sides(tuple(of_size["train"]), tuple(of_size["validation"]), tuple(body["test"]))


def _shares(study: Study, types: Sequence[DataType]) -> list[tuple[DataType, dict[int, int]]]:
    """For each type the patches that each size gives it: of several classes as equal numbers as there can be."""
    count = len(types)
    return [
        (one, {size: size // count + (place < size % count) for size in study.sizes}) for place, one in enumerate(types)
    ]


def _of_type(
    experiment: Experiment, study: Study, of: DataType, folder: pathlib.Path, sizes: dict[int, int]
) -> list[dict[str, Any]]:
    """One type's part of each fold."""
    where = f"{study.task}/{of.name}"
    if min(sizes.values()) < 2:
        raise ExperimentError(
            f"{where}: size {min(sizes)} leaves {min(sizes.values())} patches; each class needs 2, one on each side"
        )
    files = find_labelled(folder, needs=NEEDS[study.task], prefix=of.prefix, channels=of.channels)
    rows = rows_of(files)
    volumes = {row.volume for row in rows}
    if len(volumes) < experiment.folds:
        raise ExperimentError(
            f"{where}: {len(rows)} patches of {len(volumes)} volumes in {folder}; {experiment.folds} folds need at "
            f"least {experiment.folds} volumes: add patches of other volumes, or declare fewer folds"
        )
    held = folds(rows, count=experiment.folds, seed=experiment.split_seed)
    for test_volumes in range(experiment.test_patches, 0, -1):
        parts = [
            _of_fold(experiment, files, rows, [rows[i] for i in one.validation], test_volumes, sizes) for one in held
        ]
        if all(part is not None for part in parts):
            return parts
    raise ExperimentError(
        f"{where}: {len(rows)} patches of {len(volumes)} volumes in {folder}; size {max(sizes)} needs "
        f"{max(sizes.values())} of them beside {experiment.test_patches} for testing, with no volume on two sides: add "
        "patches or volumes, or declare smaller sizes"
    )


def _of_fold(
    experiment: Experiment,
    files: Sequence[LabelledFile],
    rows: Sequence[PatchRow],
    own: Sequence[PatchRow],
    test_volumes: int,
    sizes: dict[int, int],
) -> dict[str, Any] | None:
    """One fold: its test patches from the volumes that are its own; None where too little is left to learn from."""
    order = _shuffled(own, experiment.split_seed)
    volumes = list(dict.fromkeys(row.volume for row in order))[:test_volumes]
    # A patch of each volume first, then second ones.
    queues = [[row for row in order if row.volume == volume] for volume in volumes]
    turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    test = turns[: experiment.test_patches]
    pool = _shuffled([row for row in rows if row.volume not in volumes], experiment.split_seed)
    largest = max(sizes.values())
    wanted = {count: max(1, round(experiment.validation_frac * count)) for count in sizes.values()}
    validation = _validation_volumes(pool, wanted[largest], largest - wanted[largest])
    if len(test) < experiment.test_patches or validation is None:
        return None
    validating = [row for row in pool if row.volume in validation]
    training = [row for row in pool if row.volume not in validation]
    used = {row.id: row.volume for row in (*test, *validating, *training)}
    return {
        "test": [row.id for row in test],
        "sizes": {
            str(size): {
                "train": [row.id for row in training[: count - wanted[count]]],
                "validation": [row.id for row in validating[: wanted[count]]],
            }
            for size, count in sizes.items()
        },
        "patches": {file.name: _record(file, used[file.name]) for file in files if file.name in used},
    }


def _validation_volumes(pool: Sequence[PatchRow], wanted: int, training: int) -> set[str] | None:
    """The first volumes that hold enough patches to validate on and leave enough to train on."""
    volumes = list(dict.fromkeys(row.volume for row in pool))
    for first in range(len(volumes)):
        chosen: set[str] = set()
        for volume in volumes[first:] + volumes[:first]:
            chosen.add(volume)
            count = sum(row.volume in chosen for row in pool)
            if count >= wanted and len(pool) - count >= training:
                return chosen
    return None


def _shuffled(rows: Sequence[PatchRow], seed: int) -> list[PatchRow]:
    """The rows in an order that depends on the seed and their names alone, and that stays when others join them."""
    left, order = list(rows), []
    while left:
        (first,) = choose_few(left, count=1, seed=seed)
        order.append(left.pop(first))
    return order


def _record(file: LabelledFile, volume: str) -> dict[str, Any]:
    paths = {"": file.path, **file.companions}
    return {"volume": volume, "sha256": {ending: file_sha256(path) for ending, path in sorted(paths.items())}}


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The parts of several classes as one split."""
    sizes = parts[0]["sizes"]
    return {
        "test": [name for part in parts for name in part["test"]],
        "sizes": {
            size: {side: [name for part in parts for name in part["sizes"][size][side]] for side in sizes[size]}
            for size in sizes
        },
        "patches": {name: record for part in parts for name, record in part["patches"].items()},
    }


def _difference(there: dict[str, Any], now: dict[str, Any]) -> str:
    """What is another in a split, in a few words."""
    before, after = there["patches"], now["patches"]
    gone, new = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
    changed = sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
    for names, what in ((gone, "is gone"), (new, "is new"), (changed, "has other contents")):
        if names:
            return f"the split was written with other patches: {names[0]} {what} ({len(names)} in all)"
    return "the patches would be split in another way than when the split was written"
