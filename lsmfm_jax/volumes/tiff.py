"""TIFF stacks to arrays, with the voxel size that ImageJ or OME wrote; every plane is accounted for or refused.

A TIFF can hold several images (series), pages that belong to none, fewer planes than it promises, and parts of an
image whose other planes are in other files. tifffile reads the first series, and zeros for what is missing; here each
of these is either read whole or refused by name.
"""

import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tifffile

from lsmfm_jax.volumes.formats import (
    IMAGEJ_UNITS,
    MOST_CHANNELS,
    Decoded,
    Size,
    Unreadable,
    arrange,
    channels_first,
    check_size,
    file_bytes,
    judge_voxel_size,
    one_line,
)
from lsmfm_jax.volumes.ome import ome_files, ome_voxel_size, promised_planes

UNCOMPRESSED = 1
LISTED = 6
_NAME_THE_AXES = "say which axes they are (lsmfm data ingest --axes), or save one volume a file"

_NAME_THE_PLANES = (
    "if they are planes, say so: tifffile.imwrite(NAME, array, photometric='minisblack', metadata={'axes': 'ZYX'}), or "
    "save it as NIfTI or .npy"
)


def read_tiff(path: pathlib.Path, *, axes: str | None = None, series: int | None = None, mask: bool = False) -> Decoded:
    """Read the image of a TIFF; of a multi-file OME-TIFF the whole image, whichever of its files is named.

    The axis that is neither Y, X nor channel is Z.

    Args:
        path: the file.
        axes: what the axes longer than one are, such as `CZYX`; by default those that the file names.
        series: which of several images to read; by default the only one.
        mask: it is a mask, label image or probability, which has no colours: see `planes_of_mask`.

    Raises:
        Unreadable: not TIFF, damaged, with planes that are missing or belong to nothing, with several images and no
            `series`, or with axes that cannot be told.
        OSError: the file cannot be opened.
    """
    file_bytes(path)
    with _quiet():
        main, _ = ome_files(path)
        try:
            with tifffile.TiffFile(main) as file:
                image, number = _choose(file, series)
                _check_planes(file, image, number)
                pixels = image.asarray()
                size, source = _voxel_size(file, number)
                named = planes_of_mask(image.axes, pixels.shape) if mask else image.axes
                array, notes = _to_czyx(pixels, named, axes)
                array, alpha = _without_alpha(array, image)
        except Unreadable:
            raise
        # A damaged file can fail anywhere in the reader, so every exception of it means the same.
        except Exception as error:
            hint = "copy the file again, or check its name"
            raise Unreadable(f"it is not a readable TIFF ({one_line(error)})", hint) from None
    return Decoded(array, size, source, notes=(*notes, *alpha))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep tifffile's own lines from the screen: what matters of them is an error here."""
    log = logging.getLogger("tifffile")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


