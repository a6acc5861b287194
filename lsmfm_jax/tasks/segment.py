"""Segmentation: the pretrained encoder and decoder, and a 1x1x1 head on their dense features (paper, section 3)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from lsmfm_jax.augment import augment_pair
from lsmfm_jax.data.labelled_patches import read_segmentation
from lsmfm_jax.data.labels import IGNORED, LabelValues
from lsmfm_jax.losses import segment as losses
from lsmfm_jax.tasks.declaration import FinetuneTask, Patches, PrintLine, Read
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
from lsmfm_jax.tasks.inputs import augment_settings, configured_scale, varied
from lsmfm_jax.tasks.label_summary import describe_labels, suggest_plan
from lsmfm_jax.tasks.voxel_classifier import VoxelClassifier, fit_voxel_classifier, recorded
from lsmfm_jax.train.task import Local, PyTree, Rows, Task

# In a run's record where predictions leave its network out; see predict/network_share.py.
LEFT_OUT = "network_left_out"


@dataclasses.dataclass(frozen=True)
class _Segmentation:
    config: ConfigDict
    network: Network
    voxels: VoxelClassifier | None

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
        images = varied(scaled_images(batch), keys, self.config)
        image, mask = augment_pair(images, batch["target"][..., None], keys, settings=settings)
        return {"image": image, "mask": mask, "share": equal_shares(batch)}

    def losses(self, logits: Float[Array, "b z y x 1"], mask: Array) -> Float[Array, " b"]:
        """The configured loss of each sample, over the voxels that are annotated."""
        settings = self.config.loss
        annotated = None
        if self.config.data.ignore_labels:
            annotated = mask != IGNORED
            mask = jnp.where(annotated, mask, 0)
        return losses.segmentation_loss(
            logits,
            mask,
            annotated=annotated,
            name=settings.name,
            dice_weight=settings.dice,
            other_weight=settings.other,
            alpha=settings.focal_alpha,
            gamma=settings.focal_gamma,
            cl_dice_frac=settings.cl_dice_frac,
        )

    def local(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, rows: Rows, step: Array) -> Local:
        """The loss of a micro-batch."""
        trunk, statistics = self.network.training_trunk(params, batch_stats, rows["image"], step)
        loss = jnp.sum(rows["share"] * self.losses(dense_head(params["head"], trunk), rows["mask"]))
        return Local(loss, {**batch_stats, "backbone": statistics}, {}, None)

    def _combined(self, logits: Float[Array, "b z y x 1"], image: Float[Array, "b z y x 1"]) -> Array:
        return logits if self.voxels is None else self.voxels.combined(logits, image)

    def evaluate(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, batch: Rows) -> PyTree:
        """Counts of voxels of each window, each voxel of a patch in one window alone, and the windows' losses."""
        image = scaled_images(batch)
        logits = dense_head(params["head"], self.network.trunk(params, batch_stats, image))
        decisive = self._combined(logits, image)
        annotated = batch["target"] != IGNORED
        counted = batch["valid"] & annotated
        predicted, truth = (decisive[..., 0] >= 0.0) & counted, (batch["target"] > 0) & counted
        counts = {"both": predicted & truth, "predicted": predicted, "true": truth, "annotated": annotated}
        return {
            **{name: jnp.sum(mask, axis=(1, 2, 3), dtype=jnp.float32) for name, mask in counts.items()},
            "loss": self.losses(logits, batch["target"][..., None]),
            "weight": batch["weight"],
            "sample": batch["sample"],
        }

    def summarise(self, outputs: list[PyTree]) -> dict[str, float]:
        """Foreground Dice, precision and recall, means over patches, and the loss, a mean over windows.

        A patch whose truth and prediction are both empty counts 1, one with one of them empty 0. Windows without an
        annotated voxel are left out of the loss.
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
        return {**scores, "loss": float(np.mean(rows["loss"][rows["annotated"] > 0]))}

    def picture(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, batch: Rows) -> PyTree:
        """Input, truth and probability of the first windows of a batch."""
        batch = first_rows(batch, self.config.train.pictures_count)
        image = scaled_images(batch)
        logits = dense_head(params["head"], self.network.trunk(params, batch_stats, image))
        return {
            "image": image[..., 0],
            "truth": batch["target"],
            "prediction": jax.nn.sigmoid(self._combined(logits, image)[..., 0]),
            "weight": batch["weight"],
        }


def segmentation_task(config: ConfigDict, network: Network, voxels: VoxelClassifier | None = None) -> Task:
    """The functions of segmentation, with a regression of voxels beside the network if there is one."""
    return as_task(_Segmentation(config, network, voxels), draw_masks)


def build_segmenter(
    record: dict[str, Any], *, dtype: str = "float32"
) -> Callable[[PyTree, PyTree, Float[Array, "b z y x 1"]], Float[Array, "b z y x 1"]]:
    """The network of a segmentation run, for prediction.

    Args:
        record: what the run wrote to `run.json`; `architecture`, `network_cut_off`, `voxel_classifier`,
            `network_left_out` and `logit_shift` are read.
        dtype: compute type.

    Returns:
        A pure `apply(params, batch_stats, volumes) -> probabilities`; the trees are those of `read_weights`,
        volumes are scaled to [0, 1] as `record["scaling"]` says and clipped.
    """
    network = Network(backbone_of(record["architecture"], dtype=dtype))
    voxels = recorded(record.get("voxel_classifier"))
    if voxels is not None and LEFT_OUT in record:
        voxels = dataclasses.replace(voxels, network_weight=0.0)
    cut = float(record.get("network_cut_off", {}).get("logit", 0.0))  # of predict/cut_off.py
    shift = float(record.get("logit_shift", 0.0))  # of a calibration

    def apply(params: PyTree, batch_stats: PyTree, volumes: Array) -> Array:
        logits = dense_head(params["head"], network.trunk(params, batch_stats, volumes)) - cut
        return jax.nn.sigmoid((logits if voxels is None else voxels.combined(logits, volumes)) + shift)

    return apply


def configured_values(config: ConfigDict) -> LabelValues:
    """What the label values of a segmentation run mean.

    Raises:
        LabelError: a value is no whole number, or has two meanings.
    """
    data = config.data
    groups = (tuple(data[f"{name}_labels"]) for name in ("foreground", "background", "ignore"))
    return LabelValues(*groups, allow_dense=data.allow_dense_masks)


def _functions(
    config: ConfigDict, network: Network, patches: Patches, print_line: PrintLine
) -> tuple[Task, dict[str, Any]]:
    facts: dict[str, Any] = {"head": {"kind": "dense", "outputs": 1}, "labels": configured_values(config).record()}
    suggest_plan(config, patches, print_line)
    voxels = fit_voxel_classifier(config, patches, print_line)
    if voxels is not None:
        facts["voxel_classifier"] = voxels.record()
    return segmentation_task(config, network, voxels), facts


def _reader(config: ConfigDict, classes: tuple[str, ...]) -> Read:
    values = configured_values(config)
    return functools.partial(read_segmentation, scale=configured_scale(config), values=values)


SEGMENT = FinetuneTask(
    functions=_functions,
    reader=_reader,
    network=build_segmenter,
    monitor="dice",
    higher_is_better=True,
    companion=lambda config: "_label",
    describe=describe_labels,
    sampling=lambda config: {"foreground_frac": config.data.foreground_frac},
)
