"""The report's panels show what the tasks log, by the names they log it under."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsmfm_jax.config import defaults
from lsmfm_jax.metrics.retrieval import retrieval_accuracy
from lsmfm_jax.models import build_backbone
from lsmfm_jax.models.text import BertConfig
from lsmfm_jax.report import PANELS, write_report
from lsmfm_jax.tasks.classify import classification_task
from lsmfm_jax.tasks.deblur import deblurring_task
from lsmfm_jax.tasks.finetuning import Network
from lsmfm_jax.tasks.inpaint import inpainting_task
from lsmfm_jax.tasks.pretrain import pretraining_task
from lsmfm_jax.tasks.segment import segmentation_task
from lsmfm_jax.train.state import state_of
from lsmfm_jax.train.step import build_train_step

SIZE = (16, 16, 16)
UNET = {"channels": (4, 8), "strides": (2,), "num_res_units": 1, "norm": "batch"}
# Written by the loop itself.
OF_THE_LOOP = {"patches_per_s", "damaged_patches"}


def _small(task):
    config = defaults(task)
    config.model.dtype = "float32"
    config.model.out_channels = 6
    config.model.unet.update(UNET)
    config.data.patch_size = SIZE
    if task == "pretrain":
        config.data.input_size = SIZE
    return config


def _task(name):
    config = _small(name)
    if name == "pretrain":
        bert = BertConfig(20, 8, 1, 2, 16, 8, 2, 1e-12, 0)
        return pretraining_task(config, bert, warmup_steps=1)
    network = Network(build_backbone("unet", out_channels=6, **UNET))
    if name == "segment":
        return segmentation_task(config, network)
    if name == "deblur":
        return deblurring_task(config, network, target_range=(0.0, 1.0))
    if name == "inpaint":
        return inpainting_task(config, network)
    return classification_task(config, network, classes=("a", "b"), counts=(2, 2))


def _batch(rows=6):
    volume = jnp.zeros((rows, *SIZE), jnp.float32)
    tokens = jnp.zeros((rows, 8), jnp.int32)
    return {
        "image": volume,
        "target": volume,
        "valid": volume == 0,
        "label": jnp.zeros(rows, jnp.int32),
        "low": jnp.zeros(rows),
        "high": jnp.ones(rows),
        "tokens": tokens,
        "token_mask": tokens == 0,
        "caption_key": jnp.arange(rows, dtype=jnp.int32),
        "volume": jnp.arange(rows, dtype=jnp.int32),
        "sample": jnp.arange(rows, dtype=jnp.int32),
        "weight": jnp.ones(rows),
    }


def _logged(name):
    """The names of all metrics that a task logs, from shapes alone: nothing is compiled."""
    import optax

    task, batch = _task(name), _batch()
    state = jax.eval_shape(lambda key: state_of(task, optax.sgd(1.0), *task.init(key)), jax.random.key(0))
    trained = {key: leaf for key, leaf in batch.items() if key != "weight"} if name == "pretrain" else batch
    _, metrics = jax.eval_shape(build_train_step(task, optax.sgd(1.0), seed=0), state, trained)

    def evaluate(params, stats, teacher, batch):
        return task.evaluate(params, stats, teacher, task.prepare_validation(batch))

    outputs = jax.eval_shape(evaluate, state.params, state.batch_stats, state.teacher, batch)
    arrays = {key: np.ones(leaf.shape, leaf.dtype) for key, leaf in outputs.items()}
    arrays |= {key: np.asarray(batch[key]) for key in ("sample", "label", "caption_key") if key in arrays}
    arrays |= {"class": np.arange(len(batch["image"])) // 2, "volume": np.arange(len(batch["image"]))}
    return (metrics.keys() - {"bad", "bad_in_row"}) | task.summarise([arrays]).keys()


def test_every_panel_shows_what_a_task_logs():
    logged = set().union(*map(_logged, ("pretrain", "segment", "classify", "deblur", "inpaint"))) | OF_THE_LOOP
    shown = [metric for _, metrics in PANELS for metric in metrics]
    assert len(shown) == len(set(shown))
    assert not set(shown) - logged, "panels of metrics that no task logs"
    assert {"psnr", "psnr_blurred", "dice", "macro_f1"} <= logged
    assert {f"{name}_top{k}" for name in ("chance", "image_to_text") for k in (1, 5)} <= set(
        retrieval_accuracy(np.eye(6, dtype=np.float32), np.eye(6, dtype=np.float32), np.arange(6))
    )


@pytest.mark.parametrize(
    ("metric", "title"), [("psnr", "PSNR, dB"), ("ssim_blurred", "SSIM"), ("my_own_figure", "My own figure")]
)
def test_a_run_that_logs_a_metric_has_its_panel(tmp_path, metric, title):
    lines = [{"step": step, "kind": "validation", "loss": 1.0, metric: 20.0 + step} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.json").write_text(json.dumps({"task": "deblur", "seed": 1}))
    page = write_report(tmp_path).read_text()
    assert page.count("<svg") == 2
    # Letters are drawn as outlines; each text stands in a comment.
    assert f"<!-- {title} -->" in page and "<!-- Loss -->" in page
