"""Which patches train and which validate: by volume, seeded, the same whatever the order of the patches.

Volumes are drawn in the order of a hash of (seed, volume), so the draw depends on no random generator, and
another volume joining the data leaves the order of the rest as it was.
"""

import dataclasses
import hashlib
import pathlib
from collections import Counter
from collections.abc import Iterable, Sequence

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import read_sealed, replace_file, seal
from lsmfm_jax.store.manifest import PatchRow
from lsmfm_jax.volumes.names import describe_volumes


class SplitError(LsmfmError, ValueError):
    """Patches cannot be split as asked, or a recorded split does not fit them."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Positions in a list of rows, sorted, and the groups (volumes, or files if drawn by file) on each side.

    Attributes:
        unassigned: positions of rows that a recorded split does not name, such as patches added later.
        by_file: whether files were drawn instead of volumes, so that a volume may be on both sides.
        records: for `save`, by side: id, volume and hashes of each patch.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    train_volumes: tuple[str, ...]
    validation_volumes: tuple[str, ...]
    unassigned: tuple[int, ...] = ()
    by_file: bool = False
    records: dict[str, list[dict[str, str]]] = dataclasses.field(default_factory=dict)

    def save(self, path: str | pathlib.Path) -> None:
        """Record the split as JSON with a checksum: the id and hashes of each patch, and the volumes."""
        volumes = {"train": self.train_volumes, "validation": self.validation_volumes}
        body = {"by_file": self.by_file, "volumes": volumes} | self.records
        replace_file(pathlib.Path(path), seal(body))


def split_by_volume(
    rows: Sequence[PatchRow], *, seed: int, validation_frac: float = 0.1, by_file: bool = False
) -> Split:
    """Draw volumes for validation until their share of the patches is as close to `validation_frac` as they
    allow.

    `rows` may come from several stores. `by_file` draws files instead, which lets patches of one volume stand
    on both sides: only for data without volumes, and for comparison with results that were split so.

    Raises:
        SplitError: fewer than two volumes, a share outside (0, 1), or the same pixels in two volumes.
    """
    if not 0 < validation_frac < 1:
        raise SplitError(f"validation_frac is {validation_frac}, expected a share between 0 and 1, such as 0.1.")
    counts = _count(rows, by_file=by_file)
    target = validation_frac * len(rows)
    order = _hash_order(counts, seed)
    chosen: set[str] = set()
    taken = 0
    for group in order:
        closer = abs(taken + counts[group] - target) < abs(taken - target)
        if closer and len(chosen) < len(counts) - 1:
            chosen.add(group)
            taken += counts[group]
    if not chosen:
        chosen = {min(order, key=lambda group: counts[group])}
    return _assemble(rows, chosen, by_file=by_file)


def folds(rows: Sequence[PatchRow], *, count: int, seed: int, by_file: bool = False) -> list[Split]:
    """Cut the volumes into `count` folds of about equal size; each is the validation side of one split.

    Raises:
        SplitError: fewer volumes than folds, or the same pixels in two volumes.
    """
    counts = _count(rows, by_file=by_file)
    if not 2 <= count <= len(counts):
        raise SplitError(f"{count} folds of {len(counts)} {_unit(by_file)}: expected from 2 to {len(counts)}.")
    members: list[set[str]] = [set() for _ in range(count)]
    sizes = [0] * count
    # The largest first (the sort keeps the hash order among equals), or the last fold may stay far too small.
    for group in sorted(_hash_order(counts, seed), key=lambda group: -counts[group]):
        smallest = sizes.index(min(sizes))
        members[smallest].add(group)
        sizes[smallest] += counts[group]
    return [_assemble(rows, chosen, by_file=by_file) for chosen in members]


def choose_few(rows: Sequence[PatchRow], *, count: int, seed: int) -> tuple[int, ...]:
    """Draw positions of `count` rows for few-shot training; a larger draw of the same seed holds the smaller.

    Raises:
        SplitError: fewer rows than asked for.
    """
    if not 1 <= count <= len(rows):
        raise SplitError(f"{count} patches asked for, expected from 1 to the {len(rows)} there are.")
    position = {row.id: i for i, row in enumerate(rows)}
    return tuple(sorted(position[name] for name in _hash_order(position, seed)[:count]))


def load_split(path: str | pathlib.Path, rows: Sequence[PatchRow], *, by_file: bool = False) -> Split:
    """Read a recorded split and find its patches among `rows`, in whatever order they are now.

    Raises:
        SplitError: it names patches that are not there or have other pixels, or has a volume on both sides
            while `by_file` is not asked for.
        DamagedFile: the file is missing or was changed.
    """
    body = read_sealed(pathlib.Path(path))
    position = {row.id: i for i, row in enumerate(rows)}
    sides = {}
    for side in ("train", "validation"):
        missing = [record["id"] for record in body[side] if record["id"] not in position]
        if missing:
            raise SplitError(
                f"{path}: {len(missing)} patch(es) of the {side} side are not in the data, such as "
                f"{missing[0]!r}: name the stores that the split was drawn from, or draw a new split."
            )
        found = [position[record["id"]] for record in body[side]]
        changed = [i for i, record in zip(found, body[side], strict=True) if _record(rows[i]) != record]
        if changed:
            raise SplitError(
                f"{path}: patch {rows[changed[0]].id!r} has other pixels or another volume than when the "
                "split was drawn: draw a new split."
            )
        sides[side] = tuple(sorted(found))
    unassigned = tuple(sorted(set(range(len(rows))) - {i for side in sides.values() for i in side}))
    split = Split(
        sides["train"],
        sides["validation"],
        tuple(body["volumes"]["train"]),
        tuple(body["volumes"]["validation"]),
        unassigned=unassigned,
        by_file=body["by_file"],
        records={side: body[side] for side in sides},
    )
    _refuse_shared(split, rows, by_file=by_file, where=str(path))
    return split


def describe_sides(train: Iterable[str], validation: Iterable[str]) -> list[str]:
    """Give what to print before training, a line a side: its volumes and their patches, from the volume of each patch.

    For example `train: 2 volumes (a 4 patches, b 2)`. A volume on both sides gives a third line.
    """
    train, validation = list(train), list(validation)
    lines = [f"train: {describe_volumes(train)}", f"validation: {describe_volumes(validation)}"]
    both = set(train) & set(validation)
    if both:
        lines.append(f"on both sides: {describe_volumes(v for v in (*train, *validation) if v in both)}")
    return lines


def _count(rows: Sequence[PatchRow], *, by_file: bool) -> Counter[str]:
    ids = Counter(row.id for row in rows)
    if len(ids) < len(rows):
        raise SplitError(
            f"two patches are called {ids.most_common(1)[0][0]!r}: ingest each data set under a source name of its own."
        )
    _refuse_repeated_pixels(rows, by_file=by_file)
    counts = Counter(_group(row, by_file=by_file) for row in rows)
    if len(counts) < 2:
        advice = "" if by_file else ", or split by file (by_file), which says nothing of new volumes"
        raise SplitError(
            f"{len(rows)} patches of {len(counts)} {_unit(by_file)}: two are needed, one for each side. "
            f"Add data of another volume{advice}."
        )
    return counts


def _refuse_repeated_pixels(rows: Sequence[PatchRow], *, by_file: bool) -> None:
    owner: dict[str, PatchRow] = {}
    for row in rows:
        first = owner.setdefault(row.pixels_sha256 or row.id, row)
        # Within one group they always land on one side.
        if _group(first, by_file=by_file) != _group(row, by_file=by_file):
            raise SplitError(
                f"patches {first.id!r} and {row.id!r} have the same pixels: one file is there twice, or one data set "
                "in two stores; keep one of them."
            )


def _refuse_shared(split: Split, rows: Sequence[PatchRow], *, by_file: bool, where: str) -> None:
    both = {rows[i].id for i in split.train} & {rows[i].id for i in split.validation}
    if not by_file:
        both |= {rows[i].volume for i in split.train} & {rows[i].volume for i in split.validation}
    if both:
        raise SplitError(
            f"{where}: on both the training and the validation side: {', '.join(sorted(both))}. "
            "Draw a split by volume, or ask for a split by file (by_file) if this is meant."
        )


def _assemble(rows: Sequence[PatchRow], chosen: set[str], *, by_file: bool) -> Split:
    groups = [_group(row, by_file=by_file) for row in rows]
    train = tuple(i for i, group in enumerate(groups) if group not in chosen)
    validation = tuple(i for i, group in enumerate(groups) if group in chosen)
    return Split(
        train,
        validation,
        train_volumes=tuple(sorted(set(groups) - chosen)),
        validation_volumes=tuple(sorted(chosen)),
        by_file=by_file,
        records={
            "train": [_record(rows[i]) for i in train],
            "validation": [_record(rows[i]) for i in validation],
        },
    )


def _hash_order(names: Iterable[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())


def _group(row: PatchRow, *, by_file: bool) -> str:
    return f"{row.source}/{row.file}" if by_file else row.volume


def _record(row: PatchRow) -> dict[str, str]:
    return {"id": row.id, "volume": row.volume, "sha256": row.sha256, "pixels_sha256": row.pixels_sha256}


def _unit(by_file: bool) -> str:
    return "file(s)" if by_file else "volume(s)"
