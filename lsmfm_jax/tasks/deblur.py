"""Deblurring: a residual from the dense features, added to the blurred volume (paper, section 3).

Two scales. The network sees the input as in pretraining: its own percentiles at 0 and 1, clipped. The residual is
added to the *unclipped* input on a wider scale, `target_range`, measured on the training targets: sharp structures
are brighter than anything in their blurred image, and the input's percentiles would cut 1 to 5 % of them off.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from lsmfm_jax.augment import augment_geometry
from lsmfm_jax.data.labelled_patches import Blur, LabelledPatch, read_deblurring
from lsmfm_jax.losses import deblur as losses
from lsmfm_jax.models.backbone import Trunk
from lsmfm_jax.tasks.declaration import FinetuneTask, Patches, PrintLine, Read
from lsmfm_jax.tasks.finetune_pictures import draw_volumes
from lsmfm_jax.tasks.finetune_rows import as_task, equal_shares, first_rows, real_rows, sample_keys, scaled_images
from lsmfm_jax.tasks.finetuning import Network, backbone_of, dense_head
from lsmfm_jax.tasks.inputs import configured_scale, geometry_settings
from lsmfm_jax.train.task import Local, PyTree, Rows, Task


@dataclasses.dataclass(frozen=True)
class _Deblurring:
    config: ConfigDict
    network: Network
    target_range: tuple[float, float]

    def init(self, key: Array) -> tuple[PyTree, PyTree]:
        """Fresh parameters and batch statistics; the head starts at zero, so the first prediction is the input."""
        backbone, statistics = self.network.init(key, tuple(self.config.data.patch_size))
        width = self.network.backbone.out_channels
        head = {"kernel": jnp.zeros((width, 1)), "bias": jnp.zeros((1,))}
        return {"backbone": backbone, "head": head}, {"backbone": statistics}

    def prepare(self, batch: Rows, key: Array, step: Array) -> Rows:
        """Scales a batch by the input's percentiles, and moves input and target together."""
        pair = [scaled_images(batch, name, clip=False) for name in ("image", "target")]
        settings = geometry_settings(self.config.augment)
        image, target = augment_geometry(pair, ["linear", "linear"], sample_keys(key, batch), settings=settings)
        return {"image": image, "target": target, "share": equal_shares(batch)}

    def wide(self, volumes: Float[Array, "b z y x 1"]) -> Float[Array, "b z y x 1"]:
        """From the input's scale to that of the target, not clipped."""
        bottom, top = self.target_range
        return (volumes - bottom) / (top - bottom)

    def terms(self, prediction: Array, target: Array) -> dict[str, Float[Array, " b"]]:
        """The terms of the loss and their sum for each sample."""
        weights = self.config.loss
        return losses.deblur_terms(
            prediction,
            target,
            ssim_weight=weights.ssim,
            edge_weight=weights.edge,
            high_frequency_weight=weights.high_frequency,
        )

    def predict(self, head: PyTree, trunk: Trunk, volumes: Float[Array, "b z y x 1"]) -> Float[Array, "b z y x 1"]:
        """The sharpened volumes, on the target's scale."""
        return jnp.clip(self.wide(volumes) + dense_head(head, trunk), 0.0, 1.0)

    def local(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, rows: Rows, step: Array) -> Local:
        """The loss of a micro-batch."""
        seen = jnp.clip(rows["image"], 0.0, 1.0)
        trunk, statistics = self.network.training_trunk(params, batch_stats, seen, step)
        terms = self.terms(self.predict(params["head"], trunk, rows["image"]), self.wide(rows["target"]))
        sums = {name: jnp.sum(rows["share"] * values) for name, values in terms.items()}
        loss = sums.pop("loss")
        return Local(loss, {**batch_stats, "backbone": statistics}, sums, None)

    def _sharpen(self, params: PyTree, batch_stats: PyTree, batch: Rows) -> tuple[Array, Array, Array]:
        image, target = (scaled_images(batch, name, clip=False) for name in ("image", "target"))
        trunk = self.network.trunk(params, batch_stats, jnp.clip(image, 0.0, 1.0))
        return self.wide(image), self.wide(target), self.predict(params["head"], trunk, image)

    def evaluate(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, batch: Rows) -> PyTree:
        """The loss and its terms for each window, and PSNR and SSIM of prediction and blurred input."""
        blurred, target, prediction = self._sharpen(params, batch_stats, batch)
        return {
            **self.terms(prediction, target),
            "psnr": _psnr(prediction, target),
            "psnr_blurred": _psnr(blurred, target),
            "ssim_blurred": losses.ssim(blurred, target),
            "weight": batch["weight"],
            "sample": batch["sample"],
        }

    def summarise(self, outputs: list[PyTree]) -> dict[str, float]:
        """Means over windows."""
        rows = real_rows(outputs)
        order = ("loss", "psnr", "psnr_blurred", "ssim", "ssim_blurred", "l1", "edge", "high_frequency")
        return {name: float(np.mean(rows[name])) for name in order}

    def picture(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, batch: Rows) -> PyTree:
        """Blurred input, truth and prediction of the first windows of a batch."""
        batch = first_rows(batch, self.config.train.pictures_count)
        blurred, target, prediction = self._sharpen(params, batch_stats, batch)
        arrays = {"image": blurred, "truth": target, "prediction": prediction}
        return {**{name: array[..., 0] for name, array in arrays.items()}, "weight": batch["weight"]}


