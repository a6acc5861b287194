"""Segmentation: the pretrained encoder and decoder, and a 1x1x1 head on their dense features (paper, section 3)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from lsmfm_jax.augment import augment_pair
from lsmfm_jax.losses import segment as losses
from lsmfm_jax.tasks.finetune_pictures import draw_masks
from lsmfm_jax.tasks.finetune_rows import (
    as_task,
    equal_shares,
    first_rows,
    real_rows,
    sample_keys,
    scaled_images,
    sums_by_sample,
)
from lsmfm_jax.tasks.finetuning import Network, backbone_of, dense_head, init_linear
from lsmfm_jax.tasks.inputs import augment_settings
from lsmfm_jax.train.task import Local, PyTree, Rows, Task


@dataclasses.dataclass(frozen=True)
class _Segmentation:
    config: ConfigDict
    network: Network

    def init(self, key: Array) -> tuple[PyTree, PyTree]:
        """Fresh parameters and batch statistics."""
        first, second = jax.random.split(key)
        backbone, statistics = self.network.init(first, tuple(self.config.data.patch_size))
        head = init_linear(second, self.network.backbone.out_channels, 1)
        return {"backbone": backbone, "head": head}, {"backbone": statistics}

    def prepare(self, batch: Rows, key: Array, step: Array) -> Rows:
        """Scales a batch and augments images and masks together."""
        keys = sample_keys(key, batch)
        settings = augment_settings(self.config.augment)
        image, mask = augment_pair(scaled_images(batch), batch["target"][..., None], keys, settings=settings)
        return {"image": image, "mask": mask, "share": equal_shares(batch)}

    def losses(self, logits: Float[Array, "b z y x 1"], mask: Array) -> Float[Array, " b"]:
        """The configured loss of each sample."""
        settings = self.config.loss
        if settings.name == "dice_focal":
            other = losses.focal(logits, mask, alpha=settings.focal_alpha, gamma=settings.focal_gamma)
        else:
            other = losses.cross_entropy(logits, mask)
        loss = settings.dice * losses.dice(logits, mask) + settings.other * other
        share = settings.cl_dice_frac
        return loss if share == 0.0 else (1.0 - share) * loss + share * losses.cl_dice(logits, mask)

    def local(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, rows: Rows, step: Array) -> Local:
        """The loss of a micro-batch."""
        trunk, statistics = self.network.training_trunk(params, batch_stats, rows["image"], step)
        loss = jnp.sum(rows["share"] * self.losses(dense_head(params["head"], trunk), rows["mask"]))
        return Local(loss, {**batch_stats, "backbone": statistics}, {}, None)

    def evaluate(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, batch: Rows) -> PyTree:
        """Counts of voxels of each window, each voxel of a patch in one window alone, and the windows' losses."""
        logits = dense_head(params["head"], self.network.trunk(params, batch_stats, scaled_images(batch)))
        truth = batch["target"] > 0
        predicted = (logits[..., 0] >= 0.0) & batch["valid"]
        counts = {"both": predicted & truth, "predicted": predicted, "true": truth & batch["valid"]}
        return {
            **{name: jnp.sum(mask, axis=(1, 2, 3), dtype=jnp.float32) for name, mask in counts.items()},
            "loss": self.losses(logits, batch["target"][..., None]),
            "weight": batch["weight"],
            "sample": batch["sample"],
        }

    def summarise(self, outputs: list[PyTree]) -> dict[str, float]:
        """Foreground Dice, precision and recall, means over patches, and the loss, a mean over windows.

        A patch whose truth and prediction are both empty counts 1, one with one of them empty 0.
        """
        rows = real_rows(outputs)
        both, predicted, true = (sums_by_sample(rows, name) for name in ("both", "predicted", "true"))
        ratios = {"dice": (2 * both, predicted + true), "precision": (both, predicted), "recall": (both, true)}
        alone = np.where((predicted == 0) & (true == 0), 1.0, 0.0)
        none = (predicted == 0) | (true == 0)
        scores = {
            name: float(np.mean(np.where(none, alone, above / np.maximum(below, 1))))
            for name, (above, below) in ratios.items()
        }
        return {**scores, "loss": float(np.mean(rows["loss"]))}

    def picture(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, batch: Rows) -> PyTree:
        """Input, truth and probability of the first windows of a batch."""
        batch = first_rows(batch, self.config.train.pictures_count)
        image = scaled_images(batch)
        logits = dense_head(params["head"], self.network.trunk(params, batch_stats, image))
        return {
            "image": image[..., 0],
            "truth": batch["target"],
            "prediction": jax.nn.sigmoid(logits[..., 0]),
            "weight": batch["weight"],
        }


def segmentation_task(config: ConfigDict, network: Network) -> Task:
    """The functions of segmentation."""
    return as_task(_Segmentation(config, network), draw_masks)


def build_segmenter(
    record: dict[str, Any], *, dtype: str = "float32"
) -> Callable[[PyTree, PyTree, Float[Array, "b z y x 1"]], Float[Array, "b z y x 1"]]:
    """The network of a segmentation run, for prediction.

    Args:
        record: what the run wrote to `run.json`; `architecture` is read.
        dtype: compute type.

    Returns:
        A pure `apply(params, batch_stats, volumes) -> probabilities`; the trees are those of `read_weights`,
        volumes are scaled to [0, 1] by the percentiles in `record["scaling"]` and clipped.
    """
    network = Network(backbone_of(record["architecture"], dtype=dtype))

    def apply(params: PyTree, batch_stats: PyTree, volumes: Array) -> Array:
        return jax.nn.sigmoid(dense_head(params["head"], network.trunk(params, batch_stats, volumes)))

    return apply
