"""One training step of the released code, in its own arithmetic, reproduced from its checkpoint.

The golden numbers were made in float32 by the released PyTorch modules: student in training mode, teacher in
evaluation mode, text pooled over all tokens, every other caption a negative.
"""

import importlib.util
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_float64 import GRADIENT_NORMS, INERT

from lsmfm_jax.convert.pretraining import from_lightning, to_lightning
from lsmfm_jax.convert.torch_files import read_torch_file
from lsmfm_jax.losses.linear_tail import dense_features, inverse_norms
from lsmfm_jax.models.text import trainable_text_rules
from lsmfm_jax.tasks.pretrain import build_networks, pretraining_task

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = {"unet": "unet", "swin_unetr": "swinunetr"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=FILES)
def golden(request, shared):
    """Imported weights, arrays and figures of one backbone."""
    folder, name = shared / "golden", FILES[request.param]
    file = read_torch_file(folder / f"{name}_image_text_tiny.ckpt")
    # The tiny text encoder is 32 wide with 4 heads, which no weight tells.
    weights = from_lightning(file.state, text_heads=4)
    arrays = dict(np.load(folder / f"{name}_step.npz"))
    figures = json.loads((folder / f"{name}_step.json").read_text())
    return file.state, weights, arrays, figures


def test_checkpoint_converts_there_and_back_bit_for_bit(golden):
    state, weights, _, figures = golden
    again = to_lightning(weights)
    assert again.keys() == state.keys()
    for key, value in state.items():
        assert again[key].dtype == value.dtype, key
        assert again[key].shape == value.shape, key
        assert again[key].tobytes() == value.tobytes(), key
    model = figures["config"]["model"]
    assert weights.architecture["out_channels"] == model["embed_dim"]
    if weights.backbone == "unet":
        assert list(weights.architecture["channels"]) == model["unet"]["channels"]
        assert list(weights.architecture["strides"]) == model["unet"]["strides"]
    else:
        assert weights.architecture["feature_size"] == model["swinunetr"]["feature_size"]


def test_wrong_checkpoints_are_refused_by_name(golden):
    state = dict(golden[0])
    with pytest.raises(ValueError, match=r"left over \['optimizer.step'\]"):
        from_lightning(state | {"optimizer.step": np.zeros(1)}, text_heads=4)
    with pytest.raises(ValueError, match=r"text_encoder: .*pooler.dense.bias"):
        from_lightning({k: v for k, v in state.items() if k != "text_encoder.pooler.dense.bias"}, text_heads=4)
    with pytest.raises(ValueError, match=r"no tensors of \['teacher_encoder'\]"):
        from_lightning({k: v for k, v in state.items() if not k.startswith("teacher")}, text_heads=4)
    with pytest.raises(ValueError, match="text_heads is None"):
        from_lightning(state)


def faithful_config(weights, figures):
    """The recipe's `faithful` variant at the golden sizes, with a contrast between the samples of the batch."""
    path = ROOT / "configs" / f"pretrain_{weights.backbone}.py"
    spec = importlib.util.spec_from_file_location("recipe", path)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = recipe.get_config("faithful")
    theirs = figures["config"]
    # The released weights and temperatures must already be those of the recipe.
    names = {"distill": "distill", "reconstruct": "reconstruction", "align": "align", "contrast": "clip"}
    for ours, name in names.items():
        assert config.loss[ours] == theirs["loss_weights"][f"{name}_weight"]
    assert config.loss.student_temperature == theirs["model"]["temp_student"]
    assert config.loss.teacher_temperature == theirs["model"]["temp_teacher"]
    config.model.dtype = "float32"
    config.model.out_channels = weights.architecture["out_channels"]
    for key, value in weights.architecture.items():
        if key in config.model[weights.backbone]:
            config.model[weights.backbone][key] = value
    config.loss.contrast_group = 0
    return config


