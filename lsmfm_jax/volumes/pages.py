"""TIFF files page by page: of a stack of any size, only the strips or tiles that a box needs are decoded."""

import dataclasses
import pathlib
import threading
from typing import Any

import numpy as np

from lsmfm_jax.volumes.axes import Stored, level_of
from lsmfm_jax.volumes.formats import Unreadable
from lsmfm_jax.volumes.lazy import Level, Wanted, choose
from lsmfm_jax.volumes.tiff import open_image, planes_of_mask


def open_tiff(path: pathlib.Path, wanted: Wanted) -> Level:
    """Open the first series of a TIFF, BigTIFF, OME-TIFF or ImageJ stack; pyramids have levels.

    An axis that is neither Y, X, channel nor time is Z, and so is time where there is no Z.

    Raises:
        Unreadable: not TIFF, damaged, of a set of which files are missing, or with too many axes.
    """
    series, size, source = open_image(path)
    levels = list(series.levels)
    number = choose(wanted.level, len(levels), what="level", option="--level")
    finest, series = levels[0], levels[number]
    axes = _named(planes_of_mask(series.axes, series.shape) if wanted.mask else series.axes, series.shape)
    stored = _mapped(series, axes) or _paged(series, axes)
    level = level_of(stored, wanted, levels=len(levels))
    if size is not None and number:
        whole = [finest.shape[series.axes.index(axis)] for axis in _space(series.axes, axes)]
        z, y, x = (value * before / after for value, before, after in zip(size, whole, level.shape, strict=True))
        size = (z, y, x)
    return dataclasses.replace(level, voxel_size_um=size, voxel_size_source=source)


