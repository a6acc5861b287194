"""The mask or the deblurred volume of a result as one file beside it, and the mask of a result that kept none."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import tifffile

from lsmfm_jax.files import TEMPORARY
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.instances import Box, Boxes
from lsmfm_jax.predict.output import MASK, PROBABILITY, Array, Image
from lsmfm_jax.predict.plan import bytes_text
from lsmfm_jax.predict.shards import Record
from lsmfm_jax.volumes.lazy import LazyVolume
from lsmfm_jax.volumes.nifti import write_nifti


@dataclasses.dataclass(eq=False)
class _Above:
    """A probability as a mask."""

    array: Array
    threshold: float

    def __post_init__(self) -> None:
        self.shape = self.array.shape

    def read(self, box: Box) -> np.ndarray:
        return self.array.read(box) >= np.rint(self.threshold * 255)


def mask_of(root: pathlib.Path, record: Record) -> Boxes:
    """The mask of a result, or its probability cut at the threshold where no mask was written."""
    if MASK.name in record.settings["outputs"]:
        return Array(root, MASK)
    return _Above(Array(root, PROBABILITY), record.settings["threshold"])


def write_single_file(
    root: pathlib.Path, record: Record, image: Image, kind: str, volume: LazyVolume | None, max_ram_bytes: int
) -> pathlib.Path:
    """Writes an image of a result as one file beside it.

    Args:
        root: the result.
        record: of it.
        image: which of its images.
        kind: "tiff" (written plane by plane) or "nifti" (takes three times its size in memory).
        volume: the input, whose affine a NIfTI file keeps; None: it cannot be read.
        max_ram_bytes: the most that a NIfTI file may need.

    Raises:
        PredictionError: more memory would be needed.
    """
    array = mask_of(root, record) if image is MASK else Array(root, image)
    dtype = np.dtype(image.dtype)
    whole = int(np.prod(record.plan.shape)) * dtype.itemsize
    stem = root.name.removesuffix(".zarr").removesuffix(".ome")
    size = record.source["voxel_size_um"]
    if kind == "tiff":
        path = root.with_name(f"{stem}_{image.name}.ome.tif")
        planes = _planes(array, record.plan.shard[0], dtype)
        sides = {} if size is None else {f"PhysicalSize{axis}": side for axis, side in zip("ZYX", size, strict=True)}
        temporary = path.with_name(f"{path.name}{TEMPORARY}")
        tifffile.imwrite(
            temporary,
            planes,
            shape=record.plan.shape,
            dtype=dtype,
            bigtiff=whole > 2**31,
            ome=True,
            compression="zlib",
            metadata={"axes": "ZYX", **sides},
        )
        temporary.replace(path)
        return path
    # The voxels, and the bytes of the file before and after they are compressed.
    if 3 * whole > max_ram_bytes:
        raise PredictionError(
            f"--also nifti: {bytes_text(3 * whole)} would be needed, --max-ram is {bytes_text(max_ram_bytes)}; "
            "take --also tiff, which is written plane by plane"
        )
    path = root.with_name(f"{stem}_{image.name}.nii.gz")
    affine = None if volume is None else volume.affine
    if affine is not None:
        affine = affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.array(volume.origin[::-1], float)
    elif size is not None:
        affine = np.diag([*size[::-1], 1.0])
    values = array.read((slice(None), slice(None), slice(None))).astype(dtype)
    write_nifti(path, values, affine=affine, header=None if volume is None else volume.header)
    return path


def _planes(array: Boxes, rows: int, dtype: np.dtype) -> Any:
    for start in range(0, array.shape[0], rows):
        stop = min(start + rows, array.shape[0])
        yield from array.read((slice(start, stop), slice(None), slice(None))).astype(dtype)