def _choose(file: Any, wanted: int | None) -> tuple[Any, int]:
    every = file.series
    if not every:
        raise Unreadable("it holds no image", "copy the file again, or export it again")
    listed = "; ".join(
        f"{number}: {image.axes} {tuple(image.shape)} {image.dtype}" for number, image in enumerate(every[:LISTED])
    )
    if wanted is not None:
        if not 0 <= wanted < len(every):
            raise Unreadable(f"series {wanted} was asked for, it has {len(every)} ({listed})", "choose one of these")
        return every[wanted], wanted
    if len(every) != 1:
        more = f"; and {len(every) - LISTED} more" if len(every) > LISTED else ""
        raise Unreadable(
            f"it holds {len(every)} images ({listed}{more})",
            "say which one with --series, or save each as a file of its own",
        )
    used = {page.index for page in every[0].pages if page is not None and page.parent is file}
    for level in every[0].levels[1:]:
        used |= {page.index for page in level.pages if page is not None and len(page.treeindex) == 1}
    stray = sorted(set(range(len(file.pages))) - used)
    if stray:
        _check_description(file, every[0], 0)
        _check_count(len(file.pages), int(np.prod(every[0].shape, dtype=object)) // every[0].keyframe.size)
        raise Unreadable(
            f"{len(stray)} of its {len(file.pages)} pages belong to no image (the first is page {stray[0]})",
            "save the volume alone, or take the image without them with --series 0",
        )
    return every[0], 0


def _check_planes(file: Any, image: Any, number: int) -> None:
    """Check that each plane that the description and the image promise is in the file, before it is allocated."""
    pages = list(image.pages)
    there = [page for page in pages if page is not None]
    keyframe = image.keyframe
    planes = int(np.prod(image.shape, dtype=object)) // keyframe.size
    _check_description(file, image, number)
    # ImageJ writes one page for a stack of more than 4 GB, whose planes lie behind each other.
    contiguous = image.dataoffset is not None
    present = planes if contiguous else len(there)
    _check_count(present, planes)
    if contiguous:
        check_size(image.dataoffset + image.nbytes, file_bytes=file.filehandle.size)
    else:
        # Compressed pixels have no such bound; the memory is one.
        check_size(image.nbytes, file_bytes=image.nbytes)
        for page in there:
            _check_segments(page, keyframe)


def _check_description(file: Any, image: Any, number: int) -> None:
    """Compare the planes of a description that tifffile could not follow with those that it found without it."""
    planes = int(np.prod(image.shape, dtype=object)) // image.keyframe.size
    promised = planes
    if file.ome_metadata is not None and image.kind != "ome":
        promised = promised_planes(file.ome_metadata, number) or planes
    elif file.imagej_metadata and image.kind != "imagej":
        promised = int(file.imagej_metadata.get("images", planes))
    elif file.shaped_metadata and len(file.shaped_metadata) == len(file.series):
        promised = int(np.prod(file.shaped_metadata[number]["shape"], dtype=object)) // image.keyframe.size
    _check_count(planes, promised)


def _check_count(present: int, promised: int) -> None:
    if present < promised:
        raise Unreadable(
            f"it promises {promised} planes and holds {present}",
            "copy or export it again: missing planes would be read as zeros",
        )


def _check_segments(page: Any, keyframe: Any) -> None:
    """Check that the strips or tiles of a page lie in its file; tifffile reads those that do not as zeros."""
    needed = int(np.prod(keyframe.chunked, dtype=object))
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) < needed or len(counts) < needed or 0 in offsets[:needed] or 0 in counts[:needed]:
        raise Unreadable(f"page {page.index} lacks some of its {needed} strips or tiles", "export it again")
    end = max(offset + count for offset, count in zip(offsets, counts, strict=False))
    check_size(end, file_bytes=page.parent.filehandle.size)
    if keyframe.compression == UNCOMPRESSED and keyframe.photometric != tifffile.PHOTOMETRIC.YCBCR:
        stored = keyframe.size * keyframe.bitspersample // 8
        if sum(counts) < stored:
            raise Unreadable(
                f"page {page.index} is truncated: {sum(counts)} bytes where its header promises {stored}",
                "copy the file again",
            )


def planes_of_mask(named: str, shape: tuple[int, ...]) -> str:
    """The axes of a mask: what stands before Y and X as colours, with no Z beside it, is the planes.

    tifffile writes an array of 3 or 4 planes whose axes nobody names as the colours of one plane, and a mask has none.
    Colours behind Y and X stay colours: those are pictures.
    """
    deep = any(size > 1 for axis, size in zip(named, shape, strict=True) if axis not in "YXS")
    return named.replace("SYX", "ZYX") if named.endswith("SYX") and not deep else named


