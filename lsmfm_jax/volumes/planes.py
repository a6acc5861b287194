"""Folders of 2D planes: one TIFF or PNG a plane, in the natural order of their names."""

import concurrent.futures
import dataclasses
import itertools
import pathlib
import re
import threading
from collections import Counter, OrderedDict
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile

from lsmfm_jax.volumes.axes import Stored, level_of
from lsmfm_jax.volumes.formats import Unreadable
from lsmfm_jax.volumes.lazy import Level, Wanted
from lsmfm_jax.volumes.ome import ome_voxel_size
from lsmfm_jax.volumes.pages import page_chunk, read_page, simple_page

TIFF = (".tif", ".tiff")
ENDINGS = (*TIFF, ".png")
# Files that are volumes by themselves.
VOLUMES = (".nii", ".nii.gz", ".npy", ".h5", ".hdf5", ".ims", ".zarr", ".n5")
LISTED = 3
# Headers that are kept: a box of a few hundred planes reads the same ones again and again.
KEPT_HEADERS = 512
TERASTITCHER_STACK = re.compile(r"\d+_\d+$")
TERASTITCHER_COLUMN = re.compile(r"\d+$")


class _Plane(NamedTuple):
    """A plane's file, the numbers in its name, and what its header promises."""

    path: pathlib.Path
    shape: tuple[int, ...]
    dtype: np.dtype


