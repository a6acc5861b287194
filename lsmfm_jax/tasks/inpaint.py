"""Inpainting: voxels of given boxes restored from what is visible around them.

The paper and its code have no inpainting; what is hidden follows their pretraining (section 2.2, released code): of
the cubes of 8 or 16 voxels that tile a crop, drawn for each sample, a share of 0.3, seen as 0. Ours are the rest: the
prediction is a smooth fill of the hidden voxels plus a residual from the dense features, and the loss is that of
deblurring without its terms for edges, on hidden voxels alone.

What is hidden never reaches the network: it sees the visible voxels on the scale of their percentiles, clipped, and
`mask.fill` where they are not. For prediction NaN marks what is hidden, so windows, flips and blending need no second
volume.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from lsmfm_jax.augment import augment_geometry
from lsmfm_jax.data.labelled_patches import read_unlabelled
from lsmfm_jax.losses.inpaint import inpaint_sums, inpaint_terms
from lsmfm_jax.masking import block_mask, fixed_masks
from lsmfm_jax.models.backbone import Trunk
from lsmfm_jax.resample import fill_smoothly
from lsmfm_jax.tasks.declaration import FinetuneTask, Patches, PrintLine, Read
from lsmfm_jax.tasks.finetune_pictures import draw_volumes
from lsmfm_jax.tasks.finetune_rows import as_task, equal_shares, first_rows, real_rows, sample_keys, scaled_images
from lsmfm_jax.tasks.finetuning import Network, backbone_of, dense_head
from lsmfm_jax.tasks.inputs import configured_scale, geometry_settings
from lsmfm_jax.train.task import Local, PyTree, Rows, Task

# Not the seed of the run: every validation of every run hides the same voxels.
_VALIDATION_SEED = 20_261_128
# Folded into a sample's key.
_BOXES = 30

Volumes = Float[Array, "b z y x 1"]
Hidden = Bool[Array, "b z y x"]


@dataclasses.dataclass(frozen=True)
class _Inpainting:
    config: ConfigDict
    network: Network

    def init(self, key: Array) -> tuple[PyTree, PyTree]:
        """Fresh parameters and batch statistics; the head starts at zero: the first prediction is the smooth fill."""
        backbone, statistics = self.network.init(key, tuple(self.config.data.patch_size))
        width = self.network.backbone.out_channels
        head = {"kernel": jnp.zeros((width, 1)), "bias": jnp.zeros((1,))}
        return {"backbone": backbone, "head": head}, {"backbone": statistics}

    def prepare(self, batch: Rows, key: Array, step: Array) -> Rows:
        """Scales and moves a batch, and hides boxes of each sample, drawn by its own key."""
        keys = sample_keys(key, batch)
        settings = geometry_settings(self.config.augment)
        (image,) = augment_geometry([scaled_images(batch, clip=False)], ["linear"], keys, settings=settings)
        boxes = jax.vmap(lambda one: jax.random.fold_in(one, _BOXES))(keys)
        hidden = block_mask(boxes, **self._geometry())
        return {**self._hide(image, hidden), "share": equal_shares(batch)}

    def prepare_validation(self, batch: Rows) -> Rows:
        """Scales a batch and hides boxes that are the same for a patch at every validation of every run."""
        hidden = fixed_masks(_VALIDATION_SEED, batch["sample"], **self._geometry())
        rows = self._hide(scaled_images(batch, clip=False), hidden)
        return rows | {name: batch[name] for name in ("weight", "valid")}

    def _geometry(self) -> dict[str, Any]:
        mask, grid = self.config.mask, tuple(self.config.data.patch_size)
        return {"grid": grid, "block_sizes": tuple(mask.block_sizes), "ratio": mask.ratio}

    def _hide(self, image: Volumes, hidden: Hidden) -> Rows:
        """What the network sees, what it starts from, and what it is compared with."""
        seen, base = _seen_and_base(image, hidden, fill=self.config.mask.fill)
        return {"seen": seen, "base": base, "target": image, "hidden": hidden}

    def local(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, rows: Rows, step: Array) -> Local:
        """The loss of a micro-batch."""
        trunk, statistics = self.network.training_trunk(params, batch_stats, rows["seen"], step)
        weights = self.config.loss
        terms = inpaint_terms(
            _restored(params["head"], trunk, rows["base"], rows["hidden"]),
            rows["target"],
            rows["hidden"],
            l1_weight=weights.l1,
            ssim_weight=weights.ssim,
        )
        sums = {name: jnp.sum(rows["share"] * values) for name, values in terms.items()}
        loss = sums.pop("loss")
        return Local(loss, {**batch_stats, "backbone": statistics}, sums, None)

    def _restore(self, params: PyTree, batch_stats: PyTree, rows: Rows) -> Volumes:
        trunk = self.network.trunk(params, batch_stats, rows["seen"])
        return _restored(params["head"], trunk, rows["base"], rows["hidden"])

    def evaluate(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, rows: Rows) -> PyTree:
        """Sums over the hidden voxels of each window: of the prediction, the smooth fill, and the visible mean."""
        visible = ~rows["hidden"][..., None]
        mean = jnp.mean(rows["target"], axis=(1, 2, 3, 4), keepdims=True, where=visible)
        fills = {
            "": self._restore(params, batch_stats, rows),
            "_smooth": rows["base"],
            "_mean": jnp.broadcast_to(mean, rows["target"].shape),
        }
        found = {
            f"{name}{ending}": values
            for ending, fill in fills.items()
            for name, values in inpaint_sums(fill, rows["target"], rows["hidden"], counted=rows["valid"]).items()
        }
        return {**found, "weight": rows["weight"]}

    def summarise(self, outputs: list[PyTree]) -> dict[str, float]:
        """Means over all hidden voxels, and over all windows of SSIM around them; `loss` is that of training."""
        rows = real_rows(outputs)
        totals = {name: float(np.sum(values, dtype=np.float64)) for name, values in rows.items()}
        figures: dict[str, float] = {}
        for ending in ("", "_smooth", "_mean"):
            figures[f"l1{ending}"] = totals[f"absolute_error{ending}"] / max(totals["voxels"], 1.0)
            figures[f"ssim{ending}"] = 1.0 - totals[f"dissimilarity{ending}"] / max(totals["windows"], 1.0)
        weights = self.config.loss
        loss = weights.l1 * figures["l1"] + weights.ssim * (1.0 - figures["ssim"])
        return {"loss": loss, **figures}

    def picture(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, rows: Rows) -> PyTree:
        """Visible voxels, truth and prediction of the first windows of a batch."""
        rows = first_rows(rows, self.config.train.pictures_count)
        arrays = {
            "image": jnp.where(rows["hidden"][..., None], 0.0, rows["target"]),
            "truth": rows["target"],
            "prediction": self._restore(params, batch_stats, rows),
        }
        return {**{name: array[..., 0] for name, array in arrays.items()}, "weight": rows["weight"]}


def _seen_and_base(image: Volumes, hidden: Hidden, *, fill: float) -> tuple[Volumes, Volumes]:
    """What the network sees of scaled volumes, and the smooth fill that it corrects; hidden values change neither."""
    base = fill_smoothly(image, ~hidden)
    return jnp.where(hidden[..., None], fill, jnp.clip(image, 0.0, 1.0)), base


def _restored(head: PyTree, trunk: Trunk, base: Volumes, hidden: Hidden) -> Volumes:
    """The smooth fill plus the residual where voxels are hidden; `base`, which is the image, where they are not."""
    return jnp.where(hidden[..., None], base + dense_head(head, trunk), base)


def inpainting_task(config: ConfigDict, network: Network) -> Task:
    """The functions of inpainting.

    Args:
        config: of task `inpaint`.
        network: the backbone.
    """
    parts = _Inpainting(config, network)
    draw = functools.partial(draw_volumes, shown="visible voxels")
    return dataclasses.replace(as_task(parts, draw), prepare_validation=parts.prepare_validation)


def build_inpainter(record: dict[str, Any], *, dtype: str = "float32") -> Callable[[PyTree, PyTree, Volumes], Volumes]:
    """The network of an inpainting run, for prediction.

    Args:
        record: what the run wrote to `run.json`; `architecture` and `fill` are read.
        dtype: compute type.

    Returns:
        A pure `apply(params, batch_stats, volumes) -> restored`; the trees are those of `read_weights`. Voxels of the
        volumes that are NaN are restored, all others come back as they are. Both are on one scale,
        `(counts - low) / (high - low)` with the percentiles of the visible voxels in `record["scaling"]`, and must
        *not* be clipped: `counts = low + result * (high - low)`.
    """
    network = Network(backbone_of(record["architecture"], dtype=dtype))

    def apply(params: PyTree, batch_stats: PyTree, volumes: Volumes) -> Volumes:
        hidden = jnp.isnan(volumes[..., 0])
        seen, base = _seen_and_base(volumes, hidden, fill=record["fill"])
        return _restored(params["head"], network.trunk(params, batch_stats, seen), base, hidden)

    return apply


def _functions(
    config: ConfigDict, network: Network, patches: Patches, print_line: PrintLine
) -> tuple[Task, dict[str, Any]]:
    del patches, print_line
    facts = {"head": {"kind": "dense", "outputs": 1}, "fill": config.mask.fill}
    return inpainting_task(config, network), facts


def _reader(config: ConfigDict, classes: tuple[str, ...]) -> Read:
    return functools.partial(read_unlabelled, scale=configured_scale(config))


INPAINT = FinetuneTask(
    functions=_functions,
    reader=_reader,
    network=build_inpainter,
    monitor="loss",
    higher_is_better=False,
    # Hidden voxels may be brighter than all that is visible: the network clips its own input.
    clips=False,
    # No truth beside a damaged image; intact ones of the same names may be named with --label-dir.
    truth_ending="",
)
