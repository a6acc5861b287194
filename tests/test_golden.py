"""One training step of the released code, in its own arithmetic, reproduced from its checkpoint.

The golden numbers were made in float32 by the released PyTorch modules: student in training mode, teacher in
evaluation mode, text pooled over all tokens, every other caption a negative.

Our step runs twice: in float32, as users run it, for features, embeddings and losses; and in float64 for the norms of
all gradients, some of which are sums that cancel so far that float32 rounds them differently on every processor.
"""

import importlib.util
import json
import pathlib
import re
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_float64 import GRADIENT_NORMS, INERT

from lsmfm_jax.convert.pretraining import from_lightning, to_lightning
from lsmfm_jax.convert.torch_files import read_torch_file
from lsmfm_jax.losses.linear_tail import dense_features, inverse_norms
from lsmfm_jax.models.text import trainable_text_rules
from lsmfm_jax.tasks.pretrain import pretraining_task
from lsmfm_jax.tasks.pretrain_networks import build_networks
from lsmfm_jax.train.task import Local

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
    config.model.out_channels = weights.architecture["out_channels"]
    for key, value in weights.architecture.items():
        if key in config.model[weights.backbone]:
            config.model[weights.backbone][key] = value
    config.loss.contrast_group = 0
    return config


class Step(NamedTuple):
    """Results of one step, on the host."""

    loss: np.ndarray
    local: Local
    sums: dict
    arrays: dict
    gradients: dict


def intermediates(networks, params, stats, teacher, rows):
    """Features and embeddings on the way to the losses."""
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


def run_step(golden, dtype: str, *, with_arrays: bool) -> Step:
    """One step whose parameters, inputs and arithmetic are all of one type, from one compilation."""
    _, weights, arrays, figures = golden
    config = faithful_config(weights, figures)
    # The schema refuses float64 (test_config.py), so only a test can set it.
    config.model.dtype = dtype
    task = pretraining_task(config, weights.bert, warmup_steps=0)
    networks = build_networks(config, weights.bert)
    mask = arrays["mask"][:, 0]
    batch = len(mask)
    rows = {
        "image": np.moveaxis(arrays["x"], 1, -1).astype(dtype),
        "mask": mask,
        "voxel_weight": np.full(batch, 1 / mask.sum(), dtype),
        "tokens": arrays["tok_input_ids"].astype(np.int32),
        "token_mask": arrays["tok_attention_mask"].astype(bool),
        "caption_key": np.arange(batch, dtype=np.int32),
        "pair_weight": np.ones(batch, dtype),
    }

    def total(params, stats, teacher, rows):
        local = task.local(params, stats, teacher, rows, jnp.int32(0))
        joint, sums = task.joint(params, local.joint, rows, jnp.int32(0))
        # XLA finds these computed already, so they cost no second pass.
        passed = intermediates(networks, params, stats, teacher, rows) if with_arrays else {}
        return local.loss + joint, (local, sums, passed)

    with jax.enable_x64(dtype == "float64"):
        held = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, dtype), (weights.params, weights.batch_stats, weights.teacher)
        )
        # All are arguments: closed over, XLA would compute the teacher's whole pass while it compiles.
        arguments = (*held, jax.tree.map(jnp.asarray, rows))
        lowered = jax.jit(jax.value_and_grad(total, has_aux=True)).lower(*arguments)
        # Compiling takes longer than the one step; less of it halves the time.
        compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
        (value, (local, sums, ours)), grads = jax.device_get(compiled(*arguments))
    return Step(value, local, sums, ours, to_lightning(weights._replace(params=grads)))


@pytest.fixture(scope="module")
def step(golden):
    """The step in float32, as users run it."""
    return run_step(golden, "float32", with_arrays=True)


@pytest.fixture(scope="module")
def exact(golden):
    """The step in float64: its rounding is so small that no machine sees another verdict."""
    return run_step(golden, "float64", with_arrays=False)


