"""What a run makes of one volume in memory: the part of prediction that files and the Python API share."""

import dataclasses
import numbers
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Num

from lsmfm_jax.predict.ensemble import Ensemble, members_of
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.network import Predictor
from lsmfm_jax.predict.uncertainty import mean_probability, mutual_information
from lsmfm_jax.predict.windows import average_windows, blend_windows
from lsmfm_jax.scale import Levels

Volume = Num[np.ndarray, "z y x"]
VoxelSize = Sequence[float] | None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How predictions are made.

    Attributes:
        overlap_frac: least share of a window that the next one covers again, at most 0.9.
        threshold: probability from which on a voxel is foreground.
        batch_size: windows on the device at a time.
        channel: of files with several, from 0; None: they have one.
    """

    overlap_frac: float = 0.25
    threshold: float = 0.5
    batch_size: int = 1
    channel: int | None = None

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("--overlap", self.overlap_frac, 0.0, 0.9),
            ("--threshold", self.threshold, 0.0, 1.0),
            ("--batch", self.batch_size, 1, 4096),
        ):
            kind = numbers.Integral if name == "--batch" else numbers.Real
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                whole = "a whole number " if kind is numbers.Integral else ""
                raise PredictionError(f"{name} {value}: {whole}between {low} and {high} is needed")


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """What a segmentation run, or the mean of several, finds in a volume.

    Attributes:
        probability: of foreground, 0 to 1, float32; 0 everywhere in a volume whose voxels are all the same.
        mask: where the probability reaches the threshold.
        levels: how the volume's counts were scaled; of runs that scale differently, for each scale.
        uncertainty: how much the members of an ensemble disagree (see `uncertainty.mutual_information`), in bits, 0 to
            1, float32; None of a single run.
    """

    probability: Float[np.ndarray, "z y x"]
    mask: Bool[np.ndarray, "z y x"]
    levels: Levels | tuple[Levels, ...]
    uncertainty: Float[np.ndarray, "z y x"] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
    """What a classification run takes a volume for.

    Attributes:
        probabilities: of each class by its name, in the run's order; they add up to 1.
        levels: how the volume's counts were scaled.
    """

    probabilities: dict[str, float]
    levels: Levels

    @property
    def class_name(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])


@dataclasses.dataclass(frozen=True, eq=False)
class Deblurring:
    """What a deblurring run makes of a volume.

    Attributes:
        volume: sharpened, in the counts of the input, float32; it may go below and above the input's range.
        levels: how the volume's counts were scaled.
    """

    volume: Float[np.ndarray, "z y x"]
    levels: Levels


Result = Segmentation | Classification | Deblurring


def segment(
    predictor: Predictor | Ensemble, image: Volume, voxel_size_um: VoxelSize, settings: Settings
) -> Segmentation:
    """Segments a volume.

    Args:
        predictor: of a segmentation run, or of several.
        image: raw counts.
        voxel_size_um: ZYX, None where it is unknown.
        settings: how.
    """
    blank = image.min() == image.max()  # nothing is in it, whatever a network makes of it
    members = members_of(predictor)
    levels = {one.scale: one.levels(image, voxel_size_um) for one in {one.scale: one for one in members}.values()}
    probability, uncertainty = np.zeros(image.shape, np.float32), None
    if not blank:
        each = [np.clip(_blended(one, image, levels[one.scale], settings), 0.0, 1.0) for one in members]
        probability = each[0] if len(each) == 1 else mean_probability(each)
        uncertainty = None if len(each) == 1 else mutual_information(each)
    elif len(members) > 1:
        uncertainty = np.zeros(image.shape, np.float32)
    mask = (probability >= settings.threshold) & (not blank)
    different = tuple(levels.values())
    return Segmentation(probability, mask, different[0] if len(different) == 1 else different, uncertainty)


def classify(predictor: Predictor, image: Volume, voxel_size_um: VoxelSize, settings: Settings) -> Classification:
    """Classifies a volume by the mean of its windows' probabilities; arguments as `segment`."""
    levels = predictor.levels(image, voxel_size_um)
    probabilities = average_windows(
        predictor.apply,
        predictor.prepared(image, levels),
        window=predictor.window,
        overlap_frac=settings.overlap_frac,
        batch_size=settings.batch_size,
    )
    classes = [str(name) for name in predictor.record["classes"]]
    return Classification(dict(zip(classes, map(float, probabilities), strict=True)), levels)


def deblur(predictor: Predictor, image: Volume, voxel_size_um: VoxelSize, settings: Settings) -> Deblurring:
    """Sharpens a volume; arguments as `segment`."""
    levels = predictor.levels(image, voxel_size_um)
    span = levels.high - levels.low if levels.high > levels.low else 1.0
    result = _blended(predictor, image, levels, settings)
    return Deblurring((levels.low + result * span).astype(np.float32), levels)


def _blended(predictor: Predictor, image: Volume, levels: Levels, settings: Settings) -> Float[np.ndarray, "z y x"]:
    return blend_windows(
        predictor.apply,
        predictor.prepared(image, levels),
        window=predictor.window,
        overlap_frac=settings.overlap_frac,
        batch_size=settings.batch_size,
    )
