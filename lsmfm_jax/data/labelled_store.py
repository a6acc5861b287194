"""Patches of a store as labelled ones: for classification, and for deblurring with a blur that is made."""

import pathlib
from collections.abc import Sequence

from lsmfm_jax.data.labelled import LabelledDataError, LabelledFile
from lsmfm_jax.data.mask_folders import volume_of
from lsmfm_jax.store.reader import HEADER, PatchStore


def is_store(folder: str | pathlib.Path) -> bool:
    """Whether a folder is a patch store."""
    return (pathlib.Path(folder) / HEADER).is_file()


def find_stored(
    folder: str | pathlib.Path,
    *,
    needs: str = "",
    prefix: str = "",
    channels: Sequence[int] = (),
    volume_pattern: str = "",
) -> list[LabelledFile]:
    """The patches of a store, sorted by name; as `find_labelled`, which see for the arguments.

    Names are the ids in the store, classes the caption keys.

    Raises:
        LabelledDataError: no patch, or what they need, which a store does not hold.
        StoreError: a store of another version.
        DamagedFile: a text file of the store fails its checksum.
    """
    folder = pathlib.Path(folder)
    if needs:
        instead = " or set blur.source to made" if needs == "_blurred" else ""
        raise LabelledDataError(
            f"data.folder: {folder} is a store, which holds no {needs} volumes; name the folder of image files that it "
            f"was made from, with <name>{needs} beside each <name>,{instead}".rstrip(",")
        )
    store = PatchStore.open(folder)
    found = [
        LabelledFile(
            row.id,
            folder / row.file,
            {},
            volume_of(row.id, pattern=volume_pattern) if volume_pattern else row.volume,
            stored=(store, index),
        )
        for index, row in enumerate(store.rows)
        if pathlib.PurePosixPath(row.file).name.startswith(prefix) and (not channels or row.channel in channels)
    ]
    if not found:
        raise LabelledDataError(
            f"data.folder: none of the {len(store)} patches of {folder} fits data.prefix and data.channels"
        )
    return sorted(found, key=lambda file: file.name)