def losses_of(step: Step) -> dict[str, float]:
    """The five losses under their golden names."""
    return {
        "distill": step.local.sums["distill"],
        "recon_l1": step.local.sums["reconstruct"],
        "align": step.sums["align"],
        "clip": step.sums["contrast"],
        "total": step.loss,
    }


def norms_of(gradients: dict[str, np.ndarray], keys: Iterable[str]) -> dict[str, float]:
    return {key: float(np.linalg.norm(gradients[key].astype(np.float64))) for key in keys}


def test_features_and_embeddings(golden, step):
    arrays = golden[2]
    image, text = step.local.joint
    ours = {**step.arrays, "image_embed": image, "text_embed": text}
    kept = arrays["mask"][:, 0, ::4, ::4, ::4, None]
    composite = np.where(kept, ours.pop("reconstruction"), np.moveaxis(arrays["x"], 1, -1)[:, ::4, ::4, ::4])
    ours["recon_composite"] = composite
    for name, value in ours.items():
        assert value.dtype == np.float32, name
        expected = np.moveaxis(arrays[name], 1, -1) if arrays[name].ndim == 5 else arrays[name]
        np.testing.assert_allclose(value, expected, atol=1e-4 * np.abs(expected).max(), err_msg=name)


def test_five_losses(golden, step):
    losses = golden[3]["losses"]
    for name, value in losses_of(step).items():
        assert value == pytest.approx(losses[name], rel=1e-4), name
    np.testing.assert_allclose(step.sums["logit_scale"], golden[2]["logit_scale"], rtol=1e-5)


def test_five_losses_in_float64(golden, exact):
    """The golden figures are within 1e-6 of float64 (parity/test_golden_torch.py); what remains is their rounding."""
    losses = golden[3]["losses"]
    for name, value in losses_of(exact).items():
        assert value.dtype == np.float64, name
        assert value == pytest.approx(losses[name], rel=1e-6), name


def test_every_gradient_norm(golden, exact):
    """In float64, so that what differs is the rounding of the golden figures alone: the same on every machine."""
    _, weights, _, figures = golden
    sharp = GRADIENT_NORMS[weights.backbone]
    expected = figures["grad_norm"] | sharp
    assert len(expected) == len(figures["grad_norm"])
    assert {exact.gradients[key].dtype for key in expected} == {np.dtype("float64")}
    norms = norms_of(exact.gradients, expected)
    inert = [key for key in expected if re.search(INERT, key)]
    assert len(inert) == (10 if weights.backbone == "unet" else 1)
    for key in inert:
        # Zero but for the rounding of a sum whose terms are those of the weight's own gradient.
        assert norms[key] < 1e-12 * norms[key.removesuffix("bias") + "weight"], key
    off = {
        key: (norms[key], value)
        for key, value in expected.items()
        if key not in inert and abs(norms[key] - value) > 1e-3 * value
    }
    assert not off
    for key, value in sharp.items():
        # As sharply as parity/test_golden_torch.py holds PyTorch's own float64 to them.
        assert norms[key] == pytest.approx(value, rel=1e-7), key


def test_float32_gradients_against_float64(golden, step, exact):
    """As vectors, which a norm of the right length in a wrong direction would not pass.

    A backward pass carries rounding from large gradients into small ones, so errors are measured by the largest
    gradient of their module. No looser than the check of norms: lengths cannot differ by more than vectors do.
    """
    keys = golden[3]["grad_norm"]
    norms = norms_of(exact.gradients, keys)
    largest = {}
    for key, norm in norms.items():
        module = key.split(".")[0]
        largest[module] = max(norm, largest.get(module, 0.0))
    assert {step.gradients[key].dtype for key in keys} == {np.dtype("float32")}
    errors = norms_of({key: step.gradients[key] - exact.gradients[key] for key in keys}, keys)
    off = {key: error for key, error in errors.items() if error > 1e-3 * largest[key.split(".")[0]]}
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
