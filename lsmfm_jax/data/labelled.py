"""Labelled patches in folders: found by name, paired with their companions, given a class.

A patch `<name>.nii.gz` (or TIFF, .npy) stands in a folder or one below, with `<name>_label` (mask) and
`<name>_blurred` beside it. With `train/` and `val/` in the folder, those are the sides of the split.
"""

import dataclasses
import hashlib
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from lsmfm_jax.data.mask_folders import volume_of
from lsmfm_jax.data.spreadsheets import SpreadsheetError, read_table
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.store.captions import normalise_key
from lsmfm_jax.store.layouts import COMPANIONS, SUFFIXES, stem
from lsmfm_jax.store.manifest import PatchRow
from lsmfm_jax.store.reader import PatchStore
from lsmfm_jax.volumes.names import NO_IMAGES, without_ending

# Names of the folders of the two sides, in any case; patches of a folder of the third kind are on no side.
TRAINING_FOLDERS, VALIDATION_FOLDERS, TEST_FOLDERS = ("train", "training"), ("val", "valid", "validation"), ("test",)


class LabelledDataError(LsmfmError, ValueError):
    """Labelled patches cannot be used: which file or key, why, and what to do about it."""


@dataclasses.dataclass(frozen=True)
class LabelledFile:
    """A patch on disk, in a file of its own or in a store.

    Attributes:
        name: path from the folder (from `train/` or `val/` where those are), without ending; unique on its side.
        path: the image; of a stored one, the file it was made from as the store names it.
        companions: the files beside it, by ending (`_label`, `_blurred`).
        volume: the group for splits.
        class_name: normalised, or empty where no class was asked for.
        stored: the store and its place there, for a patch of a store.
    """

    name: str
    path: pathlib.Path
    companions: dict[str, pathlib.Path]
    volume: str
    class_name: str = ""
    stored: tuple[PatchStore, int] | None = None


