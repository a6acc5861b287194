"""A finetuning task in one file, as somebody would add it: the mean intensity below the mask, as one number."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from lsmfm_jax.config.schema import FINETUNE_KEYS
from lsmfm_jax.data.labelled_patches import read_segmentation
from lsmfm_jax.keys import Key
from lsmfm_jax.predict.run import Writer
from lsmfm_jax.tasks.declaration import FinetuneTask
from lsmfm_jax.tasks.finetune_rows import as_task, equal_shares, real_rows, scaled_images
from lsmfm_jax.tasks.finetuning import Network, backbone_of, dense_head, init_linear
from lsmfm_jax.tasks.inputs import configured_scale
from lsmfm_jax.train.task import Local

TOY_KEYS = {**FINETUNE_KEYS, "loss": {"power": Key(2.0, "of the difference", low=1.0, high=4.0)}}


@dataclasses.dataclass(frozen=True)
class _Toy:
    config: Any
    network: Network

    def init(self, key):
        backbone, statistics = self.network.init(key, tuple(self.config.data.patch_size))
        head = init_linear(key, self.network.backbone.out_channels, 1)
        return {"backbone": backbone, "head": head}, {"backbone": statistics}

    def prepare(self, batch, key, step):
        return {"image": scaled_images(batch), "target": batch["target"], "share": equal_shares(batch)}

    def _losses(self, params, trunk, target):
        mean = jnp.mean(dense_head(params["head"], trunk)[..., 0], axis=(1, 2, 3))
        return jnp.abs(mean - jnp.mean(target.astype(jnp.float32), axis=(1, 2, 3))) ** self.config.loss.power

    def local(self, params, batch_stats, teacher, rows, step):
        trunk, statistics = self.network.training_trunk(params, batch_stats, rows["image"], step)
        loss = jnp.sum(rows["share"] * self._losses(params, trunk, rows["target"]))
        return Local(loss, {**batch_stats, "backbone": statistics}, {}, None)

    def evaluate(self, params, batch_stats, teacher, batch):
        trunk = self.network.trunk(params, batch_stats, scaled_images(batch))
        return {"loss": self._losses(params, trunk, batch["target"]), "weight": batch["weight"]}

    def summarise(self, outputs):
        return {"loss": float(np.mean(real_rows(outputs)["loss"]))}

    def picture(self, params, batch_stats, teacher, batch):
        return {"image": scaled_images(batch)[..., 0]}


def _network(record):
    network = Network(backbone_of(record["architecture"]))
    return lambda params, batch_stats, x: dense_head(params["head"], network.trunk(params, batch_stats, x))


def _write(predictor, case, out, settings):
    (out / f"{case.name}.txt").write_text(case.name)
    return {"foreground_frac": 0.25}


TOY_TASK = FinetuneTask(
    functions=lambda config, network, patches, print_line: (
        as_task(_Toy(config, network), lambda arrays, path: path.write_text("toy")),
        {"head": {"kind": "dense", "outputs": 1}},
    ),
    reader=lambda config, classes: lambda file: read_segmentation(file, scale=configured_scale(config)),
    network=_network,
    monitor="loss",
    higher_is_better=False,
    companion=lambda config: "_label",
    describe=lambda config, patches, print_line: print_line(f"toy: {len(patches.train)} patches"),
)
TOY_WRITER = Writer(_write, (".txt",))
