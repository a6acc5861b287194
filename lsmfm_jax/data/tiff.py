"""TIFF stacks in memory to arrays, with the voxel size that ImageJ or OME wrote."""

import io
import re

import numpy as np
import tifffile

from lsmfm_jax.data.formats import Decoded, Size, Unreadable, channels_first, judge_voxel_size

OME_UNITS = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3}


def decode_tiff(data: bytes) -> Decoded:
    """Decode the first series of a TIFF; the axis that is neither Y, X nor channel is Z.

    Raises:
        Unreadable: not TIFF, damaged, or with more than one axis that could be Z.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            pixels, axes = series.asarray(), series.axes
            size, source = _voxel_size(file)
    # A damaged file can fail anywhere in the reader, so every exception of it means the same.
    except Exception as error:
        raise Unreadable(f"it is not a readable TIFF ({error})", "copy the file again, or check its name") from None
    return Decoded(channels_first(_to_czyx(pixels, axes)), size, source)


def _to_czyx(pixels: np.ndarray, axes: str) -> np.ndarray:
    # S are samples of one pixel (RGB), C channels; Z can also be called I (sequence), Q (unknown) or T
    # (time).
    long = [axis for axis, size in zip(axes, pixels.shape, strict=True) if size > 1 or axis in "YX"]
    depth = [axis for axis in long if axis not in "YXCS"]
    colour = [axis for axis in long if axis in "CS"]
    if len(depth) != 1 or len(colour) > 1 or "Y" not in long or "X" not in long:
        raise Unreadable(
            f"its axes are {axes} of {pixels.shape}, expected Z, Y, X and at most one of channels",
            "save one volume a file",
        )
    pixels = pixels.reshape([size for axis, size in zip(axes, pixels.shape, strict=True) if axis in long])
    order = [long.index(axis) for axis in (*colour, *depth, "Y", "X")]
    pixels = pixels.transpose(order)
    return pixels if colour else pixels[None]


def _voxel_size(file: tifffile.TiffFile) -> tuple[Size | None, str]:
    if file.ome_metadata:
        return _ome_voxel_size(file.ome_metadata)
    description = file.imagej_metadata
    tags = file.pages[0].tags
    if not description or "spacing" not in description or "XResolution" not in tags:
        return None, "unknown"
    unit = str(description.get("unit", "unknown")).replace("\\u00B5", "µ")
    y, x = (_pixels_per_unit(tags[name].value) for name in ("YResolution", "XResolution"))
    known = {"um": "micron", "µm": "micron", "micrometer": "micron"}
    return judge_voxel_size((description["spacing"], 1 / y, 1 / x), known.get(unit, unit))


def _pixels_per_unit(value: tuple[int, int]) -> float:
    return value[0] / value[1]


def _ome_voxel_size(xml: str) -> tuple[Size | None, str]:
    sizes = []
    for axis in "ZYX":
        value = re.search(rf'PhysicalSize{axis}="([0-9.eE+-]+)"', xml)
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', xml)
        scale = OME_UNITS.get(unit[1] if unit else "µm")
        if value is None or scale is None:
            return None, "unknown"
        sizes.append(float(value[1]) * scale)
    return judge_voxel_size(sizes, "micron")