def find_labelled(
    folder: str | pathlib.Path,
    *,
    needs: str = "",
    prefix: str = "",
    channels: Sequence[int] = (),
    volume_pattern: str = "",
) -> list[LabelledFile]:
    """The patches of a folder and the folders one below, sorted by name.

    Masks and predictions beside a patch that has what it needs are left out.

    Args:
        folder: where they are.
        needs: a companion that every patch must have: `_label`, `_blurred`, or empty for none.
        prefix: only patches whose file name starts with it.
        channels: only patches with `_ch<n>` of one of these numbers in the file name; empty for all.
        volume_pattern: regular expression whose first group in the name is the volume; empty for the usual names.

    Raises:
        LabelledDataError: no folder, no patch, a patch without what it needs, a companion without its patch, or
            two files of one name.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise LabelledDataError(f"data.folder: {folder} is not a folder; name the one that holds the labelled patches")
    images: dict[str, pathlib.Path] = {}
    companions: dict[str, dict[str, pathlib.Path]] = {}
    for path in sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if _is_image(path)):
        name = (path.parent.relative_to(folder) / stem(path)).as_posix()
        ending = next((ending for ending in COMPANIONS if name.lower().endswith(ending)), "")
        there = companions.setdefault(name[: -len(ending)], {}) if ending else images
        if (ending or name) in there:
            raise LabelledDataError(f"{there[ending or name]} and {path} have one name; keep one of them")
        there[ending or name] = path
    alone = [str(path) for name, paths in companions.items() if name not in images for path in paths.values()]
    if alone:
        raise LabelledDataError(
            f"{len(alone)} files have no image beside them: {', '.join(alone[:5])}; add the image without "
            f"{' or '.join(COMPANIONS)} in its name, or move the file away"
        )
    # Masks of other tools and earlier predictions, beside a patch that has what it needs.
    of_patches = {name for name in images if _is_beside(name, images, companions, needs=needs)}
    found = [
        LabelledFile(name, path, companions.get(name, {}), _volume(name, volume_pattern))
        for name, path in images.items()
        if (name not in of_patches or needs in companions.get(name, {}))
        and path.name.startswith(prefix)
        and (not channels or _channel(name) in channels)
    ]
    if not found:
        raise LabelledDataError(
            f"data.folder: no patches in {folder} or one below with one of {', '.join(SUFFIXES)}"
            f"{f', of the {len(images)} there none fits data.prefix and data.channels' if images else ''}; "
            f"{'change those' if images else 'put labelled patches there, or remove the folder or name another'}"
        )
    lacking = [file.name for file in found if needs and needs not in file.companions]
    if lacking:
        raise LabelledDataError(
            f"{folder}: {len(lacking)} patches have no {needs} file beside them: {', '.join(lacking[:5])}; "
            f"add <name>{needs}.nii.gz, or move the patches away"
        )
    return found


def side_folders(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path | None] | None:
    """The folders of the training and of the validation patches in a folder; None where it has no sides.

    Raises:
        LabelledDataError: two folders of one side, or one of validation or test patches without one to train on, which
            would all be taken for training patches.
    """
    inside = [path for path in sorted(folder.glob("*")) if path.is_dir()]
    kinds = (TRAINING_FOLDERS, VALIDATION_FOLDERS, TEST_FOLDERS)
    found = [[path for path in inside if path.name.lower() in names] for names in kinds]
    twice = next((paths for paths in found[:2] if len(paths) > 1), None)
    if twice:
        raise LabelledDataError(f"data.folder: {twice[0]} and {twice[1]} are folders of one side; keep one of them")
    training, validation, test = found
    if training:
        return training[0], validation[0] if validation else None
    if validation or test:
        raise LabelledDataError(
            f"data.folder: {(validation or test)[0]} is there without a folder {folder / TRAINING_FOLDERS[0]}, and its "
            f"patches would be trained on; put the training patches into {TRAINING_FOLDERS[0]}/, or name another folder"
        )
    return None


def with_classes(
    files: Sequence[LabelledFile], *, source: str, table: str | pathlib.Path = "", classes: Sequence[str] = ()
) -> list[LabelledFile]:
    """The same patches with their classes; those of other `classes` are left out where some are named.

    Args:
        files: patches.
        source: `name` (before `_patch_`), `folder`, or `csv`; both of the former are the caption key in a store.
        table: for `csv`: a file with the columns `name` (file name or path, without ending) and `class`.
        classes: the classes to keep; empty for all.

    Raises:
        LabelledDataError: a patch whose class cannot be told.
    """
    known = _read_classes(pathlib.Path(table)) if source == "csv" else {}
    wanted = {normalise_key(name) for name in classes}
    kept = []
    for file in files:
        place, _, short = file.name.rpartition("/")
        if source == "csv":
            name = known.get(_composed(file.name)) or known.get(_composed(short))
            hint = f"{table} has no row with this name"
        elif file.stored:
            name, hint = file.stored[0].rows[file.stored[1]].caption_key, "the store has no caption key for it"
        elif source == "folder":
            name, hint = place, "with data.class_from folder it must stand in the folder of its class"
        else:
            match = re.match(r"(.+?)_patch_\d+", short)
            name, hint = match and match[1], "with data.class_from name it must be called <class>_patch_<n>..."
        if not name:
            raise LabelledDataError(f"{file.path}: its class is unknown: {hint}")
        if not wanted or normalise_key(name) in wanted:
            kept.append(dataclasses.replace(file, class_name=normalise_key(name)))
    return kept


def rows_of(files: Iterable[LabelledFile]) -> list[PatchRow]:
    """The patches as rows of the kind that splits are drawn from; hashes are those of the files."""
    rows = []
    for index, file in enumerate(files):
        if file.stored:
            row = file.stored[0].rows[file.stored[1]]
            facts = {"volume": file.volume, "caption_key": file.class_name, "sha256": row.pixels_sha256 or row.sha256}
            rows.append(dataclasses.replace(row, **facts))
            continue
        digest = hashlib.sha256(file.path.read_bytes()).hexdigest()
        unread = {"percentiles": {}, "minimum": 0.0, "maximum": 0.0, "mean": 0.0, "dtype": "", "shape": (0, 0, 0)}
        rows.append(
            PatchRow(
                id=file.name,
                part="",
                index=index,
                source="labelled",
                layout="flat",
                volume=file.volume,
                channel=_channel(file.name) or 0,
                caption_key=file.class_name,
                voxel_size_um=None,
                voxel_size_source="",
                sha256=digest,
                file=file.path.as_posix(),
                pixels_sha256=digest,
                **unread,
            )
        )
    return rows


def _is_beside(name: str, images: Iterable[str], companions: Mapping[str, Iterable[str]], *, needs: str) -> bool:
    """Whether a name is that of a patch which has what it needs, with the ending of a mask or a prediction."""
    patch = without_ending(name, NO_IMAGES)
    return patch != name and patch in images and (not needs or needs in companions.get(patch, ()))


def _is_image(path: pathlib.Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()


def _channel(name: str) -> int | None:
    match = re.search(r"_ch(\d+)(?:_|$)", name.rpartition("/")[2])
    return int(match[1]) if match else None


def _volume(name: str, pattern: str) -> str:
    folder, _, short = name.rpartition("/")
    volume = volume_of(name if pattern else short, pattern=pattern or None)
    # Numbers start again in each class folder, unless a pattern says what a volume is.
    return f"{folder}/{volume}" if folder and not pattern else volume


def _read_classes(table: pathlib.Path) -> dict[str, str]:
    try:
        rows = read_table(table, ("name", "class"))
    except SpreadsheetError as error:
        raise LabelledDataError(f"data.csv: {error}") from None
    classes: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, cells in rows:
        if not cells["name"] or not cells["class"]:
            raise LabelledDataError(
                f"data.csv: {table}, line {line}: without a name or a class; fill it in or remove it"
            )
        folder, slash, short = cells["name"].replace("\\", "/").rpartition("/")
        name = _composed(folder + slash + stem(pathlib.Path(short)))
        if classes.setdefault(name, cells["class"]) != cells["class"]:
            raise LabelledDataError(
                f"data.csv: {table}, line {line}: {name} is of class {cells['class']}, and of {classes[name]} in line "
                f"{lines[name]}; keep one of them"
            )
        lines.setdefault(name, line)
    return classes


def _composed(name: str) -> str:
    """A name with its accents as single characters: file systems and spreadsheets differ in this."""
    return unicodedata.normalize("NFC", name)
