"""Patches of a store that were cut from volumes, as files beside their labels, for finetuning or for annotating."""

import pathlib
import re

import numpy as np

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.store.reader import PatchStore
from lsmfm_jax.volumes.open import open_volume
from lsmfm_jax.volumes.read import VolumeInfo, write_nifti


class PairsError(LsmfmError, ValueError):
    """Patches cannot be written beside labels."""


def write_pairs(
    store: str | pathlib.Path,
    folder: str | pathlib.Path,
    *,
    volume: str | None = None,
    labels: str | pathlib.Path | None = None,
) -> list[pathlib.Path]:
    """Write `<volume>_z<Z>_y<Y>_x<X>.nii.gz` for each cut patch and, with `labels`, its `_label.nii.gz`.

    Args:
        store: a store that `cut` has filled.
        folder: made if it is not there; files of the same names are replaced.
        volume: the only volume to write, as the store names it; may be left out where there is only one.
        labels: a volume of the same shape as the one that was cut: the patch's box of it is its label. Without
            it, the images alone, to be annotated.

    Returns:
        The image files, in the store's order.

    Raises:
        PairsError: no patch of the store was cut, several volumes and labels of one, or labels that end before
            a patch does.
        VolumeError: the labels cannot be read.
    """
    opened, folder = PatchStore.open(store), pathlib.Path(folder)
    rows = [(i, row) for i, row in enumerate(opened.rows) if row.origin is not None and volume in (None, row.volume)]
    names = sorted({row.volume for _, row in rows})
    if not rows:
        known = sorted({row.volume for row in opened.rows if row.origin is not None})
        listed = ", ".join(known) or "none; fill it with `lsmfm data cut`"
        raise PairsError(f"{store}: it has no patch cut from {volume or 'a volume'}; its cut volumes: {listed}")
    if labels is not None and len(names) > 1:
        raise PairsError(f"{store}: labels are of one volume; choose one with --volume: {', '.join(names)}")
    masks = {}
    if labels is not None:
        masks = {level: open_volume(labels, level=level, mask=True) for level in {row.level for _, row in rows}}
        for _, row in rows:
            ends = [start + size for start, size in zip(row.origin, row.shape, strict=True)]
            if any(end > size for end, size in zip(ends, masks[row.level].shape, strict=True)):
                raise PairsError(
                    f"{labels}: its {masks[row.level].shape} voxels end before the patch {row.id}; "
                    f"give the labels of {row.volume}"
                )
    several = len({row.channel for _, row in rows}) > 1
    written = []
    for i, row in rows:
        stem = re.sub(r"\W+", "_", row.volume.rpartition("/")[2]).strip("_") or "volume"
        stem += (f"_ch{row.channel}" if several else "") + "_z{:05d}_y{:05d}_x{:05d}".format(*row.origin)
        info = VolumeInfo(folder, row.voxel_size_um, row.voxel_size_source)
        if labels is not None:
            z, y, x = (slice(start, start + size) for start, size in zip(row.origin, row.shape, strict=True))
            mask = _whole_numbers(masks[row.level].read((z, y, x)), labels)
            write_nifti(folder / f"{stem}_label.nii.gz", mask, like=info)
        write_nifti(folder / f"{stem}.nii.gz", opened.read(i), like=info)
        written.append(folder / f"{stem}.nii.gz")
    return written


def _whole_numbers(mask: np.ndarray, labels: str | pathlib.Path) -> np.ndarray:
    if mask.dtype.kind == "f" and (mask != np.rint(mask)).any():
        raise PairsError(f"{labels}: labels are whole numbers, and it holds others; give a mask, not probabilities")
    largest = int(mask.max(initial=0))
    # The smallest type that holds them all; labels of 64 bits are more than NIfTI readers agree on.
    return mask.astype(np.min_scalar_type(max(largest, 1)))