@pytest.fixture(scope="module")
def step(golden):
    """Losses, gradients and intermediate arrays of one step, from one compilation."""
    _, weights, arrays, figures = golden
    config = faithful_config(weights, figures)
    task = pretraining_task(config, weights.bert, warmup_steps=0)
    networks = build_networks(config, weights.bert)
    mask = arrays["mask"][:, 0]
    batch = len(mask)
    rows = {
        "image": np.moveaxis(arrays["x"], 1, -1),
        "mask": mask,
        "voxel_weight": np.full(batch, 1 / mask.sum(), np.float32),
        "tokens": arrays["tok_input_ids"].astype(np.int32),
        "token_mask": arrays["tok_attention_mask"].astype(bool),
        "caption_key": np.arange(batch, dtype=np.int32),
        "pair_weight": np.ones(batch, np.float32),
    }

    def total(params, stats, teacher, rows):
        local = task.local(params, stats, teacher, rows, jnp.int32(0))
        joint, sums = task.joint(params, local.joint, rows, jnp.int32(0))
        return local.loss + joint, (local, sums, intermediates(params, stats, teacher, rows))

    def intermediates(params, stats, teacher, rows):
        # XLA finds these computed already, so they cost no second pass.
        student = {"params": params["backbone"], "batch_stats": stats["backbone"]}
        hidden = jnp.where(rows["mask"][..., None], 0.0, rows["image"])
        out, _ = networks.backbone.apply(student, hidden, train=True, method="trunk", mutable=["batch_stats"])
        target = networks.backbone.apply(teacher, rows["image"], train=False, method="trunk")
        decoder = {"params": params["light_decoder"]}
        text = {"params": params["text_tower"]}
        quarter = (slice(None), *(slice(None, None, 4),) * 3)

        def normalised(trunk):
            values = trunk.values[quarter]
            return dense_features(values, trunk.tail) * inverse_norms(values, trunk.tail)[..., None]

        return {
            "student_feats_raw": dense_features(out.values[quarter], out.tail),
            "student_out_norm": normalised(out),
            "teacher_out_norm": normalised(target),
            "reconstruction": networks.light_decoder.apply(decoder, out.values, out.tail)[quarter],
            "text_pooled": networks.text_tower.apply(text, rows["tokens"], rows["token_mask"]),
        }

    # All are arguments: closed over, XLA would compute the teacher's whole pass while it compiles.
    arguments = jax.tree.map(jnp.asarray, (weights.params, weights.batch_stats, weights.teacher, rows))
    lowered = jax.jit(jax.value_and_grad(total, has_aux=True)).lower(*arguments)
    # Compiling takes longer than the one step; less of it halves the time.
    compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
    (value, (local, sums, ours)), grads = compiled(*arguments)
    return jax.device_get((value, local, sums, ours, grads))


def test_features_and_embeddings(golden, step):
    arrays, (_, local, _, ours, _) = golden[2], step
    image, text = local.joint
    ours = {**ours, "image_embed": image, "text_embed": text}
    kept = arrays["mask"][:, 0, ::4, ::4, ::4, None]
    composite = np.where(kept, ours.pop("reconstruction"), np.moveaxis(arrays["x"], 1, -1)[:, ::4, ::4, ::4])
    ours["recon_composite"] = composite
    for name, value in ours.items():
        expected = np.moveaxis(arrays[name], 1, -1) if arrays[name].ndim == 5 else arrays[name]
        np.testing.assert_allclose(value, expected, atol=1e-4 * np.abs(expected).max(), err_msg=name)


def test_five_losses(golden, step):
    losses, (total, local, sums, _, _) = golden[3]["losses"], step
    ours = {
        "distill": local.sums["distill"],
        "recon_l1": local.sums["reconstruct"],
        "align": sums["align"],
        "clip": sums["contrast"],
        "total": total,
    }
    for name, value in ours.items():
        assert value == pytest.approx(losses[name], rel=1e-4), name
    np.testing.assert_allclose(sums["logit_scale"], golden[2]["logit_scale"], rtol=1e-5)


def test_every_gradient_norm(golden, step):
    _, weights, _, figures = golden
    expected = figures["grad_norm"] | GRADIENT_NORMS[weights.backbone]
    assert len(expected) == len(figures["grad_norm"])
    theirs = to_lightning(weights._replace(params=step[-1]))
    norms = {key: float(np.linalg.norm(theirs[key].astype(np.float64))) for key in expected}
    inert = [key for key in expected if re.search(INERT, key)]
    assert len(inert) == (10 if weights.backbone == "unet" else 1)
    for key in inert:
        # Zero but for the rounding of a sum whose terms are those of the weight's own gradient.
        assert norms[key] < 4 * np.finfo(np.float32).eps * norms[key.removesuffix("bias") + "weight"], key
    off = {
        key: (norms[key], value)
        for key, value in expected.items()
        if key not in inert and abs(norms[key] - value) > 1e-3 * value
    }
    assert not off


def test_the_rules_train_what_the_released_step_trains(golden):
    _, weights, _, figures = golden
    rules = trainable_text_rules(weights.bert.num_layers, 1)

    def mark(path, leaf):
        name = "/".join(key.key for key in path)
        return np.full_like(leaf, next(trains for rule, trains in rules if re.search(rule, name)))

    marks = {name: jax.tree.map(np.ones_like, part) for name, part in weights.params.items()}
    marks["text_tower"] = jax.tree_util.tree_map_with_path(mark, weights.params["text_tower"])
    marked = to_lightning(weights._replace(params=marks))
    others = r"^teacher_|^ema_decay$|running_(mean|var)$|num_batches_tracked$|relative_position_index$"
    trained = {key for key, value in marked.items() if value.all() and not re.search(others, key)}
    # The pooler is meant to train, but nothing that is pooled over tokens reaches it.
    assert trained - set(figures["grad_norm"]) == {f"text_encoder.pooler.dense.{leaf}" for leaf in ("weight", "bias")}
    assert set(figures["grad_norm"]) <= trained
