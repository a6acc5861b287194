"""A volume that is read a box at a time, whatever file, folder or address holds it."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from lsmfm_jax.volumes.formats import Size, Unreadable

Box = tuple[slice, slice, slice]
Voxels = tuple[int, int, int]


class Wanted(NamedTuple):
    """Which part of a file a reader is to open: None where the person has not chosen; whether it is a mask."""

    channel: int | None = None
    level: int = 0
    time: int | None = None
    mask: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Level:
    """One channel at one resolution of a file, as the reader of its format gives it.

    Attributes:
        shape: ZYX in voxels.
        dtype: what `read` gives, in the machine's byte order.
        voxel_size_um: ZYX of this level; `voxel_size_source` says where it is from.
        chunk: ZYX voxels that the file keeps together: reading one voxel costs at least this.
        channels, levels: how many the file has; `channel` is the one that was opened.
        read: gives the voxels of a box inside the shape, from any thread.
        affine, header: of a NIfTI file, else None.
    """

    shape: Voxels
    dtype: np.dtype
    voxel_size_um: Size | None
    voxel_size_source: str
    chunk: Voxels
    read: Callable[[Box], np.ndarray]
    channels: int = 1
    levels: int = 1
    channel: int = 0
    affine: np.ndarray | None = None
    header: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class LazyVolume:
    """One channel at one level of a volume, ZYX, of which only the boxes that are asked for are read.

    Attributes:
        path: as it was given, a path or a URL.
        shape: ZYX in voxels, of the box that was opened.
        dtype: the file's own type in the machine's byte order; bool is uint8, and any float is float32.
        voxel_size_um: ZYX at this level, None if unknown; `voxel_size_source` says where it is from and begins
            with "header (unverified" where the file's word is doubtful.
        chunk: ZYX voxels that the file keeps together: reading one voxel costs at least this.
        channels, levels: how many the file has; `channel` and `level` are those that were opened.
        origin: ZYX voxel of the level at which the opened box begins.
        affine, header: of a NIfTI file (voxel XYZ of the whole level to world), else None.
    """

    path: str
    shape: Voxels
    dtype: np.dtype
    voxel_size_um: Size | None
    voxel_size_source: str
    chunk: Voxels
    channels: int
    levels: int
    channel: int
    level: int
    origin: Voxels
    source: Callable[[Box], np.ndarray] = dataclasses.field(repr=False)
    affine: np.ndarray | None = dataclasses.field(default=None, repr=False)
    header: Any = dataclasses.field(default=None, repr=False)

    def read(self, box: Box) -> Shaped[np.ndarray, "z y x"]:
        """Read the voxels of a box, contiguous; slices count from the opened box, and may be cut at its end.

        Thread-safe. Non-finite values are given as they stand in the file.

        Raises:
            ValueError: a slice with a step.
            VolumeError: what the file holds there is damaged or cannot be reached.
        """
        inside = bounded(box, self.shape)
        shape = tuple(one.stop - one.start for one in inside)
        if 0 in shape:
            return np.zeros(shape, self.dtype)
        z, y, x = (slice(one.start + start, one.stop + start) for one, start in zip(inside, self.origin, strict=True))
        return np.ascontiguousarray(self.source((z, y, x)), dtype=self.dtype)


def bounded(box: Box, shape: Voxels) -> Box:
    """Give a box with its ends written out and cut at the shape, as Python slices a sequence."""
    ends = [one.indices(size) for one, size in zip(box, shape, strict=True)]
    if any(step != 1 for _, _, step in ends):
        raise ValueError(f"{box}: slices of a box have no step")
    z, y, x = (slice(start, max(start, stop)) for start, stop, _ in ends)
    return z, y, x


def parse_box(text: str) -> Box:
    """Read `z0:z1,y0:y1,x0:x1` in voxels; an end that is left out is the volume's.

    Raises:
        ValueError: anything else.
    """
    matches = [re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", part) for part in text.split(",")]
    if len(matches) != 3 or None in matches:
        raise ValueError(f"{text!r}: a box is written z0:z1,y0:y1,x0:x1 in voxels, such as 0:96,:,512:1024")
    ends = [[int(end) if end else None for end in match.groups()] for match in matches if match]
    if any(stop is not None and stop <= (start or 0) for start, stop in ends):
        raise ValueError(f"{text!r}: each part of a box must end after it begins")
    z, y, x = (slice(start, stop) for start, stop in ends)
    return z, y, x


def box_text(box: Box) -> str:
    """Write a box as `parse_box` reads it."""
    ends = ((one.start, one.stop) for one in box)
    return ",".join(f"{'' if start is None else start}:{'' if stop is None else stop}" for start, stop in ends)


def choose(wanted: int | None, count: int, *, what: str, option: str) -> int:
    """Give the index of the one that is wanted, or of the only one.

    Raises:
        Unreadable: several, and none was chosen, or there is no such one.
    """
    if count == 1 and wanted is None:
        return 0
    if wanted is None:
        raise Unreadable(f"it has {count} {what}s", f"choose one with {option} 0 to {count - 1}")
    if not 0 <= wanted < count:
        allowed = f"0 to {count - 1}" if count > 1 else "0"
        raise Unreadable(f"it has no {what} {wanted}: it has {count}", f"give {option} {allowed}")
    return wanted


def plain_dtype(dtype: np.dtype) -> np.dtype:
    """Give the type in which voxels of a stored type are read.

    Raises:
        Unreadable: it is no number.
    """
    if dtype == np.dtype(bool):
        return np.dtype(np.uint8)
    # Half precision and bfloat16 widen without loss; double is narrowed, as in files that are read whole.
    if dtype.kind == "f" or dtype.name == "bfloat16":
        return np.dtype(np.float32)
    if dtype.kind not in "iu":
        raise Unreadable(f"its pixel type is {dtype}", "convert it to integers or float32")
    return dtype.newbyteorder("=")
