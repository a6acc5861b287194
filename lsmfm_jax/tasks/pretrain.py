"""Pretraining: masked reconstruction, distillation from an EMA teacher, image-text alignment and contrast.

Source: paper, section 2.3. One step scales, resizes and augments the patches, hides random cubes of each from the
student, and adds up four losses (equation 1). Image-only runs have no text tower at all.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from lsmfm_jax.augment import augment, scale_intensity
from lsmfm_jax.losses import pretrain as losses
from lsmfm_jax.masking import apply_mask, block_mask, fixed_masks
from lsmfm_jax.metrics.probes import probe
from lsmfm_jax.metrics.retrieval import retrieval_accuracy
from lsmfm_jax.models.heads import logit_scale
from lsmfm_jax.models.text import BertConfig, pooled_tokens
from lsmfm_jax.resample import resize_trilinear
from lsmfm_jax.tasks.inputs import augment_settings, varied
from lsmfm_jax.tasks.pretrain_networks import Networks, build_networks, first_parameters
from lsmfm_jax.tasks.pretrain_pictures import draw_reconstructions
from lsmfm_jax.train.task import Local, PyTree, Rows, Task

# Not the seed of the run: every validation of every run hides the same voxels.
_VALIDATION_SEED = 20_260_525


def pretraining_task(config: ConfigDict, bert: BertConfig | None, *, warmup_steps: int) -> Task:
    """The functions of pretraining.

    Args:
        config: of task `pretrain`.
        bert: sizes of the text tower, or None for image only.
        warmup_steps: optimiser steps with the low mask ratio.
    """
    networks = build_networks(config, bert)
    parts = _Pretraining(config, networks, warmup_steps)
    return Task(
        init=lambda key: first_parameters(networks, config, key),
        prepare=parts.prepare,
        local=parts.local,
        joint=parts.joint if bert is not None else None,
        finish=parts.finish,
        teacher_of=parts.teacher_of,
        prepare_validation=parts.prepare_validation,
        evaluate=parts.evaluate,
        summarise=parts.summarise,
        picture=parts.picture,
        draw=draw_reconstructions,
    )


@dataclasses.dataclass(frozen=True)
class _Pretraining:
    config: ConfigDict
    networks: Networks
    warmup_steps: int

    def teacher_of(self, params: PyTree, batch_stats: PyTree) -> PyTree:
        """The part that the teacher averages: the backbone, with its statistics unless configured otherwise."""
        stats = batch_stats["backbone"]
        if not self.config.teacher.average_statistics:
            # The released code never copies statistics: its teacher normalises with those of a new network.
            stats = jax.tree_util.tree_map_with_path(
                lambda path, leaf: jnp.full_like(leaf, 1.0 if path[-1].key == "var" else 0.0), stats
            )
        return {"params": params["backbone"], "batch_stats": stats}

    def volumes(self, batch: Rows) -> Float[Array, "b z y x 1"]:
        """Patches in [0, 1] at the network's input size."""
        scaled = scale_intensity(batch["image"], batch["low"], batch["high"])
        return resize_trilinear(scaled[..., None], tuple(self.config.data.input_size))

    def prepare(self, batch: Rows, key: Array, step: Array) -> Rows:
        """Scales, resizes, augments and masks a batch."""
        mask_config = self.config.mask
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch["image"].shape[0]))
        keys = jax.vmap(jax.random.split)(keys)
        volumes = varied(self.volumes(batch), keys[:, 0], self.config)
        image = augment(volumes, keys[:, 0], settings=augment_settings(self.config.augment))
        ratio = jnp.where(step < self.warmup_steps, mask_config.warmup_ratio, mask_config.ratio)
        return self._rows(batch, image, block_mask(keys[:, 1], ratio=ratio, **self._mask_geometry()))

    def _mask_geometry(self) -> dict[str, Any]:
        return {
            "grid": tuple(self.config.data.input_size),
            "block_sizes": tuple(self.config.mask.block_sizes),
            "rounding": self.config.mask.rounding,
        }

    def _rows(self, batch: Rows, image: Float[Array, "b z y x 1"], mask: Bool[Array, "b z y x"]) -> Rows:
        weight = batch.get("weight", jnp.ones(image.shape[0]))
        masked = jnp.sum(mask, axis=(1, 2, 3), dtype=jnp.float32)
        rows = {"image": image, "mask": mask, "weight": weight}
        # Divides by the masked voxels of the whole batch, so that micro-batches add up to the batch.
        rows["voxel_weight"] = weight / jnp.maximum(jnp.sum(weight * masked), 1.0)
        if self.networks.text_tower is not None:
            rows |= {name: batch[name] for name in ("tokens", "token_mask", "caption_key")}
            rows["pooled_tokens"] = self._pooled_tokens(batch["token_mask"])
            # Patches of stores without captions have no key: they train the image losses only.
            rows["pair_weight"] = weight * (batch["caption_key"] >= 0)
        return rows

    def _pooled_tokens(self, real: Bool[Array, "b t"]) -> Bool[Array, "b t"]:
        """Tokens in the mean of a caption, chosen in the whole batch: a micro-batch has other longest captions."""
        return pooled_tokens(real, pooling=self.config.text.pooling, group=self._contrast_group(real.shape[0]))

    def _contrast_group(self, count: int) -> int:
        """Samples of one device and micro-batch in the released code, out of `count`."""
        return self.config.loss.contrast_group or count

    def local(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, rows: Rows, step: Array) -> Local:
        """Distillation and reconstruction of a micro-batch, and its embeddings."""
        out, new_stats = self._student(params, batch_stats, rows, train=True)
        target = self._teacher(teacher, rows["image"])
        sums, reconstruction, embeddings = self._compare(params, out, target, rows)
        weights = self.config.loss
        distill = jnp.sum(rows["voxel_weight"] * sums.divergence)
        reconstruct = jnp.sum(rows["voxel_weight"] * reconstruction)
        loss = weights.distill * distill + weights.reconstruct * reconstruct
        logged = {"distill": distill, "reconstruct": reconstruct, **_entropy_sums(sums)}
        return Local(loss, {**batch_stats, "backbone": new_stats}, logged, embeddings)

    def joint(self, params: PyTree, joint: PyTree, rows: Rows, step: Array) -> tuple[Array, dict[str, Array]]:
        """Alignment and contrast over the whole batch."""
        image, text = joint
        weight = rows["pair_weight"]
        align = jnp.sum(weight * losses.alignment(image, text)) / jnp.maximum(jnp.sum(weight), 1.0)
        contrast = self._contrast(params, image, text, rows["caption_key"], weight)
        loss = self.config.loss.align * align + self.config.loss.contrast * contrast
        return loss, {"align": align, "contrast": contrast, "logit_scale": logit_scale(params["logit_scale"])}

    def _contrast(
        self,
        params: PyTree,
        image: Float[Array, "b d"],
        text: Float[Array, "b d"],
        keys: Int[Array, " b"],
        weight: Float[Array, " b"],
    ) -> Float[Array, ""]:
        scale = logit_scale(params["logit_scale"])
        group = self._contrast_group(image.shape[0])
        by_caption = self.config.loss.positives == "caption"

        def one(image: Array, text: Array, keys: Array, weight: Array) -> Array:
            return losses.contrastive(image, text, scale, keys=keys if by_caption else None, weight=weight)

        grouped = [leaf.reshape(-1, group, *leaf.shape[1:]) for leaf in (image, text, keys, weight)]
        return jnp.mean(jax.vmap(one)(*grouped))

    def finish(self, sums: dict[str, Array]) -> dict[str, Array]:
        """Metrics from sums over micro-batches."""
        sums = dict(sums)
        return sums | losses.teacher_entropy_monitors(_sums_of_entropy(sums))

    def _student(self, params: PyTree, batch_stats: PyTree, rows: Rows, *, train: bool) -> tuple[Any, PyTree]:
        variables = {"params": params["backbone"], "batch_stats": batch_stats["backbone"]}
        masked = apply_mask(rows["image"], rows["mask"])
        backbone = self.networks.backbone
        if not train:
            return backbone.apply(variables, masked, train=False, method="trunk"), batch_stats["backbone"]
        out, changed = backbone.apply(variables, masked, train=True, method="trunk", mutable=["batch_stats"])
        return out, changed.get("batch_stats", {})

    def _compare(
        self, params: PyTree, student: Any, target: Any, rows: Rows
    ) -> tuple[losses.DistillationSums, Float[Array, " b"], PyTree]:
        weights = self.config.loss
        both = (student.values, student.tail, target.values, target.tail)
        sums = losses.distillation(
            *both,
            rows["mask"],
            student_temperature=weights.student_temperature,
            teacher_temperature=weights.teacher_temperature,
            kernels=self.config.train.kernels,
            channels_first=self.config.train.xla != "fast",
        )
        prediction = self._reconstruct(params, student)
        reconstruction = losses.reconstruction_l1(prediction, rows["image"], rows["mask"])
        return sums, reconstruction, self._embed(params, student, rows)

    def _teacher(self, teacher: PyTree, image: Float[Array, "b z y x 1"]) -> Any:
        out = self.networks.backbone.apply(teacher, image, train=False, method="trunk")
        return jax.lax.stop_gradient(out)

    def _reconstruct(self, params: PyTree, student: Any) -> Float[Array, "b z y x 1"]:
        variables = {"params": params["light_decoder"]}
        return self.networks.light_decoder.apply(variables, student.values, student.tail)

    def _embed(self, params: PyTree, student: Any, rows: Rows) -> PyTree:
        networks = self.networks
        if networks.text_tower is None:
            return None
        features = losses.mean_normalised_features(student.values, student.tail)
        image = networks.image_projection.apply({"params": params["image_projection"]}, features)
        tower = {"params": params["text_tower"]}
        pooled = rows.get("pooled_tokens")
        text = networks.text_tower.apply(tower, rows["tokens"], rows["token_mask"], pooled)
        text = networks.text_projection.apply({"params": params["text_projection"]}, text)
        return image, text

    def prepare_validation(self, batch: Rows) -> Rows:
        """Scales, resizes and masks a batch, at the base mask ratio, with masks fixed by sample."""
        ratio = self.config.mask.ratio
        mask = fixed_masks(_VALIDATION_SEED, batch["sample"], ratio=ratio, **self._mask_geometry())
        # Of each patch for the probes: captions tell stains apart in image-only runs too.
        known = {"class": batch["caption_key"], "volume": batch["volume"]}
        return self._rows(batch, self.volumes(batch), mask) | known

    def evaluate(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, rows: Rows) -> PyTree:
        """Per-sample figures of a validation batch."""
        student, _ = self._student(params, batch_stats, rows, train=False)
        target = self._teacher(teacher, rows["image"])
        sums, reconstruction, embeddings = self._compare(params, student, target, rows)
        outputs = {
            "distill": sums.divergence,
            "reconstruct": reconstruction,
            "voxels": sums.voxels,
            "weight": rows["weight"],
            "teacher_entropy": sums.teacher_entropy,
            "teacher_probability": sums.teacher_probability,
            "features": jnp.mean(target.stages[-1], axis=(1, 2, 3), dtype=jnp.float32),
            "class": rows["class"],
            "volume": rows["volume"],
        }
        if embeddings is not None:
            image, text = embeddings
            outputs |= {"image": image, "text": text, "caption_key": rows["caption_key"]}
            outputs["logit_scale"] = params["logit_scale"]
        return outputs

    def summarise(self, outputs: list[PyTree]) -> dict[str, float]:
        """Validation figures over all patches; `loss` has the fixed weights of the configuration's `report`."""
        report = self.config.report
        stacked = {
            name: np.concatenate([output[name] for output in outputs]) for name in outputs[0] if name != "logit_scale"
        }
        real = stacked["weight"] > 0
        stacked = {name: values[real] for name, values in stacked.items()}
        voxels = stacked["voxels"].sum()
        values = {name: float(stacked[name].sum() / voxels) for name in ("distill", "reconstruct")}
        loss = report.distill * values["distill"] + report.reconstruct * values["reconstruct"]
        if "image" in stacked:
            pairs = self._summarise_pairs(stacked, outputs[0]["logit_scale"])
            values |= pairs
            loss += report.align * pairs.get("align", 0.0) + report.contrast * pairs.get("contrast", 0.0)
        sums = losses.DistillationSums(
            divergence=jnp.asarray(stacked["distill"]),
            voxels=jnp.asarray(stacked["voxels"]),
            teacher_entropy=jnp.asarray(stacked["teacher_entropy"]),
            teacher_probability=jnp.asarray(stacked["teacher_probability"]),
        )
        monitors = {name: float(value) for name, value in losses.teacher_entropy_monitors(sums).items()}
        probes = probe(*(stacked[name] for name in ("features", "class", "volume")))
        return {"loss": float(loss), **values, **monitors, **probes}

    def _summarise_pairs(self, stacked: dict[str, np.ndarray], scale: np.ndarray) -> dict[str, float]:
        paired = stacked["caption_key"] >= 0
        if not paired.any():
            return {}
        image, text, keys = (stacked[name][paired] for name in ("image", "text", "caption_key"))
        align = float(np.mean(losses.alignment(jnp.asarray(image), jnp.asarray(text))))
        by_caption = self.config.loss.positives == "caption"
        contrast = losses.contrastive(
            jnp.asarray(image),
            jnp.asarray(text),
            logit_scale(jnp.asarray(scale)),
            keys=jnp.asarray(keys) if by_caption else None,
        )
        return {"align": align, "contrast": float(contrast), **retrieval_accuracy(image, text, keys)}

    def picture(self, params: PyTree, batch_stats: PyTree, teacher: PyTree, rows: Rows) -> PyTree:
        """Input, mask and reconstruction of the first patches of a batch."""
        rows = {name: leaf[: self.config.train.pictures_count] for name, leaf in rows.items()}
        student, _ = self._student(params, batch_stats, rows, train=False)
        return {
            "image": rows["image"][..., 0],
            "mask": rows["mask"],
            "reconstruction": self._reconstruct(params, student)[..., 0],
            "weight": rows["weight"],
        }


def _entropy_sums(sums: losses.DistillationSums) -> dict[str, Array]:
    return {
        "_voxels": jnp.sum(sums.voxels),
        "_entropy": jnp.sum(sums.teacher_entropy),
        "_probability": jnp.sum(sums.teacher_probability, axis=0),
    }


def _sums_of_entropy(sums: dict[str, Array]) -> losses.DistillationSums:
    """Takes the entries of `_entropy_sums` out of the sums."""
    voxels, entropy, probability = (sums.pop(name)[None] for name in ("_voxels", "_entropy", "_probability"))
    return losses.DistillationSums(jnp.zeros(1), voxels, entropy, probability)