def plane_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The image files directly in a folder, in natural order; hidden ones (of a Mac's) are left out."""
    files = [path for path in folder.iterdir() if path.name.lower().endswith(ENDINGS) and not path.name.startswith(".")]
    return sorted(files, key=lambda path: natural(path.name))


def natural(name: str) -> list[tuple[int, str]]:
    """A key by which z2 comes before z10."""
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", name) if part]


def is_plane_folder(folder: pathlib.Path) -> bool:
    """Whether a folder holds at least two images, the first is a single plane, and no file is a volume by itself.

    Pictures lie beside the volumes of many folders: `lsmfm predict` draws one of each patch.
    """
    files = plane_files(folder)
    if len(files) < 2 or any(entry.name.lower().endswith(VOLUMES) for entry in folder.iterdir()):
        return False
    try:
        return _header(files[0]) is not None
    except Unreadable:
        return False


def terastitcher(folder: pathlib.Path) -> bool:
    """Whether a folder holds tiles as TeraStitcher arranges them: Y/Y_X/Z.tif, or TeraFly's RES(YxXxZ)."""
    if not folder.is_dir():
        return False
    if (folder / "xml_import.xml").exists() or (folder / "xml_merging.xml").exists():
        return True
    entries = [entry for entry in folder.iterdir() if entry.is_dir()]
    if any(re.match(r"RES\(\d+x\d+x\d+\)$", entry.name) for entry in (*entries, folder)):
        return True
    columns = [entry for entry in entries if TERASTITCHER_COLUMN.match(entry.name)]
    return any(TERASTITCHER_STACK.match(inner.name) for entry in columns[:1] for inner in entry.iterdir())


def open_planes(folder: pathlib.Path, wanted: Wanted) -> Level:
    """Open a folder of planes; numbers in the names give Z, and where the names have them, channels.

    Raises:
        Unreadable: tiles that are not stitched, gaps in the numbers, names that differ in more than Z and
            channel, or planes of another size or type; each is named.
    """
    if terastitcher(folder):
        raise Unreadable(
            "it holds the tiles of TeraStitcher, which overlap",
            "merge them first (terastitcher --merge --volout_plugin=TiledXY|2Dseries), or name the folder of one tile",
        )
    channels = _arranged(plane_files(folder), folder)
    files = [path for planes in channels for path in planes]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        headers = list(pool.map(_header, files))
    _check_alike(files, headers)
    first = headers[0]
    assert first is not None
    depth = len(channels[0])
    reader = _Reader()

    def fetch(index: tuple[slice | int, ...]) -> np.ndarray:
        channel, planes, rows, columns, *samples = index
        voxels = np.stack([reader.read(path, rows, columns) for path in channels[channel][planes]])
        return voxels[..., samples[0]] if samples else voxels

    colour = len(first.shape) == 3
    if colour and len(channels) > 1:
        raise Unreadable("its planes are in colour and its names have channels", "save each channel in grey")
    shape = (len(channels), depth, *first.shape)
    axes = ("q", "z", "y", "x", "c") if colour else ("c", "z", "y", "x")
    chunk = (1, 1, *_chunk(files[0], first), *first.shape[2:])
    level = level_of(Stored(shape, first.dtype, axes, chunk, fetch), wanted)
    size, source = _voxel_size(files[0])
    return dataclasses.replace(level, voxel_size_um=size, voxel_size_source=source)


def _arranged(files: list[pathlib.Path], folder: pathlib.Path) -> list[list[pathlib.Path]]:
    """The planes of each channel, checked for gaps."""
    if len(files) < 2:
        raise Unreadable(f"it holds {len(files)} planes", f"name a folder of at least two files {', '.join(ENDINGS)}")
    endings = Counter(path.suffix.lower() for path in files)
    if len(endings) > 1:
        raise Unreadable(f"its planes are of several formats ({_listed(endings)})", "keep one format in the folder")
    parts = [re.split(r"(\d+)", path.name.removesuffix(path.suffix)) for path in files]
    texts = Counter(tuple(part[::2]) for part in parts)
    usual, _ = texts.most_common(1)[0]
    odd = [path.name for path, part in zip(files, parts, strict=True) if tuple(part[::2]) != usual]
    if odd:
        raise Unreadable(
            f"{len(odd)} of its {len(files)} planes are named unlike the others ({_listed(odd)})",
            "move them out of the folder, or rename them",
        )
    numbers = np.array([[int(number) for number in part[1::2]] for part in parts], dtype=np.int64)
    varying = [i for i in range(numbers.shape[1]) if len(np.unique(numbers[:, i])) > 1]
    if not varying:
        raise Unreadable("the names of its planes have no number that counts them", "number them")
    channel = [i for i in varying if re.search(r"(?:^|[^a-z])(?:c|ch|channel)[ _-]*$", usual[i].lower())]
    rest = [i for i in varying if i not in channel]
    if len(channel) > 1 or len(rest) != 1:
        shown = ", ".join(repr(f"{usual[i]}...") for i in varying)
        raise Unreadable(
            f"the names of its planes count more than Z and channel (after {shown}): tiles or time points, perhaps",
            "stitch tiles first, and keep the planes of one volume in a folder",
        )
    groups: dict[int, dict[int, pathlib.Path]] = {}
    for path, row in zip(files, numbers, strict=True):
        groups.setdefault(int(row[channel[0]]) if channel else 0, {})[int(row[rest[0]])] = path
    every = sorted(set().union(*groups.values()))
    _refuse_gaps(every)
    for number, planes in sorted(groups.items()):
        missing = sorted(set(every) - set(planes))
        if missing:
            raise Unreadable(
                f"channel {number} lacks {len(missing)} planes of the others ({_listed(map(str, missing))})",
                "add them",
            )
    if sum(map(len, groups.values())) != len(files):
        raise Unreadable(f"several of its {len(files)} planes have the same number", "keep one file a plane")
    return [[planes[number] for number in sorted(planes)] for _, planes in sorted(groups.items())]


def _refuse_gaps(numbers: list[int]) -> None:
    # Numbers may count planes or tenths of a micrometre, rounded: the usual step is the measure of a gap.
    steps = Counter(np.diff(numbers).tolist())
    usual = min(steps, key=lambda step: (-steps[step], step))
    gaps = [(a, b) for a, b in itertools.pairwise(numbers) if b - a > 1.5 * usual]
    if gaps:
        missing = sum(round((b - a) / usual) - 1 for a, b in gaps)
        raise Unreadable(
            f"{missing} planes are missing ({_listed(f'between {a} and {b}' for a, b in gaps)})",
            "add them, or renumber the planes if nothing is missing between them",
        )


def _header(path: pathlib.Path) -> _Plane | None:
    """What a plane's header promises; None where the file is not a single plane."""
    try:
        if path.name.lower().endswith(TIFF):
            # As a file of its own, not as the OME set that its metadata may name.
            with tifffile.TiffFile(path, is_ome=False) as file:
                page = file.pages[0]
                if len(file.pages) > 1 or page.axes not in ("YX", "YXS"):
                    return None
                return _Plane(path, tuple(page.shape), np.dtype(page.dtype))
        pixels = imagecodecs.png_decode(path.read_bytes())
        return _Plane(path, pixels.shape, pixels.dtype)
    except Exception as error:  # a damaged file can fail anywhere in the decoder
        raise Unreadable(f"its plane {path.name} cannot be read ({error})", "copy it again") from None


def _check_alike(files: list[pathlib.Path], headers: list[_Plane | None]) -> None:
    several = [path.name for path, header in zip(files, headers, strict=True) if header is None]
    if several:
        raise Unreadable(
            f"{len(several)} of its {len(files)} files are not single planes ({_listed(several)})",
            "keep stacks in another folder",
        )
    kinds = Counter((header.shape, header.dtype.name) for header in headers if header)
    (shape, dtype), _ = kinds.most_common(1)[0]
    odd = [f"{h.path.name}: {h.shape} {h.dtype}" for h in headers if h and (h.shape, h.dtype.name) != (shape, dtype)]
    if odd:
        raise Unreadable(
            f"{len(odd)} of its {len(files)} planes are unlike the others, which are {shape} {dtype} ({_listed(odd)})",
            "export them again",
        )


class _Reader:
    """Reads boxes of planes; the headers of the latest TIFFs are kept."""

    def __init__(self) -> None:
        self._files: OrderedDict[pathlib.Path, tuple[Any, threading.Lock]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: pathlib.Path, rows: slice, columns: slice) -> np.ndarray:
        if not path.name.lower().endswith(TIFF):
            return imagecodecs.png_decode(path.read_bytes())[rows, columns]
        page, lock = self._page(path)
        if not simple_page(page):
            return page.asarray()[rows, columns]
        try:
            return read_page(page, rows, columns, lock=lock)
        finally:
            # Thousands of planes must not stay open; the next read opens it again.
            with lock:
                page.parent.filehandle.close()

    def _page(self, path: pathlib.Path) -> tuple[Any, threading.Lock]:
        with self._lock:
            known = self._files.pop(path, None)
            if known is None:
                with tifffile.TiffFile(path, is_ome=False) as file:
                    known = (file.pages[0], threading.Lock())
            self._files[path] = known
            if len(self._files) > KEPT_HEADERS:
                self._files.popitem(last=False)
        return known


def _chunk(path: pathlib.Path, plane: _Plane) -> tuple[int, int]:
    if path.name.lower().endswith(TIFF):
        with tifffile.TiffFile(path, is_ome=False) as file:
            return page_chunk(file.pages[0])
    return plane.shape[0], plane.shape[1]


def _voxel_size(path: pathlib.Path) -> tuple[Any, str]:
    if path.name.lower().endswith(TIFF):
        with tifffile.TiffFile(path, is_ome=False) as file:
            description = file.pages[0].description
        if "<OME" in description[:4000]:
            return ome_voxel_size(description)
    return None, "unknown"


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