def _to_czyx(pixels: np.ndarray, named: str, axes: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Bring the pixels to (C, Z, Y, X) by the names that the file, or a person, gives to the axes.

    S are samples of one pixel (RGB), C channels; Z can also be called I (sequence), Q (unknown) or T (time).
    """
    if axes is not None:
        return arrange(pixels, axes), ()
    long = [axis for axis, size in zip(named, pixels.shape, strict=True) if size > 1 or axis in "YX"]
    shape = tuple(size for axis, size in zip(named, pixels.shape, strict=True) if size > 1 or axis in "YX")
    what = f"its axes are {named} of {pixels.shape}"
    if pixels.size == 0 or long.count("Y") != 1 or long.count("X") != 1:
        raise Unreadable(f"{what}, expected Z, Y, X and at most one of channels", _NAME_THE_AXES)
    pixels = pixels.reshape(shape)
    if "C" in long and "S" in long and _all_equal(np.moveaxis(pixels, long.index("S"), 0)):
        pixels = pixels.take(0, axis=long.index("S"))
        long.remove("S")
        shape = pixels.shape
    depth = [axis for axis in long if axis not in "YXCS"]
    colour = [axis for axis in long if axis in "CS"]
    size_of = dict(zip(long, shape, strict=True))
    if len(depth) == 1 and not colour:
        order = [long.index(axis) for axis in (*depth, "Y", "X")]
        return _solid(pixels.transpose(order)[None], what), ()
    if len(depth) == 1 and len(colour) == 1:
        if colour == ["C"] and size_of["C"] > size_of[depth[0]]:
            raise Unreadable(f"{what}: more channels than planes", _NAME_THE_AXES)
        order = [long.index(axis) for axis in (*colour, *depth, "Y", "X")]
        return _solid(pixels.transpose(order), what), ()
    if not depth and len(colour) == 1 and size_of[colour[0]] > MOST_CHANNELS:
        # What tifffile and ImageJ call a stack whose writer named no axes.
        order = [long.index(axis) for axis in (*colour, "Y", "X")]
        note = f"{what}, without Z: {colour[0]} is taken as Z"
        return _solid(pixels.transpose(order)[None], what), (note,)
    if not depth and colour == ["S"]:
        raise Unreadable(f"{what}: the colours (S) of a single plane", _NAME_THE_PLANES)
    if len(depth) == 2 and not colour and set(depth) <= set("QIZ") and depth != ["Z", "Z"]:
        found = _unnamed_channel(pixels, long)
        if found is not None:
            note = f"{what}: the axis of {found.shape[0]} is taken as channels"
            return _solid(found, what), (note,)
    raise Unreadable(f"{what}, expected Z, Y, X and at most one of channels", _NAME_THE_AXES)


def _unnamed_channel(pixels: np.ndarray, long: list[str]) -> np.ndarray | None:
    """Find the channels of four axes that were written without names: clearly the shortest, and few; else None."""
    shortest = min(pixels.shape)
    at = pixels.shape.index(shortest)
    if shortest > MOST_CHANNELS or pixels.shape.count(shortest) > 1 or long[at] == "Z":
        return None
    if at == 3 and set(long[:2]) != {"Q"}:
        return None
    if at == 1:
        return np.moveaxis(pixels, 1, 0)
    return channels_first(pixels) if at in (0, 3) else None


def _solid(array: np.ndarray, what: str) -> np.ndarray:
    if min(array.shape[1:]) < 2:
        raise Unreadable(f"{what}: it is not 3D", "stack the planes of one volume into one file")
    return array


def _all_equal(channels: np.ndarray) -> bool:
    return all(np.array_equal(channels[0], other) for other in channels[1:])


def _without_alpha(array: np.ndarray, image: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Leave out an opacity that is the same everywhere: it is no channel of the microscope."""
    if "S" in image.axes and len(array) in (2, 4) and image.keyframe.extrasamples and np.ptp(array[-1]) == 0:
        return array[:-1], ("its constant opacity (alpha) is left out",)
    return array, ()


def _voxel_size(file: Any, number: int) -> tuple[Size | None, str]:
    if file.ome_metadata:
        return ome_voxel_size(file.ome_metadata, number)
    description, tags = file.imagej_metadata, file.pages[0].tags
    try:
        unit = str(description.get("unit", "unknown")).replace("\\u00B5", "µ").strip().lower()
        y, x = (tags[name].value[1] / tags[name].value[0] for name in ("YResolution", "XResolution"))
        return judge_voxel_size((float(description["spacing"]), y, x), IMAGEJ_UNITS.get(unit, unit))
    # Not ImageJ's, or without a resolution, or with one of 1/0.
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None, "unknown"


def open_image(path: pathlib.Path) -> tuple[Any, Size | None, str]:
    """Open the image of a TIFF to be read page by page: tifffile's series, checked as `read_tiff` does, and its size.

    The file stays open as long as the series is used.

    Raises:
        Unreadable, OSError: as `read_tiff`.
    """
    file_bytes(path)
    with _quiet():
        main, _ = ome_files(path)
        try:
            file = tifffile.TiffFile(main)
            image, number = _choose(file, None)
            _check_planes(file, image, number)
            return image, *_voxel_size(file, number)
        except Unreadable:
            raise
        # A damaged file can fail anywhere in the reader, so every exception of it means the same.
        except Exception as error:
            hint = "copy the file again, or check its name"
            raise Unreadable(f"it is not a readable TIFF ({one_line(error)})", hint) from None