def read_page(page: Any, rows: slice, columns: slice, *, lock: threading.Lock) -> np.ndarray:
    """Read a box of one page, (rows, columns) or (rows, columns, samples), decoding only what it touches."""
    key = page.keyframe
    height, width = key.imagelength, key.imagewidth
    if _plain_rows(page):
        return _read_rows(page, rows, columns, lock=lock)
    tall, wide = (key.tilelength, key.tilewidth) if key.is_tiled else (key.rowsperstrip, width)
    tall = min(tall, height)
    across = -(-width // wide)
    shape = (rows.stop - rows.start, columns.stop - columns.start, key.samplesperpixel)
    out = np.full(shape, key.nodata, key.dtype)
    handle = page.parent.filehandle
    extra = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader} if key.compression in (6, 7) else {}
    for row in range(rows.start // tall, -(-rows.stop // tall)):
        for column in range(columns.start // wide, -(-columns.stop // wide)):
            index = row * across + column
            count = page.databytecounts[index]
            if not count:
                continue  # a tile that was never written
            data = _read_bytes(handle, page.dataoffsets[index], count, lock=lock)
            segment, _, _ = key.decode(data, index, **extra)
            top, left = row * tall, column * wide
            segment = segment.reshape(-1, *segment.shape[-2:])
            y0, y1 = max(rows.start, top), min(rows.stop, top + segment.shape[0])
            x0, x1 = max(columns.start, left), min(columns.stop, left + segment.shape[1])
            out[y0 - rows.start : y1 - rows.start, x0 - columns.start : x1 - columns.start] = segment[
                y0 - top : y1 - top, x0 - left : x1 - left
            ]
    return out if key.samplesperpixel > 1 else out[..., 0]


def _plain_rows(page: Any) -> bool:
    """Whether the rows of a page lie behind each other in the file as they are."""
    key = page.keyframe
    ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    return not key.is_tiled and key.is_memmappable and ends[:-1] == list(page.dataoffsets[1:])


def _read_rows(page: Any, rows: slice, columns: slice, *, lock: threading.Lock) -> np.ndarray:
    key, file = page.keyframe, page.parent
    shape = (rows.stop - rows.start, key.imagewidth, *key.shape[2:])
    dtype = np.dtype(key.dtype).newbyteorder(file.byteorder)
    row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
    start = page.dataoffsets[0] + rows.start * row_bytes
    data = _read_bytes(file.filehandle, start, shape[0] * row_bytes, lock=lock)
    return np.frombuffer(data, dtype).reshape(shape)[:, columns]


def _read_bytes(handle: Any, start: int, count: int, *, lock: threading.Lock) -> bytes:
    with lock:
        if handle.closed:
            handle.open()
        handle.seek(start)
        data = handle.read(count)
    if len(data) < count:
        raise Unreadable(f"{handle.name} is truncated", "copy the file again")
    return data


def page_chunk(page: Any) -> tuple[int, int]:
    """Rows and columns that a page keeps together."""
    key = page.keyframe
    if _plain_rows(page):
        return 1, key.imagewidth
    return (key.tilelength, key.tilewidth) if key.is_tiled else (min(key.rowsperstrip, key.imagelength), key.imagewidth)


def simple_page(page: Any) -> bool:
    """Whether `read_page` can read a page: one plane, its samples beside one another."""
    key = page.keyframe
    return key.imagedepth == 1 and key.tiledepth == 1 and (key.samplesperpixel == 1 or key.planarconfig == 1)


def _named(axes: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    names = list(axes.lower())
    long = [i for i, name in enumerate(names) if name not in "yxcs" and shape[i] > 1]
    if "z" not in (names[i] for i in long):
        if len(long) != 1 or "Y" not in axes or "X" not in axes:
            raise Unreadable(
                f"its axes are {axes} of {shape}, expected Z, Y, X and at most channels and time",
                "save one volume a file",
            )
        names = ["q" if name == "z" else name for name in names]
        names[long[0]] = "z"
    if "c" in names and "s" in names:
        # Colours of one pixel beside channels: the longer of the two is meant.
        colour, samples = names.index("c"), names.index("s")
        names[colour if shape[colour] < shape[samples] else samples] = "q"
    return tuple(names)


def _space(axes: str, names: tuple[str, ...]) -> list[str]:
    return [axes[names.index(name)] for name in "zyx"]


def _mapped(series: Any, axes: tuple[str, ...]) -> Stored | None:
    """The array on the disk as it lies there, where it lies in one piece."""
    if series.dataoffset is None:
        return None
    file = series.pages[0].parent
    dtype = np.dtype(series.dtype).newbyteorder(file.byteorder)
    array = np.memmap(file.filehandle.path, dtype, "r", series.dataoffset, series.shape)
    return Stored(series.shape, dtype, axes, (*[1] * (len(axes) - 1), series.shape[-1]), lambda index: array[index])


def _paged(series: Any, axes: tuple[str, ...]) -> Stored:
    pages = series.pages
    samples = 1 if axes[-1] in "cs" or series.axes.endswith("S") else 0
    leading = len(axes) - 2 - samples
    outer = series.shape[:leading]
    simple = simple_page(pages[0]) and series.axes[leading : leading + 2] == "YX"
    if not simple or len(pages) != int(np.prod(outer)):
        array = series.asarray()
        return Stored(series.shape, array.dtype, axes, series.shape, lambda index: array[index])
    lock = threading.Lock()

    def fetch(index: tuple[slice | int, ...]) -> np.ndarray:
        ranges = [range(size)[one] if isinstance(one, slice) else one for one, size in zip(index, outer, strict=False)]
        rows, columns = index[leading : leading + 2]
        pick = index[leading + 2 :]
        kept = [one for one in ranges if isinstance(one, range)]
        grid = np.stack(np.meshgrid(*[[one] if isinstance(one, int) else one for one in ranges], indexing="ij"))
        numbers = np.ravel_multi_index(tuple(grid.reshape(leading, -1)), outer)
        planes = [read_page(pages[int(number)], rows, columns, lock=lock) for number in numbers]
        stack = np.stack(planes).reshape(*map(len, kept), *planes[0].shape)
        return stack[(..., *pick)] if pick else stack

    chunk = (*[1] * leading, *page_chunk(pages[0]), *[1] * samples)
    return Stored(series.shape, np.dtype(series.dtype), axes, chunk, fetch)
