"""Classification: the encoder's deepest map, its mean over voxels, one linear layer (paper, section 3)."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from lsmfm_jax.augment import augment
from lsmfm_jax.data.labelled_patches import read_classification
from lsmfm_jax.losses.classify import class_weights, cross_entropy, shares_by_class
from lsmfm_jax.metrics.classification import classification_scores, confusion_matrix
from lsmfm_jax.tasks.declaration import FinetuneTask, Patches, PrintLine, Read
from lsmfm_jax.tasks.finetune_pictures import draw_classes
from lsmfm_jax.tasks.finetune_rows import (
    as_task,
    equal_shares,
    first_rows,
    real_rows,
    sample_keys,
    scaled_images,
    sums_by_sample,
)
from lsmfm_jax.tasks.finetuning import Network, backbone_of, init_linear, pooled_head
from lsmfm_jax.tasks.inputs import augment_settings, configured_scale, varied
from lsmfm_jax.train.task import Local, PyTree, Rows, Task


@dataclasses.dataclass(frozen=True)
class _Classification:
    config: ConfigDict
    network: Network
    classes: tuple[str, ...]
    class_weights: tuple[float, ...]

    def init(self, key: Array) -> tuple[PyTree, PyTree]:
        """Fresh parameters and batch statistics; the decoder is kept beside, so that the run can start others."""
        first, second = jax.random.split(key)
        size = tuple(self.config.data.patch_size)
        backbone, statistics = self.network.init(first, size)

        def deepest(params: PyTree) -> Array:
            volume = jnp.zeros((1, *size, 1))
            return self.network.trunk({"backbone": params}, {"backbone": statistics}, volume).stages[-1]

        width = jax.eval_shape(deepest, backbone).shape[-1]
        head = init_linear(second, width, len(self.classes))
        return {"backbone": backbone, "head": head}, {"backbone": statistics}

    def prepare(self, batch: Rows, key: Array, step: Array) -> Rows:
        """Scales and augments a batch, and weighs its samples by their class."""
        settings = augment_settings(self.config.augment)
        keys = sample_keys(key, batch)
        image = augment(varied(scaled_images(batch), keys, self.config), keys, settings=settings)
        # Over the whole batch, so that micro-batches add up to it.
        return {
            "image": image,
            "label": batch["label"],
            "share": shares_by_class(jnp.asarray(self.class_weights), batch["label"]),
            "count": equal_shares(batch),
        }

    def local(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, rows: Rows, step: Array) -> Local:
        """The loss of a micro-batch."""
        # The decoder is not used and frozen, statistics too: so its whole computation is left out.
        trunk, statistics = self.network.training_trunk(params, batch_stats, rows["image"], step)
        logits = pooled_head(params["head"], trunk)
        loss = jnp.sum(rows["share"] * cross_entropy(logits, rows["label"]))
        right = jnp.sum(rows["count"] * (jnp.argmax(logits, axis=1) == rows["label"]))
        return Local(loss, {**batch_stats, "backbone": statistics}, {"accuracy": right}, None)

    def evaluate(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, batch: Rows) -> PyTree:
        """Probabilities of the classes for each window."""
        logits = pooled_head(params["head"], self.network.trunk(params, batch_stats, scaled_images(batch)))
        return {
            "probability": jax.nn.softmax(logits),
            "loss": cross_entropy(logits, batch["label"]),
            "label": batch["label"],
            "weight": batch["weight"],
            "sample": batch["sample"],
        }

    def summarise(self, outputs: list[PyTree]) -> dict[str, float]:
        """Accuracy and macro F1 over patches, whose windows vote by mean probability; the windows' mean loss."""
        rows = real_rows(outputs)
        _, first = np.unique(rows["sample"], return_index=True)
        predicted = np.argmax(sums_by_sample(rows, "probability"), axis=1)
        matrix = confusion_matrix(rows["label"][first], predicted, classes=len(self.classes))
        return {**classification_scores(matrix), "loss": float(np.mean(rows["loss"]))}

    def picture(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, batch: Rows) -> PyTree:
        """Input, class and probabilities of the first windows of a batch."""
        batch = first_rows(batch, self.config.train.pictures_count)
        image = scaled_images(batch)
        logits = pooled_head(params["head"], self.network.trunk(params, batch_stats, image))
        return {
            "image": image[..., 0],
            "label": batch["label"],
            "prediction": jax.nn.softmax(logits),
            "weight": batch["weight"],
        }


def classification_task(config: ConfigDict, network: Network, *, classes: Sequence[str], counts: Sequence[int]) -> Task:
    """The functions of classification.

    Args:
        config: of task `classify`.
        network: the backbone.
        classes: names, in the order of their numbers.
        counts: training patches of each class.
    """
    weights = class_weights(np.asarray(counts), method=config.loss.class_weights, beta=config.loss.effective_beta)
    parts = _Classification(config, network, tuple(classes), tuple(float(weight) for weight in weights))
    return as_task(parts, functools.partial(draw_classes, classes=tuple(classes)))


def build_classifier(
    record: dict[str, Any], *, dtype: str = "float32"
) -> Callable[[PyTree, PyTree, Float[Array, "b z y x 1"]], Float[Array, "b k"]]:
    """The network of a classification run, for prediction.

    Args:
        record: what the run wrote to `run.json`; `architecture` is read. `record["classes"]` names the columns.
        dtype: compute type.

    Returns:
        A pure `apply(params, batch_stats, volumes) -> probabilities` of each class; the trees are those of
        `read_weights`, volumes are scaled to [0, 1] as `record["scaling"]` says and clipped.
    """
    network = Network(backbone_of(record["architecture"], dtype=dtype))

    def apply(params: PyTree, batch_stats: PyTree, volumes: Array) -> Array:
        return jax.nn.softmax(pooled_head(params["head"], network.trunk(params, batch_stats, volumes)))

    return apply


def _functions(
    config: ConfigDict, network: Network, patches: Patches, print_line: PrintLine
) -> tuple[Task, dict[str, Any]]:
    counts = np.bincount([patch.label for patch in patches.train], minlength=len(patches.classes))
    task = classification_task(config, network, classes=patches.classes, counts=[int(count) for count in counts])
    head = {"kind": "pooled", "outputs": len(patches.classes), "classes": list(patches.classes)}
    return task, {"head": head, "classes": list(patches.classes)}


def _reader(config: ConfigDict, classes: tuple[str, ...]) -> Read:
    return functools.partial(read_classification, classes=classes, scale=configured_scale(config))


def _describe(config: ConfigDict, patches: Patches, print_line: PrintLine) -> None:
    counts = collections.Counter(patch.label for patch in patches.train)
    print_line("classes: " + ", ".join(f"{name} ({counts[k]})" for k, name in enumerate(patches.classes)))


CLASSIFY = FinetuneTask(
    functions=_functions,
    reader=_reader,
    network=build_classifier,
    monitor="accuracy",
    higher_is_better=True,
    describe=_describe,
    has_classes=True,
    uses_decoder=False,
    truth_ending=None,
)
