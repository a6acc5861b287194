"""The package from Python: a run as an object that takes arrays.

    import lsmfm_jax
    model = lsmfm_jax.load("runs/cells")
    mask = model.predict(volume, voxel_size_um=(4.0, 1.6, 1.6)).mask
    both = lsmfm_jax.load(["runs/seed0", "runs/seed1"])  # the mean of segmentation runs, and their uncertainty

Results are those of `lsmfm predict` on a file with the same voxels and voxel size, number by number.
"""

import functools
import math
import pathlib
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from jaxtyping import Float

from lsmfm_jax.predict.embedding import ImageEncoder, TextEncoder, image_encoder, text_encoder
from lsmfm_jax.predict.ensemble import Ensemble, check_members, ensemble_of
from lsmfm_jax.predict.in_memory import Result, Segmentation, Settings
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.network import Predictor, predictor_of
from lsmfm_jax.predict.run import WRITERS
from lsmfm_jax.predict.windows import Size
from lsmfm_jax.scale import naming
from lsmfm_jax.train.weights import Weights, read_weights
from lsmfm_jax.volumes.read import checked_array


class Model:
    """A trained run in memory; `load` makes one. Networks are compiled at their first use.

    Attributes:
        run: its folder.
        task: `segment`, `classify`, `deblur`, `inpaint`, `pretrain`, or `backbone` of imported weights alone.
        classes: names of the classes, in their order; none for other tasks than classification.
        record: what the run wrote of itself (`run.json`).
        origin: folder and step of the weights.
    """

    def __init__(self, run: pathlib.Path, weights: Weights, *, window: Size | None = None, flips: bool = False) -> None:
        self.run, self.record, self.origin = run, weights.record, weights.origin
        self.task: str = weights.record.get("task", "")
        self.classes: tuple[str, ...] = tuple(weights.record.get("classes", ()))
        self._weights, self._window, self._flips = weights, window, flips

    def __repr__(self) -> str:
        return f"<lsmfm_jax.Model: {self.task}, {self._weights.architecture['name']}, {self.origin}>"

    def predict(
        self,
        volume: Any,
        voxel_size_um: Sequence[float] | None = None,
        *,
        threshold: float = 0.5,
        overlap_frac: float = 0.25,
        batch_size: int = 1,
    ) -> Result:
        """What the run makes of a volume.

        Args:
            volume: array (Z, Y, X) of raw counts, of one channel and any size; integers, bool or floats.
            voxel_size_um: Z, Y, X in micrometres, where known. It matters for runs whose background is a mean over
                micrometres (`data.background_sigma_um`), which otherwise count in voxels.
            threshold: probability from which on a voxel is foreground, 0 to 1; of segmentation alone.
            overlap_frac: least share of a window that the next one covers again, 0 to 0.9.
            batch_size: windows on the device at a time.

        Returns:
            Segmentation: an object with `probability` (float32, Z, Y, X) and `mask` (bool); classification: with
            `probabilities` by class name and `class_name`; deblurring: with `volume` (float32, in counts).

        Raises:
            VolumeError: no array of numbers with three axes, NaN in it, or (but for segmentation) all voxels equal.
            PredictionError: the run predicts nothing, or a setting is out of its range.
            ScaleError: the run's scale is of ratios of counts, and these are none, such as values from 0 to 1.
        """
        settings = Settings(overlap_frac, threshold, batch_size)
        return _computed(self._predictor, self.run, volume, voxel_size_um, settings)

    def embed(self, volume: Any, voxel_size_um: Sequence[float] | None = None) -> Float[np.ndarray, " d"]:
        """A vector of a volume, float32, to compare or to cluster volumes by.

        Of a pretraining run with captions it is the projected vector of length 1 that lies near the vectors of
        fitting texts (`embed_text`). Of any other run it is the mean over voxels of the encoder's deepest map, which
        has no fixed length. A volume of several windows gets the mean of theirs.

        Args:
            volume: as in `predict`.
            voxel_size_um: as in `predict`.

        Raises:
            VolumeError: as `predict`.
            PredictionError: imported weights of a backbone alone, which do not say how they saw intensities.
        """
        encoder = self._image_encoder
        return encoder.embed(checked_array(volume), _checked_size(voxel_size_um))

    def embed_text(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """A vector of length 1 for each text, float32; products with those of `embed` are cosines.

        Args:
            texts: a list of captions.

        Raises:
            PredictionError: a run without a text tower, or no text.
            TextModelError: the run's text model cannot be read.
        """
        return self._text_encoder.embed(texts)

    @functools.cached_property
    def _predictor(self) -> Predictor:
        return predictor_of(self._weights, self.run, window=self._window, flips=self._flips)

    @functools.cached_property
    def _image_encoder(self) -> ImageEncoder:
        return image_encoder(self._weights, self.run)

    @functools.cached_property
    def _text_encoder(self) -> TextEncoder:
        return text_encoder(self._weights, self.run)


class Models:
    """Several segmentation runs in memory, which predict together; `load` of a list makes one.

    Attributes:
        runs: their folders.
        task: `segment`.
    """

    def __init__(
        self, runs: Sequence[pathlib.Path], weights: Sequence[Weights], *, window: Size | None, flips: bool
    ) -> None:
        check_members(weights, runs)
        self.runs, self.task = tuple(runs), "segment"
        self._weights, self._window, self._flips = tuple(weights), window, flips

    def __repr__(self) -> str:
        return f"<lsmfm_jax.Models: {self.task}, {', '.join(map(str, self.runs))}>"

    def predict(
        self,
        volume: Any,
        voxel_size_um: Sequence[float] | None = None,
        *,
        threshold: float = 0.5,
        overlap_frac: float = 0.25,
        batch_size: int = 1,
    ) -> Segmentation:
        """As `Model.predict`; `probability` is the mean of the runs', `uncertainty` how much they disagree, in bits."""
        settings = Settings(overlap_frac, threshold, batch_size)
        return _computed(self._predictor, self.runs[0], volume, voxel_size_um, settings)

    @functools.cached_property
    def _predictor(self) -> Predictor | Ensemble:
        return ensemble_of(self._weights, self.runs, window=self._window, flips=self._flips)


@overload
def load(run: str | pathlib.Path, *, window: Size | None = None, flips: bool = False) -> Model: ...


@overload
def load(run: Sequence[str | pathlib.Path], *, window: Size | None = None, flips: bool = False) -> Models: ...


def load(
    run: str | pathlib.Path | Sequence[str | pathlib.Path], *, window: Size | None = None, flips: bool = False
) -> Model | Models:
    """Reads a run, or several that predict together, for use from Python.

    Args:
        run: folder of a run (`--workdir`), of `lsmfm calibrate` or of `lsmfm convert import`; or a list of two or more
            segmentation runs of the same label values, such as those of several seeds.
        window: ZYX voxels that predictions are made at a time; None: the patch size of the run.
        flips: average predictions over the eight flips of each window.

    Raises:
        CheckpointError: there is no run, or it is damaged.
        PredictionError: a list of fewer than two runs, or of runs that cannot be combined.
    """
    if run is None or not isinstance(run, str | pathlib.Path | Sequence):
        raise PredictionError(f"lsmfm_jax.load: {run!r}; name the folder of a run, or a list of folders")
    if not isinstance(run, str | pathlib.Path):
        runs = [pathlib.Path(one) for one in run]
        if len(runs) < 2:
            raise PredictionError(
                f"lsmfm_jax.load: a list of {len(runs)} runs; name two or more, or one without a list"
            )
        return Models(runs, [read_weights(one) for one in runs], window=window, flips=flips)
    run = pathlib.Path(run)
    return Model(run, read_weights(run), window=window, flips=flips)


def _computed(
    predictor: Predictor | Ensemble, run: pathlib.Path, volume: Any, voxel_size_um: Any, settings: Settings
) -> Any:
    writer = WRITERS.get(predictor.task)
    if writer is None or writer.compute is None:
        raise PredictionError(f"{run}: a run of task {predictor.task!r} gives no result in memory; use lsmfm predict")
    image = checked_array(volume, allow_constant=writer.takes_constant)
    with naming("the array"):
        return writer.compute(predictor, image, _checked_size(voxel_size_um), settings)


def _checked_size(voxel_size_um: Any) -> tuple[float, float, float] | None:
    if voxel_size_um is None:
        return None
    try:
        z, y, x = (float(side) for side in voxel_size_um)
    except (TypeError, ValueError):
        z = y = x = math.nan
    if not all(0 < side < math.inf for side in (z, y, x)):
        raise PredictionError(
            f"voxel_size_um: {voxel_size_um!r}; three positive numbers of micrometres along Z, Y, X are needed, or None"
        )
    return z, y, x
