"""One step of each loss of segmentation, as the recipes' variants configure it, against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsmfm_jax.config.load import load_config
from lsmfm_jax.losses import segment
from lsmfm_jax.models import build_backbone
from lsmfm_jax.tasks.finetuning import Network, dense_head
from lsmfm_jax.tasks.segment import segmentation_task
from lsmfm_jax.train.state import state_of
from lsmfm_jax.train.step import build_train_step

SIZE = (8, 8, 8)


def _reference(logits, target, config):
    """The configured loss in float64, written out; clDice is that which is compared with MONAI."""
    losses = []
    for x, t in zip(np.asarray(logits, np.float64)[..., 0], np.asarray(target, np.float64), strict=True):
        p = 1 / (1 + np.exp(-x))
        dice = 1 - (2 * np.sum(p * t) + 1e-5) / (np.sum(p) + np.sum(t) + 1e-5)
        right = np.where(t > 0, p, 1 - p)
        other = -np.log(right)
        if config.loss.name == "dice_focal":
            balance = np.where(t > 0, config.loss.focal_alpha, 1 - config.loss.focal_alpha)
            other = balance * (1 - right) ** config.loss.focal_gamma * other
        losses.append(config.loss.dice * dice + config.loss.other * other.mean())
    lines = np.asarray(segment.cl_dice(logits, jnp.asarray(target)[..., None]))
    share = config.loss.cl_dice_frac
    return np.mean((1 - share) * np.asarray(losses) + share * lines)


@pytest.mark.parametrize(
    ("variant", "overrides"),
    [("", []), ("dice_ce", []), ("vessels", []), ("vessels", ["--config.loss.name=dice_ce"])],
)
def test_one_step_minimises_the_configured_loss(variant, overrides):
    config = load_config(f"configs/segment_unet.py:{variant}", overrides)
    assert (variant == "vessels") == (config.loss.cl_dice_frac > 0)
    config.augment.probability = 0.0
    for strength in ("contrast", "gamma", "level_shift", "bias_field", "noise_std", "z_blur_prob", "stripe_prob"):
        config.augment.appearance[strength] = 0.0
    config.data.patch_size = SIZE
    backbone = build_backbone("unet", out_channels=3, channels=(4, 6), strides=(2,), num_res_units=1, norm="instance")
    task = segmentation_task(config, Network(backbone))
    rng = np.random.default_rng(0)
    mask = np.zeros((2, *SIZE), np.uint8)
    mask[0, 2:5, 3:5], mask[1, :, 4:6, 4:6] = 1, 1
    batch = {
        "image": (100 + 50 * mask + rng.normal(0, 5, mask.shape)).astype(np.float32),
        "target": mask,
        "low": np.full(2, 90, np.float32),
        "high": np.full(2, 160, np.float32),
    }
    sgd = optax.sgd(0.01)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    params, stats = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    state = state_of(task, sgd, params, stats)
    step = jax.jit(build_train_step(task, sgd, seed=0))
    after, metrics = step(state, batch)
    image = jnp.clip((batch["image"] - 90) / 70, 0, 1)[..., None]
    forward = jax.jit(lambda params, volumes: dense_head(params["head"], Network(backbone).trunk(params, {}, volumes)))
    logits = forward(params, image)
    assert float(metrics["loss"]) == pytest.approx(_reference(logits, mask, config), rel=1e-4)
    assert float(metrics["grad_norm"]) > 0
    again, lower = step(after, batch)
    assert float(lower["loss"]) < float(metrics["loss"]) and int(again.bad_total) == 0
