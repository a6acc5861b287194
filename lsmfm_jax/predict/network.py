"""The network of a finetuned run, as a function of windows of raw intensities."""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from lsmfm_jax.augment import scale_intensity
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.windows import Size, WindowFunction, flip_averaged
from lsmfm_jax.tasks.classify import build_classifier
from lsmfm_jax.tasks.deblur import build_deblurrer
from lsmfm_jax.tasks.segment import build_segmenter
from lsmfm_jax.train.weights import Weights, read_weights

BUILDERS: dict[str, Callable[..., Any]] = {
    "segment": build_segmenter,
    "classify": build_classifier,
    "deblur": build_deblurrer,
}


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A finetuned network on the device.

    Attributes:
        task: "segment", "classify" or "deblur".
        record: what the run wrote of itself.
        origin: folder and step of its weights.
        window: ZYX voxels that the network is applied to at a time.
        percentiles: of a volume's intensities, that become 0 and 1.
    """

    task: str
    record: dict[str, Any]
    origin: str
    window: Size
    percentiles: tuple[float, float]
    _apply: Callable[[np.ndarray, np.ndarray, np.ndarray], Array | np.ndarray]

    def span(self, volume: np.ndarray) -> tuple[float, float]:
        """The intensities of a volume that become 0 and 1."""
        low, high = np.percentile(volume, self.percentiles)
        return float(low), float(high)

    def on(self, volume: np.ndarray) -> WindowFunction:
        """The network as a function of windows of this volume, (B, Z, Y, X) in its own units.

        It gives (B, Z, Y, X) probabilities, (B, K) class probabilities, or (B, Z, Y, X) sharpened volumes in
        units of `span`.
        """
        low, high = self.span(volume)

        def apply(windows: np.ndarray) -> Array | np.ndarray:
            return self._apply(windows, *(np.full(len(windows), edge, np.float32) for edge in (low, high)))

        return apply


def load_predictor(checkpoint: pathlib.Path, *, window: Size | None = None, flips: bool = False) -> Predictor:
    """Reads a finetuned run.

    Args:
        checkpoint: its folder.
        window: ZYX voxels; None: the patch size that it was trained on.
        flips: average over the eight flips of each window.

    Raises:
        PredictionError: the run is of a task without predictions, or the window does not fit the network.
        CheckpointError: there is no run, or it is damaged.
    """
    weights = read_weights(checkpoint)
    task = weights.record.get("task")
    if task not in BUILDERS:
        raise PredictionError(
            f"{checkpoint}: a run of task {task!r} predicts nothing by itself; finetune it (lsmfm finetune, with "
            f"init_from={str(checkpoint)!r}) and name that run; predictions come from {', '.join(BUILDERS)}"
        )
    missing = [key for key in ("patch_size", "scaling") if key not in weights.record]
    if missing:
        raise PredictionError(f"{checkpoint / 'run.json'}: no {' and no '.join(missing)}; finetune the run again")
    window = tuple(window or weights.record["patch_size"])
    _check_window(window, weights.architecture)
    scaling = weights.record["scaling"]
    return Predictor(
        task=task,
        record=weights.record,
        origin=weights.origin,
        window=window,
        percentiles=(float(scaling["lower"]), float(scaling["upper"])),
        _apply=_compiled(weights, flips=flips),
    )


def _compiled(weights: Weights, *, flips: bool) -> Callable[[np.ndarray, np.ndarray, np.ndarray], Array]:
    network = BUILDERS[weights.record["task"]](weights.record)
    # A sharp volume goes beyond its blurred image: the deblurrer clips where it must by itself.
    clip = weights.record["task"] != "deblur"

    @jax.jit
    def run(params: Any, batch_stats: Any, windows: Array, low: Array, high: Array) -> Array:
        def one(x: Array) -> Array:
            return network(params, batch_stats, x)

        scaled = scale_intensity(windows, low, high, clip=clip)[..., None]
        result = (flip_averaged(one) if flips else one)(scaled)
        return result[..., 0] if result.ndim == 5 else result

    # Arguments and not constants, which the compiler would fold for minutes.
    on_device = jax.device_put((weights.params, weights.batch_stats))
    return lambda windows, low, high: run(*on_device, windows, low, high)


def _check_window(window: tuple[int, ...], architecture: dict[str, Any]) -> None:
    factor = {"unet": math.prod(architecture.get("strides", ())), "swin_unetr": 32, "resnet18": 1}[architecture["name"]]
    if len(window) != 3 or any(side < factor or side % factor for side in window):
        raise PredictionError(
            f"--window {','.join(map(str, window))}: the {architecture['name']} of this run takes three multiples of "
            f"{factor}, such as {','.join(str(max(1, round(side / factor)) * factor) for side in window)}"
        )
