"""How one volume of any size is predicted, and which images come of it."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.output import MASK, PROBABILITY, Image, deblurred
from lsmfm_jax.predict.plan import Size
from lsmfm_jax.volumes.lazy import Box, bounded, box_text

OUTPUTS = ("probability", "mask")


@dataclasses.dataclass(frozen=True)
class BrainSettings:
    """How a volume is predicted.

    Attributes:
        overlap_frac: least share of a window that the next one covers again, at most 0.9.
        threshold: probability from which on a voxel is foreground.
        batch_size: windows on the device at a time.
        flips: the predictor averages over flips (it is only recorded here).
        outputs: of a segmentation, some of `OUTPUTS`.
        skip_blank: leave out cells where nothing is, see `blank_below`.
        blank_below: cells whose largest voxel is no larger are left out, in counts; None: what becomes 0 for the
            network of a segmentation, and 0 for deblurring.
        max_ram_bytes: of a process.
        part: I of N parts.
        shard: ZYX voxels of a file; None: by memory.
        box: ZYX slices of the volume that are predicted; None: all of it.
    """

    overlap_frac: float = 0.25
    threshold: float = 0.5
    batch_size: int = 1
    flips: bool = False
    outputs: tuple[str, ...] = OUTPUTS
    skip_blank: bool = True
    blank_below: float | None = None
    max_ram_bytes: int = 8 * 2**30
    part: tuple[int, int] = (1, 1)
    shard: Size | None = None
    box: Box | None = None

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("--overlap", self.overlap_frac, 0.0, 0.9),
            ("--threshold", self.threshold, 0.0, 1.0),
            ("--batch", self.batch_size, 1, 4096),
            ("--part", self.part[0], 1, self.part[1]),
        ):
            if not low <= value <= high:
                raise PredictionError(f"{name} {value}: between {low} and {high} is needed")
        if not self.outputs or set(self.outputs) - set(OUTPUTS):
            raise PredictionError(f"--outputs {','.join(self.outputs)}: some of {','.join(OUTPUTS)} are needed")
        if self.shard is not None and any(side % 8 for side in self.shard):
            raise PredictionError(f"--shard {','.join(map(str, self.shard))}: three multiples of 8 are needed")

    def inside(self, shape: Size) -> Box:
        """The box with its ends written out, cut at a volume of this shape.

        Raises:
            PredictionError: it has no voxel of the volume.
        """
        box = bounded(self.box or (slice(None),) * 3, shape)
        if any(one.start >= one.stop for one in box):
            raise PredictionError(
                f"--box {box_text(self.box)}: it lies outside of the volume of {' x '.join(map(str, shape))} voxels; "
                "give z0:z1,y0:y1,x0:x1 inside"
            )
        return box


def images_of(task: str, outputs: Sequence[str], dtype: str) -> list[Image]:
    """The images that are written while a volume is predicted.

    Raises:
        PredictionError: the task gives no map of a volume.
    """
    if task == "deblur":
        return [deblurred(dtype)]
    if task == "segment":
        return [image for image in (PROBABILITY, MASK) if image.name in outputs]
    raise PredictionError(f"a run of task {task!r} gives no map of a volume; those of segment and deblur do")


def narrow_dtype(dtype: np.dtype) -> np.dtype:
    """The type in which a volume's voxels are used; see `narrowed`."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    return np.dtype(np.float32) if dtype.kind == "f" else np.dtype(np.int32) if dtype.itemsize > 4 else dtype