def _psnr(prediction: Array, target: Array) -> Float[Array, " b"]:
    """Peak signal-to-noise ratio in decibels, the peak being the width of the target's scale."""
    error = jnp.mean(jnp.square(prediction - target), axis=(1, 2, 3, 4))
    return -10.0 * jnp.log10(jnp.maximum(error, 1e-10))


def deblurring_task(config: ConfigDict, network: Network, *, target_range: tuple[float, float]) -> Task:
    """The functions of deblurring.

    Args:
        config: of task `deblur`.
        network: the backbone.
        target_range: what becomes 0 and 1 on the target's scale, on the scale of the input's percentiles.
    """
    return as_task(_Deblurring(config, network, target_range), draw_volumes)


def measure_target_range(patches: Sequence[LabelledPatch]) -> tuple[float, float]:
    """The range of sharp intensities on the scale of the blurred input's percentiles, over training patches.

    From the least 0.1th to the greatest 99.9th percentile, [0, 1] at least: a few hot voxels must not compress
    the rest. Targets themselves are not clipped to it.
    """
    bottom, top = 0.0, 1.0
    for patch in patches:
        span = patch.high - patch.low if patch.high > patch.low else 1.0
        low, high = (np.percentile(patch.target, [0.1, 99.9]) - patch.low) / span
        bottom, top = min(bottom, float(low)), max(top, float(high))
    return bottom, top


def build_deblurrer(
    record: dict[str, Any], *, dtype: str = "float32"
) -> Callable[[PyTree, PyTree, Float[Array, "b z y x 1"]], Float[Array, "b z y x 1"]]:
    """The network of a deblurring run, for prediction.

    Args:
        record: what the run wrote to `run.json`; `architecture` and `target_range` are read.
        dtype: compute type.

    Returns:
        A pure `apply(params, batch_stats, volumes) -> sharpened`; the trees are those of `read_weights`. Volumes
        and result are on one scale, `(counts - low) / (high - low)` with the blurred file's percentiles in
        `record["scaling"]`, and must *not* be clipped: `counts = low + result * (high - low)`.
    """
    network = Network(backbone_of(record["architecture"], dtype=dtype))
    bottom, top = record["target_range"]

    def apply(params: PyTree, batch_stats: PyTree, volumes: Array) -> Array:
        residual = dense_head(params["head"], network.trunk(params, batch_stats, jnp.clip(volumes, 0.0, 1.0)))
        wide = (volumes - bottom) / (top - bottom)
        return jnp.clip(wide + residual, 0.0, 1.0) * (top - bottom) + bottom

    return apply


def _functions(
    config: ConfigDict, network: Network, patches: Patches, print_line: PrintLine
) -> tuple[Task, dict[str, Any]]:
    bottom, top = measure_target_range(patches.train)
    print_line(f"target range {bottom:.3f} to {top:.3f} on the scale of the blurred input's percentiles")
    facts = {"head": {"kind": "dense", "outputs": 1}, "target_range": [bottom, top]}
    return deblurring_task(config, network, target_range=(bottom, top)), facts


def _reader(config: ConfigDict, classes: tuple[str, ...]) -> Read:
    made, blur = config.blur, None
    if made.source == "made":
        blur = Blur(tuple(made.sigma_voxels), tuple(made.sigma_um), made.noise_counts, config.seed)
    return functools.partial(read_deblurring, blur=blur, scale=configured_scale(config))


DEBLUR = FinetuneTask(
    functions=_functions,
    reader=_reader,
    network=build_deblurrer,
    monitor="loss",
    higher_is_better=False,
    companion=lambda config: "" if config.blur.source == "made" else "_blurred",
    # A sharp volume goes beyond its blurred image: the network clips its own input.
    clips=False,
    image_ending="_blurred",
    truth_ending="",
)
