"""Low-rank adaptation: an unchanged start, gradients by the chain rule, frozen kernels, and merged weights to read."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from labelled_toy import write_patches
from safetensors.numpy import load_file
from toy_backbone import TOY
from toy_swin import SWIN

from lsmfm_jax.config import ConfigError, defaults, validate
from lsmfm_jax.convert.exporting import export_run
from lsmfm_jax.models import BACKBONES, build_backbone
from lsmfm_jax.models.backbone import Trunk
from lsmfm_jax.predict.network import load_predictor
from lsmfm_jax.tasks import SETUPS
from lsmfm_jax.tasks.segment import build_segmenter
from lsmfm_jax.train.checkpoint import CheckpointError, read_part
from lsmfm_jax.train.checkpoint_checks import committed_steps
from lsmfm_jax.train.low_rank import LowRank, init_factors, merge_read
from lsmfm_jax.train.optim import make_optimiser
from lsmfm_jax.train.run import execute, optimiser_settings
from lsmfm_jax.train.state import state_of
from lsmfm_jax.train.step import build_train_step
from lsmfm_jax.train.weights import read_weights, write_weights
from lsmfm_jax.verify import verify

MIXER = {"name": "mixer", "out_channels": 4, "width": 8}
KERNELS = ("attention/qkv_kernel", "attention/out_kernel", "linear1/kernel", "linear2/kernel")
ADAPTED = {f"transformer/stage_{stage}/block_0/{kernel}" for stage in range(4) for kernel in KERNELS}
RANK, ALPHA = 4, 6.0


class Mixer(nn.Module):
    """A backbone with a linear layer in its encoder that compiles at once."""

    out_channels: int = 4
    width: int = 8
    dtype: object = jnp.float32

    @nn.compact
    def trunk(self, x, *, train):
        tokens = nn.relu(nn.Conv(self.width, (2, 2, 2), strides=2, name="shrink")(x))
        deepest = tokens + nn.gelu(nn.Dense(self.width, name="mix")(tokens))
        grown = nn.ConvTranspose(self.out_channels, (2, 2, 2), strides=(2, 2, 2), name="grow")(deepest)
        return Trunk(values=grown, tail=None, stages=(deepest,))


@pytest.fixture
def mixer(monkeypatch):
    declared = dataclasses.replace(TOY, module=Mixer, encoder=r"^(shrink|mix)/", low_rank=r"^mix/kernel$")
    monkeypatch.setitem(BACKBONES, "mixer", declared)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("patches"), count=4)


def _weights(folder, architecture, *, size, **parts):
    """A folder of weights, drawn here: nothing is compiled."""
    backbone = build_backbone(**architecture)
    volume = jnp.zeros((1, size, size, size, 1))
    shapes = jax.eval_shape(lambda key: backbone.init(key, volume, train=False, method="trunk"), jax.random.key(0))
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(lambda leaf: rng.uniform(-0.2, 0.2, leaf.shape).astype(np.float32), shapes["params"])
    record = {"task": "pretrain", "architecture": architecture}
    write_weights(folder, record=record, params={"backbone": drawn}, batch_stats={"backbone": {}})
    return folder


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    return _weights(tmp_path_factory.mktemp("weights") / "swin", SWIN, size=32)


def _config(task, name, **changes):
    config = defaults(task)
    values = {
        "model.name": name,
        "model.dtype": "float32",
        "data.patch_size": (32, 32, 32) if name == "swin_unetr" else (16, 16, 16),
        "data.validation_frac": 0.5,
        "optim.learning_rate": 0.01,
        "train.batch_size": 2,
        "train.tensorboard": False,
        "train.pictures_every_epochs": 0,
        "augment.probability": 0.0,
        "encoder.lora_rank": RANK,
        "encoder.lora_alpha": ALPHA,
        **changes,
    }
    config.update_from_flattened_dict(values)
    validate(config)
    return config


def _flat(tree):
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def _by_hand(params, scaling):
    """Backbone kernels plus scaled products, in float64."""
    kernels, factors = _flat(params["backbone"]), _flat(params["lora"])
    for path in {name.rsplit("/", 1)[0] for name in factors}:
        a, b = (factors[f"{path}/{name}"].astype(np.float64) for name in "ab")
        kernels[path] = (kernels[path] + scaling * a @ b).astype(np.float32)
    return kernels


@pytest.fixture(scope="module")
def classifying(patches, swin, tmp_path_factory):
    """A classification run on the SwinUNETR: setup, what it printed, first and third state, a batch."""
    lines = []
    changes = {"init_from": str(swin), "encoder.thaw_epochs": 1, "data.folder": str(patches)}
    config = _config("classify", "swin_unetr", **changes)
    setup = SETUPS["classify"](config, tmp_path_factory.mktemp("run"), print_line=lines.append)
    assert setup.steps_per_epoch == 1, "after the first step an encoder that thaws would train"
    shapes = jax.eval_shape(setup.task.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes[0])
    ((_, given, _),) = setup.initial
    key = jax.random.key(1)
    low_rank = LowRank(BACKBONES["swin_unetr"].low_rank, RANK, ALPHA)
    params = {**params, **given, "lora": init_factors(key, given["backbone"], low_rank)}
    optimiser = make_optimiser(shapes[0], setup.rules, optimiser_settings(config, setup.steps_per_epoch))
    step = jax.jit(build_train_step(setup.task, optimiser, seed=0, rules=setup.rules))
    first = state_of(setup.task, optimiser, jax.tree.map(jnp.asarray, params), {"backbone": {}})
    stream, state = setup.batches(0), first
    for _ in range(3):
        batch = next(stream)
        state, metrics = step(state, batch)
        assert np.isfinite(metrics["loss"]) and float(metrics["bad"]) == 0
    return setup, config, lines, first, state, batch


def _plain(setup, config, tmp_path):
    """The same task without low-rank adaptation."""
    without = config.copy_and_resolve_references()
    without.encoder.lora_rank = 0
    return SETUPS[config.task](without, tmp_path, print_line=lambda line: None).task


def test_the_start_is_the_pretrained_network_bit_for_bit(classifying, tmp_path):
    setup, config, _, first, last, _ = classifying
    plain = {name: part for name, part in first.params.items() if name != "lora"}
    batch = next(iter(setup.validation))
    wanted = jax.jit(_plain(setup, config, tmp_path).evaluate)(plain, first.batch_stats, {}, batch)
    evaluate = jax.jit(setup.task.evaluate)
    found = evaluate(first.params, first.batch_stats, {}, batch)
    for name in ("probability", "loss"):
        np.testing.assert_array_equal(found[name], wanted[name])
    later = evaluate({**plain, "lora": last.params["lora"]}, first.batch_stats, {}, batch)
    assert not np.array_equal(later["probability"], wanted["probability"])


def test_encoder_kernels_stay_and_merged_ones_move_by_the_rank(classifying):
    _, _, _, first, last, _ = classifying
    old, new = _flat(first.params["backbone"]), _flat(last.params["backbone"])
    moved = {path.split("/")[0] for path in old if not np.array_equal(old[path], new[path])}
    assert moved == {"bottleneck"}, "the decoder is not used by classification"
    assert not np.array_equal(first.params["head"]["kernel"], last.params["head"]["kernel"])
    merged = _flat(merge_read(jax.device_get(last.params), ALPHA / RANK)["backbone"])
    differing = {path for path in new if not np.array_equal(merged[path], new[path])}
    assert differing == ADAPTED
    ranks = {path: np.linalg.matrix_rank(merged[path] - new[path]) for path in ADAPTED}
    assert set(ranks.values()) == {RANK}, ranks


def test_frozen_kernels_have_no_moments_and_factors_do(classifying):
    _, _, _, _, last, _ = classifying
    groups = last.opt_state.inner_states
    assert not jax.tree.leaves(groups["encoder"])
    moments = jax.tree.leaves(groups["encoder, low rank"].inner_state.inner)
    assert sum(leaf.size for leaf in moments if leaf.ndim) == 2 * sum(
        leaf.size for leaf in jax.tree.leaves(last.params["lora"])
    )


def test_the_gradient_of_factors_follows_from_that_of_the_whole_kernel(mixer, patches, tmp_path):
    start = _weights(tmp_path / "start", MIXER, size=16)
    config = _config("segment", "mixer", **{"init_from": str(start), "data.folder": str(patches)})
    setup = SETUPS["segment"](config, tmp_path / "run", print_line=lambda line: None)
    rng = np.random.default_rng(0)
    shapes, _ = jax.eval_shape(setup.task.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes)
    batch = jax.tree.map(jnp.asarray, next(setup.batches(0)))

    def gradient(task, params):
        rows = task.prepare(batch, jax.random.key(0), jnp.int32(0))
        loss = lambda params: task.local(params, {"backbone": {}}, {}, rows, jnp.int32(0)).loss  # noqa: E731
        return jax.device_get(jax.jit(jax.grad(loss))(params))

    found = gradient(setup.task, params)["lora"]["mix"]["kernel"]
    kernels = unflatten_dict({tuple(p.split("/")): jnp.asarray(k) for p, k in _by_hand(params, ALPHA / RANK).items()})
    plain = _plain(setup, config, tmp_path / "plain")
    whole = gradient(plain, {"backbone": kernels, "head": params["head"]})["backbone"]["mix"]["kernel"]
    a, b = (np.asarray(params["lora"]["mix"]["kernel"][name], np.float64) for name in "ab")
    for name, product in (("a", whole @ b.T), ("b", a.T @ whole)):
        wanted = ALPHA / RANK * product
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
        assert np.abs(wanted).max() > 0


def test_how_many_values_train_is_printed(classifying, swin):
    _, _, lines, first, _, _ = classifying
    widths = [12 * 2**stage for stage in range(4)]
    factors = sum(RANK * ((w + 3 * w) + (w + w) + 2 * (w + 4 * w)) for w in widths)
    backbone = read_weights(swin).params["backbone"]
    encoder = sum(leaf.size for leaf in jax.tree.leaves(backbone["transformer"]))
    share = 100 * factors / encoder
    wanted = f"LoRA rank 4, alpha 6: {factors:,} values train in place of the encoder's {encoder:,} ({share:.1f} %)"
    assert wanted in lines
    assert sum(leaf.size for leaf in jax.tree.leaves(first.params["lora"])) == factors


def _runs(config, folder, *, stop_after=None):
    """Trains in a folder, or until as many steps are made; what was printed."""
    lines = []
    setup = SETUPS[config.task](config, folder, print_line=lines.append)

    def interrupted(start):
        for number, batch in enumerate(setup.batches(start), start):
            if number == stop_after:
                raise RuntimeError("pulled plug")
            yield batch

    execute(config, dataclasses.replace(setup, batches=interrupted), folder, print_line=lines.append)
    return lines


def test_a_run_is_resumed_bitwise_and_read_as_merged(mixer, patches, tmp_path):
    start = _weights(tmp_path / "start", MIXER, size=16)
    settings = {
        "init_from": str(start),
        "train.batch_size": 8,
        "data.validation_frac": 0.0,
        "data.crops_per_patch": 4,
        "data.folder": str(patches),
        "train.epochs": 4,
        "train.checkpoint_every_epochs": 1,
        "encoder.lora_alpha": 0.0,
    }
    config = _config("segment", "mixer", **settings)
    whole = _runs(config, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="pulled plug"):
        _runs(config, tmp_path / "stopped", stop_after=3)
    again = _runs(config, tmp_path / "stopped")
    assert any(re.match(r"resumed from .* at step 2", line) for line in again), again
    assert whole[-1].startswith("state ") and again[-1] == whole[-1]

    # On disk: the kernel as it was, and the factors.
    run = tmp_path / "whole"
    step = committed_steps(run / "checkpoints")[-1]
    stored = read_part(run / "checkpoints", step, ("params",))[0]["params"]
    before = read_weights(start).params["backbone"]
    for name in ("shrink", "mix"):
        for leaf in before[name]:
            np.testing.assert_array_equal(stored["backbone"][name][leaf], before[name][leaf])
    weights = read_weights(run)
    assert set(weights.params) == {"backbone", "head"} and weights.record["lora"] == {"rank": 4, "alpha": 4.0}
    wanted = _by_hand(stored, 1.0)
    found = _flat(weights.params["backbone"])
    for path in wanted:
        np.testing.assert_allclose(found[path], wanted[path], rtol=0, atol=1e-7)
    assert np.abs(found["mix/kernel"] - before["mix"]["kernel"]).max() > 1e-3
    assert verify(run) == []

    # Predicting: the network of the merged kernel.
    volume = np.random.default_rng(0).random((1, 16, 16, 16)).astype(np.float32)
    merged = unflatten_dict({tuple(path.split("/")): jnp.asarray(leaf) for path, leaf in wanted.items()})
    by_hand = build_segmenter(weights.record)(
        {"backbone": merged, "head": jax.tree.map(jnp.asarray, stored["head"])},
        {"backbone": {}},
        jnp.asarray(volume[..., None]),
    )
    np.testing.assert_allclose(load_predictor(run).apply(volume), by_hand[..., 0], rtol=1e-5)

    # A second run starts from merged kernels; the first is not continued with other factors.
    second = SETUPS["segment"](
        _config("segment", "mixer", **{**settings, "init_from": str(run)}), tmp_path / "second", print_line=print
    )
    np.testing.assert_array_equal(second.initial[0][1]["backbone"]["mix"]["kernel"], found["mix/kernel"])
    for key, value in (("lora_alpha", 8.0), ("lora_rank", 0), ("lora_rank", 2)):
        other = _config("segment", "mixer", **{**settings, f"encoder.{key}": value})
        with pytest.raises(ConfigError, match=r"encoder\.lora_rank: .* began with rank 4, alpha 4: set them back"):
            SETUPS["segment"](other, run, print_line=print)


def test_export_writes_merged_kernels_and_an_unscaled_run_is_refused(swin, tmp_path):
    plain = read_weights(swin)
    rng = np.random.default_rng(3)
    factors = {}
    for path in sorted(ADAPTED):
        inputs, outputs = _flat(plain.params["backbone"])[path].shape
        for name, shape in (("a", (inputs, RANK)), ("b", (RANK, outputs))):
            factors[f"{path}/{name}"] = rng.normal(0, 0.1, shape).astype(np.float32)
    params = {**plain.params, "lora": unflatten_dict(factors, sep="/")}
    record = {**plain.record, "lora": {"rank": RANK, "alpha": ALPHA}}
    write_weights(tmp_path / "factors", record=record, params=params, batch_stats=plain.batch_stats)
    by_hand = {"backbone": unflatten_dict(_by_hand(params, ALPHA / RANK), sep="/")}
    write_weights(tmp_path / "merged", record=plain.record, params=by_hand, batch_stats=plain.batch_stats)
    found, wanted = (read_weights(tmp_path / name).params for name in ("factors", "merged"))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for path, leaf in _flat(found).items():
        np.testing.assert_allclose(leaf, _flat(wanted)[path], rtol=0, atol=1e-7)
    assert (
        np.abs(_flat(found)[f"backbone/{min(ADAPTED)}"] - _flat(plain.params)[f"backbone/{min(ADAPTED)}"]).max() > 0.1
    )

    files = []
    for name in ("factors", "merged"):
        files.append(tmp_path / f"{name}.safetensors")
        export_run(tmp_path / name, files[-1])
    exported, expected = (load_file(file) for file in files)
    assert exported.keys() == expected.keys()
    for name, tensor in exported.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=0, atol=1e-7)

    write_weights(tmp_path / "unscaled", record=plain.record, params=params, batch_stats=plain.batch_stats)
    with pytest.raises(CheckpointError, match=r"run\.json: damaged: it does not say how the low-rank factors"):
        read_weights(tmp_path / "unscaled")


def test_what_cannot_be_adapted_is_refused(swin, patches, tmp_path):
    with pytest.raises(ConfigError, match=r"lora_rank: 4 with model\.name 'unet', .* possible with swin_unetr: use a"):
        _config("segment", "unet", init_from=str(swin))
    with pytest.raises(ConfigError, match=r"lora_rank: 4 with model\.name 'resnet18'"):
        _config("classify", "resnet18", init_from=str(swin))
    with pytest.raises(ConfigError, match=r"encoder\.lora_rank: 4 without init_from"):
        _config("segment", "swin_unetr")
    with pytest.raises(ConfigError, match=r"encoder\.lora_rank: 4 with encoder\.frozen"):
        _config("segment", "swin_unetr", init_from=str(swin), **{"encoder.frozen": True})
    with pytest.raises(ConfigError, match=r"encoder\.lora_rank: 65; at most 64 is allowed"):
        _config("segment", "swin_unetr", init_from=str(swin), **{"encoder.lora_rank": 65})
    with pytest.raises(ConfigError, match=r"encoder\.lora_rank: -1; at least 0 is needed"):
        _config("segment", "swin_unetr", init_from=str(swin), **{"encoder.lora_rank": -1})
    with pytest.raises(ConfigError, match=r"encoder\.lora_alpha: -1\.0; at least 0 is needed"):
        _config("segment", "swin_unetr", init_from=str(swin), **{"encoder.lora_alpha": -1.0})
    config = _config(
        "segment", "swin_unetr", init_from=str(swin), **{"encoder.lora_rank": 13, "data.folder": str(patches)}
    )
    with pytest.raises(ConfigError, match=r"lora_rank: 13 is above 12, the smaller side of transformer/stage_0/"):
        SETUPS["segment"](config, tmp_path, print_line=lambda line: None)
