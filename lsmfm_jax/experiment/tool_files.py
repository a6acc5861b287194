"""Patches on their way to an outside tool and its masks on their way back."""

import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import tifffile

from lsmfm_jax.data.label_grid import on_grid_of
from lsmfm_jax.data.labelled import LabelledFile
from lsmfm_jax.experiment.commands import CommandFailed
from lsmfm_jax.experiment.tools import ToolFile
from lsmfm_jax.files import replacing, replacing_folder
from lsmfm_jax.metrics.instances import components, renumber
from lsmfm_jax.volumes.names import stem
from lsmfm_jax.volumes.read import VolumeInfo, read_single, write_nifti

# What tools read without surprises; other integers and floats are handed over as float32.
_TYPES = ("uint8", "uint16", "float32")


def hand_over(files: Iterable[LabelledFile], out: pathlib.Path, tool: ToolFile, *, labels: bool) -> None:
    """Writes patches as a tool wants them, whole or not at all; a folder that is there stays.

    Args:
        files: patches with their companions.
        out: folder to make.
        tool: which format it takes, and how it calls labels.
        labels: write the labels beside the images, too.

    Raises:
        CommandFailed: a patch has no label.
        LabelGridError: a label lies on another grid than its image.
    """
    if out.exists():
        return
    with replacing_folder(out) as folder:
        for file in files:
            patch = stem(file.path)
            image, info = read_single(file.path, allow_constant=True)
            if not labels:
                _write(folder / f"{patch}.{tool.images}", image, info)
                continue
            masks = _masks_of(file, image, info, tool)
            for name, box in _pieces(patch, masks, tool):
                _write(folder / f"{name}.{tool.images}", image[box], info)
                _write(folder / tool.labels.format(patch=name), masks[box], info)


def _masks_of(file: LabelledFile, image: np.ndarray, info: VolumeInfo, tool: ToolFile) -> np.ndarray:
    """The label of a patch as a tool learns from it, on the grid of the image."""
    if "_label" not in file.companions:
        raise CommandFailed(f"{file.path}: no label beside it, and the tool is trained on labels")
    label, of_label = read_single(file.companions["_label"], mask=True)
    return as_masks(on_grid_of(label, of_label, like=info, like_shape=image.shape), tool.masks)


def _pieces(patch: str, masks: np.ndarray, tool: ToolFile) -> Iterator[tuple[str, slice | int]]:
    """Names and places of what a tool is given of one patch: all of it, or the planes that hold labels."""
    if not tool.planes:
        yield patch, slice(None)
        return
    for z in np.flatnonzero(masks.any(axis=(1, 2))):
        yield f"{patch}_plane{z:04d}", int(z)


def as_masks(label: np.ndarray, masks: str) -> np.ndarray:
    """A label as a tool learns from it, uint16.

    Args:
        label: [z, y, x]; a mask, or instances.
        masks: `mask` (1 is foreground) or `labels` (an instance has a number: where the label has one value above 0,
            its connected components).

    Raises:
        CommandFailed: more instances than 16 bits can count.
    """
    if masks == "mask":
        return (label > 0).astype(np.uint16)
    several = len(np.unique(label[label > 0])) > 1
    instances = renumber(np.asarray(label, np.int64)) if several else components(label > 0)
    if instances.max(initial=0) > np.iinfo(np.uint16).max:
        raise CommandFailed(f"{instances.max()} instances in one patch; outside tools are given at most 65535")
    return instances.astype(np.uint16)


def only_file(folder: pathlib.Path, pattern: str, tool: ToolFile) -> pathlib.Path:
    """The one file below a folder that a pattern finds.

    Raises:
        CommandFailed: there is none, or there are several.
    """
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    if len(found) != 1:
        raise CommandFailed(f"{tool.title}: {len(found)} files {pattern} in {folder} after training; one is needed")
    return found[0]


def gather(names: Iterable[str], found: pathlib.Path, out: pathlib.Path, tool: ToolFile) -> None:
    """Links the mask of each patch under the patch's own name, for `lsmfm evaluate`.

    Args:
        names: of the patches.
        found: where the tool wrote.
        out: folder to make.
        tool: what it calls its masks.

    Raises:
        CommandFailed: there is no mask of a patch.
    """
    if out.exists():
        return
    with replacing_folder(out) as folder:
        for patch in names:
            mask = found / tool.output.format(patch=patch)
            if not mask.is_file():
                others = sorted(path.name for path in found.iterdir()) if found.is_dir() else []
                raise CommandFailed(
                    f"{tool.title} wrote no {mask.name}; in {found} are {', '.join(others[:3]) or 'no files'}"
                )
            ending = mask.name.removeprefix(stem(mask))
            (folder / f"{patch}{ending}").symlink_to(mask.resolve())


def _write(path: pathlib.Path, array: np.ndarray, info: VolumeInfo) -> None:
    """Writes a volume, or one plane of it as TIFF."""
    array = array if array.dtype.name in _TYPES else array.astype(np.float32)
    if path.name.endswith(".nii.gz"):
        write_nifti(path, array, like=info)
        return
    axes = "ZYX"[-array.ndim :]
    with replacing(path) as temporary, temporary.open("wb") as file:
        tifffile.imwrite(file, np.ascontiguousarray(array), photometric="minisblack", metadata={"axes": axes})
