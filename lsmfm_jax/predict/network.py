"""The network of a finetuned run, and the scale on which it sees raw intensities."""

import dataclasses
import functools
import numbers
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Num

from lsmfm_jax.models import BACKBONES
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.statistics import Box, Readable, VolumeStatistics, measure
from lsmfm_jax.predict.windows import Size, WindowFunction, flip_averaged
from lsmfm_jax.scale import Levels, Scale, check_seen, naming, scale_of
from lsmfm_jax.scale import measure as measure_levels
from lsmfm_jax.tasks.finetune_tasks import FINETUNING
from lsmfm_jax.train.compilation import compiler_options
from lsmfm_jax.train.fingerprints import combined_fingerprint
from lsmfm_jax.train.sharding import make_mesh
from lsmfm_jax.train.weights import Weights, read_weights


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A finetuned network on the device.

    Attributes:
        task: a key of `FINETUNING`.
        record: what the run wrote of itself.
        origin: folder and step of its weights.
        window: ZYX voxels that the network is applied to at a time.
        scale: of intensities, as in training.
        apply: prepared windows (B, Z, Y, X) float32 to (B, Z, Y, X) probabilities, (B, K) class probabilities, or
            (B, Z, Y, X) sharpened volumes on the prepared scale.
        fingerprint: of the weights.
        temporary_bytes: of a batch size, what the network needs besides weights, input and output; 0: unknown.
        xla: which flags of the compiler it has, a mode of `train.xla`.
    """

    task: str
    record: dict[str, Any]
    origin: str
    window: Size
    scale: Scale
    apply: WindowFunction
    fingerprint: str = ""
    temporary_bytes: Callable[[int], int] = lambda batch_size: 0
    xla: str = "default"

    def measure(self, volume: Readable, *, progress: Callable[[int], None] = lambda voxels: None) -> VolumeStatistics:
        """What scaling needs to know of a whole volume.

        Raises:
            ScaleError: the run's scale sees nothing in it.
            PredictionError: values that are not finite or need more than 32 bits.
        """
        statistics = measure(volume, self.scale, progress=progress)
        with naming(getattr(volume, "path", "the volume")):
            check_seen(statistics.levels)
        return statistics

    def prepare(self, tile: np.ndarray, box: Box, levels: Levels) -> Float[np.ndarray, "z y x"]:
        """What the network sees of raw voxels: the one place where prediction scales intensities.

        Args:
            tile: raw counts.
            box: where the tile lies in its volume.
            levels: of the whole volume.
        """
        # Sharp volumes go beyond their blurred image, so the deblurrer clips by itself.
        return levels.apply(tile, [one.start for one in box], clip=FINETUNING[self.task].clips)

    def levels(self, volume: Num[np.ndarray, "z y x"], voxel_size_um: Sequence[float] | None = None) -> Levels:
        """What a volume in memory measures.

        Raises:
            ScaleError: the run's scale sees nothing in it.
        """
        return check_seen(measure_levels(volume, self.scale, voxel_size_um))

    def prepared(self, volume: Num[np.ndarray, "z y x"], levels: Levels) -> Float[np.ndarray, "z y x"]:
        """What the network sees of a volume in memory."""
        return self.prepare(volume, tuple(slice(0, size) for size in volume.shape), levels)


def load_predictor(
    checkpoint: pathlib.Path, *, window: Size | None = None, flips: bool = False, xla: str | None = None
) -> Predictor:
    """Reads a finetuned run.

    Args:
        checkpoint: its folder.
        window: ZYX voxels; None: the patch size that it was trained on.
        flips: average over the eight flips of each window.
        xla: flags of the compiler, a mode of `train.xla`; None: that of the run.

    Raises:
        PredictionError: the run is of a task without predictions, or the window does not fit the network.
        CheckpointError: there is no run, or it is damaged.
        InputError: the mode is unknown, or needs something that is set otherwise.
    """
    return predictor_of(read_weights(checkpoint), checkpoint, window=window, flips=flips, xla=xla)


def predictor_of(
    weights: Weights,
    checkpoint: pathlib.Path,
    *,
    window: Size | None = None,
    flips: bool = False,
    xla: str | None = None,
) -> Predictor:
    """As `load_predictor`, of weights that were read from `checkpoint` before."""
    task = weights.record.get("task")
    if task not in FINETUNING:
        raise PredictionError(
            f"{checkpoint}: a run of task {task!r} predicts nothing by itself; finetune it (lsmfm finetune, with "
            f"init_from={str(checkpoint)!r}) and name that run; predictions come from {', '.join(FINETUNING)}"
        )
    recorded = recorded_window(weights, checkpoint)
    window = _checked_window(recorded if window is None else window, weights.architecture)
    # Runs from before there were modes, and converted weights, have none.
    mode = xla or weights.record.get("xla", {}).get("mode", "default")
    apply, temporary_bytes = _compiled(weights, window=window, flips=flips, xla=mode)
    return Predictor(
        task=task,
        record=weights.record,
        origin=weights.origin,
        window=window,
        scale=scale_of(weights.record["scaling"]),
        apply=apply,
        fingerprint=combined_fingerprint({"params": weights.params, "batch_stats": weights.batch_stats}),
        temporary_bytes=temporary_bytes,
        xla=mode,
    )


def recorded_window(weights: Weights, checkpoint: pathlib.Path) -> Size:
    """The patch size, ZYX voxels, of a finetuned run that recorded how it saw its patches.

    Raises:
        PredictionError: it did not.
    """
    missing = [key for key in ("patch_size", "scaling") if key not in weights.record]
    if missing:
        raise PredictionError(f"{checkpoint / 'run.json'}: no {' and no '.join(missing)}; finetune the run again")
    z, y, x = weights.record["patch_size"]
    return z, y, x


def _compiled(weights: Weights, *, window: Size, flips: bool, xla: str) -> tuple[WindowFunction, Callable[[int], int]]:
    """The network as a function of prepared windows, and the memory that a batch of them needs meanwhile."""
    network = FINETUNING[weights.record["task"]].network(weights.record)
    # By default what XLA does by itself: what helps a training step on a CPU was not measured for predictions.
    options = None if xla == "default" else compiler_options(make_mesh(devices=jax.local_devices()[:1]), xla)

    @functools.partial(jax.jit, compiler_options=options)
    def run(params: Any, batch_stats: Any, windows: Array) -> Array:
        def one(x: Array) -> Array:
            return network(params, batch_stats, x)

        result = (flip_averaged(one) if flips else one)(windows[..., None])
        return result[..., 0] if result.ndim == 5 else result

    def temporary_bytes(batch_size: int) -> int:
        windows = jax.ShapeDtypeStruct((batch_size, *window), np.float32)
        needed = run.lower(*on_device, windows).compile().memory_analysis()
        return 0 if needed is None else int(needed.temp_size_in_bytes)

    # Arguments and not constants, which the compiler would fold for minutes.
    on_device = jax.device_put((weights.params, weights.batch_stats))
    return (lambda windows: run(*on_device, windows)), temporary_bytes


def _checked_window(window: Any, architecture: dict[str, Any]) -> Size:
    factor, _ = BACKBONES[architecture["name"]].divisor(architecture)
    sides = tuple(window) if isinstance(window, Iterable) and not isinstance(window, str) else (window,)
    whole = [isinstance(side, numbers.Integral) and not isinstance(side, bool) for side in sides]
    if len(sides) != 3 or not all(whole) or any(side < factor or side % factor for side in sides):
        near = [max(1, round(side / factor)) * factor if isinstance(side, numbers.Real) else factor for side in sides]
        raise PredictionError(
            f"--window {','.join(map(str, sides))}: the {architecture['name']} of this run takes three multiples of "
            f"{factor}, such as {','.join(map(str, (near * 3)[:3]))}"
        )
    z, y, x = (int(side) for side in sides)
    return z, y, x
