"""Finetuning: what is frozen stays bit for bit, thawing needs no second program, every task runs on every backbone."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from labelled_toy import write_patches
from toy_swin import SWIN

from lsmfm_jax.config import ConfigError, defaults, validate
from lsmfm_jax.data.labelled import LabelledDataError
from lsmfm_jax.models import build_backbone
from lsmfm_jax.tasks import SETUPS
from lsmfm_jax.tasks.classify import build_classifier
from lsmfm_jax.tasks.deblur import build_deblurrer
from lsmfm_jax.tasks.segment import build_segmenter
from lsmfm_jax.train.checkpoint import CheckpointError
from lsmfm_jax.train.initialise import CoverageError
from lsmfm_jax.train.optim import make_optimiser
from lsmfm_jax.train.run import execute, optimiser_settings
from lsmfm_jax.train.state import state_of
from lsmfm_jax.train.step import build_train_step
from lsmfm_jax.train.weights import read_weights, write_weights

UNET = {"name": "unet", "out_channels": 6, "channels": [4, 8], "strides": [2], "num_res_units": 1, "norm": "batch"}
ENCODER = ("down_0", "bottom")


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("labelled"), count=6)


def _weights(folder, architecture, seed, *, size):
    backbone = build_backbone(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in architecture.items()}
    )
    volume = jnp.zeros((1, size, size, size, 1))
    shapes = jax.eval_shape(lambda key: backbone.init(key, volume, train=False, method="trunk"), jax.random.key(0))
    # Drawn here, not by the network: nothing is compiled, and a run from scratch has other values.
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda leaf: rng.uniform(0.05, 0.2, leaf.shape).astype(np.float32), shapes)
    params = {"backbone": drawn["params"], "light_decoder": {"kernel": np.ones(3, np.float32)}}
    statistics = {"backbone": drawn.get("batch_stats", {})}
    record = {"task": "pretrain", "architecture": architecture}
    write_weights(folder, record=record, params=params, batch_stats=statistics)
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return _weights(tmp_path_factory.mktemp("weights") / "unet", UNET, 1, size=16)


def _config(task, patches, **changes):
    config = defaults(task)
    values = {
        "model.dtype": "float32",
        "model.out_channels": 6,
        "model.unet.channels": (4, 8),
        "model.unet.strides": (2,),
        "model.unet.num_res_units": 1,
        "data.folder": str(patches),
        "data.patch_size": (16, 16, 16),
        "data.validation_frac": 0.34,
        "optim.learning_rate": 0.02,
        "train.batch_size": 2,
        "train.tensorboard": False,
        # Augmentation takes long to compile; one run below has it.
        "augment.probability": 0.0,
        **changes,
    }
    config.update_from_flattened_dict(values)
    validate(config)
    return config


def _begin(config, folder):
    """Setup, step (not compiled) and first state of a run, with what `init_from` gives."""
    lines = []
    setup = SETUPS[config.task](config, folder, print_line=lines.append)
    settings = optimiser_settings(config, setup.steps_per_epoch)
    shapes = jax.eval_shape(setup.task.init, jax.random.key(config.seed))
    optimiser = make_optimiser(shapes[0], setup.rules, settings)
    step = build_train_step(setup.task, optimiser, seed=config.seed, rules=setup.rules)

    def start():
        if setup.initial:  # what is not given is drawn here: compiling a whole initialisation takes long
            rng = np.random.default_rng(0)
            drawn = jax.tree.map(lambda leaf: rng.uniform(-0.1, 0.1, leaf.shape).astype(np.float32), shapes)
            params, statistics = drawn
        else:
            params, statistics = jax.jit(setup.task.init)(jax.random.key(config.seed))
        for _, given, given_statistics in setup.initial:
            params, statistics = {**params, **given}, {**statistics, **given_statistics}
        return state_of(setup.task, optimiser, jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, statistics))

    return setup, step, start, lines


def _leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _changed(old, new):
    old, new = _leaves(old), _leaves(new)
    return {name for name in old if not np.array_equal(old[name], new[name])}


@pytest.fixture(scope="module")
def thawing(patches, pretrained, tmp_path_factory):
    """States of a segmentation run whose encoder thaws after two epochs of two steps, and the compiled step."""
    config = _config(
        "segment",
        patches,
        init_from=str(pretrained),
        **{"encoder.thaw_epochs": 2, "encoder.rate_multiplier": 0.5, "augment.probability": 0.5},
    )
    setup, step, start, lines = _begin(config, tmp_path_factory.mktemp("run"))
    assert setup.steps_per_epoch == 2
    step, states = jax.jit(step), [start()]
    stream = setup.batches(0)
    for _ in range(5):
        state, _ = step(states[-1], next(stream))
        states.append(state)
    return setup, step, states, lines


def test_frozen_is_bitwise_in_parameters_moments_and_statistics(thawing):
    _, _, states, _ = thawing
    first, last = states[0], states[4]
    for old, new in ((first.params, last.params), (first.batch_stats, last.batch_stats)):
        for part in ENCODER:
            assert not _changed(old["backbone"][part], new["backbone"][part])
        assert _changed(old["backbone"]["up_0"], new["backbone"]["up_0"])
    encoder = first.opt_state.inner_states["encoder"].inner_state.inner
    frozen = last.opt_state.inner_states["encoder"].inner_state.inner
    assert jax.tree.leaves(encoder) and not _changed(encoder, frozen)
    assert len(_changed(first.params["head"], last.params["head"])) == 2


def test_after_the_thaw_everything_trains_in_the_same_program(thawing):
    _, step, states, _ = thawing
    before, after = states[4], states[5]
    for tree in ("params", "batch_stats"):
        for part in ENCODER:
            old, new = getattr(before, tree)["backbone"][part], getattr(after, tree)["backbone"][part]
            # Biases that a batch norm takes away again have a gradient of rounding errors, or of none.
            unchanged = set(_leaves(old)) - _changed(old, new)
            assert all("bias" in name for name in unchanged), unchanged
    assert step._cache_size() == 1


def test_frozen_statistics_are_those_that_normalise(thawing):
    """While the encoder is frozen, its maps in training mode are those of evaluation mode."""
    setup, _, states, _ = thawing
    parts = setup.task.local.__self__
    state, volume = states[0], jax.random.uniform(jax.random.key(3), (2, 16, 16, 16, 1))
    still, _ = parts.network.training_trunk(state.params, state.batch_stats, volume, jnp.int32(3))
    plain = parts.network.trunk(state.params, state.batch_stats, volume)
    moving, _ = parts.network.training_trunk(state.params, state.batch_stats, volume, jnp.int32(4))
    for stage, wanted, other in zip(still.stages, plain.stages, moving.stages, strict=True):
        np.testing.assert_allclose(stage, wanted, rtol=1e-5, atol=1e-6)
        assert np.abs(np.asarray(other) - np.asarray(wanted)).max() > 1e-2


def test_what_is_taken_and_what_is_not_is_said(thawing):
    setup, _, _, lines = thawing
    assert any("architecture of" in line and "channels [4, 8]" in line for line in lines)
    assert any("not used of" in line and "light_decoder" in line for line in lines)
    assert setup.record["architecture"] == UNET
    assert {rule.group.name for rule in setup.rules} == {"encoder", "decoder", "head"}
    assert next(rule.group for rule in setup.rules).rate_multiplier == 0.5


def test_segmentation_learns_and_the_segmenter_gives_what_was_validated(patches, tmp_path):
    config = _config("segment", patches)
    setup, step, start, _ = _begin(config, tmp_path)
    step, state, stream = jax.jit(step, donate_argnums=0), start(), setup.batches(0)
    losses = []
    for _ in range(40):
        state, metrics = step(state, next(stream))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    evaluate = jax.jit(setup.task.evaluate)
    outputs = [jax.device_get(evaluate(state.params, state.batch_stats, {}, batch)) for batch in setup.validation]
    scores = setup.task.summarise(outputs)
    assert scores["dice"] > 0.6
    apply = jax.jit(build_segmenter(setup.record))
    intersection, total = {}, {}
    for batch in setup.validation:
        span = (batch["high"] - batch["low"]).reshape(-1, 1, 1, 1)
        volumes = np.clip((batch["image"] - batch["low"].reshape(-1, 1, 1, 1)) / span, 0, 1)
        mask = np.asarray(apply(state.params, state.batch_stats, volumes[..., None].astype(np.float32)))[..., 0] >= 0.5
        for row in np.flatnonzero(batch["weight"]):
            valid, sample = batch["valid"][row], int(batch["sample"][row])
            predicted, true = mask[row] & valid, (batch["target"][row] > 0) & valid
            intersection[sample] = intersection.get(sample, 0) + (predicted & true).sum()
            total[sample] = total.get(sample, 0) + predicted.sum() + true.sum()
    wanted = np.mean([2 * intersection[sample] / total[sample] for sample in total])
    assert scores["dice"] == pytest.approx(wanted, abs=1e-6)


def test_linear_probe_trains_the_head_alone(patches, pretrained, tmp_path):
    config = _config("classify", patches, init_from=str(pretrained), **{"encoder.frozen": True})
    setup, step, start, _ = _begin(config, tmp_path)
    state = start()
    new, metrics = jax.jit(step)(state, next(setup.batches(0)))
    assert not _changed(state.params["backbone"], new.params["backbone"])
    assert not _changed(state.batch_stats, new.batch_stats)
    assert len(_changed(state.params["head"], new.params["head"])) == 2
    assert 0.0 <= float(metrics["accuracy"]) <= 1.0
    (batch,) = list(setup.validation)[:1]
    outputs = jax.device_get(jax.jit(setup.task.evaluate)(new.params, new.batch_stats, {}, batch))
    scores = setup.task.summarise([outputs])
    assert scores["accuracy"] in (0.0, 0.5, 1.0)
    volumes = np.clip((batch["image"] - batch["low"][0]) / (batch["high"][0] - batch["low"][0]), 0, 1)[:1, ..., None]
    probabilities = build_classifier(setup.record)(new.params, new.batch_stats, jnp.asarray(volumes, jnp.float32))
    np.testing.assert_allclose(probabilities[0], outputs["probability"][0], rtol=1e-5)


def test_a_frozen_encoder_costs_no_backward_pass_and_its_gradients_count_in_no_norm(patches, pretrained, tmp_path):
    cost, norms = {}, {}
    for frozen in (False, True):
        config = _config("segment", patches, init_from=str(pretrained), **{"encoder.frozen": frozen})
        setup, step, start, _ = _begin(config, tmp_path / str(frozen))
        state, batch = start(), next(setup.batches(0))
        compiled = jax.jit(step).lower(state, batch).compile()
        new, metrics = compiled(state, batch)
        cost[frozen], norms[frozen] = compiled.cost_analysis()["flops"], float(metrics["grad_norm"])
        for part in ENCODER:
            for tree in ("params", "batch_stats"):
                old, now = getattr(state, tree)["backbone"][part], getattr(new, tree)["backbone"][part]
                assert bool(_changed(old, now)) != frozen, (part, tree)
    # The gradient in the weights costs what the forward pass does, that in the maps once more but for the input's.
    network = setup.task.local.__self__.network
    volumes = jnp.zeros((2, 16, 16, 16, 1))
    encode = jax.jit(lambda params, stats: network.trunk(params, stats, volumes).stages[-1])
    forward = encode.lower(state.params, state.batch_stats).compile().cost_analysis()["flops"]
    print(cost, forward)
    assert cost[False] - cost[True] > 1.2 * forward
    assert norms[True] < norms[False]


def test_deblurring_starts_from_its_input_and_the_deblurrer_keeps_the_scale(patches, tmp_path):
    config = _config("deblur", patches, **{"optim.schedule": "cosine"})
    setup, step, start, _ = _begin(config, tmp_path)
    state = start()
    (batch,) = list(setup.validation)[:1]
    outputs = jax.device_get(jax.jit(setup.task.evaluate)(state.params, state.batch_stats, {}, batch))
    np.testing.assert_allclose(outputs["psnr"], outputs["psnr_blurred"], rtol=0.02)
    bottom, top = setup.record["target_range"]
    assert bottom < 0 and top > 1.2
    volumes = jnp.linspace(bottom, top, 16**3).reshape(1, 16, 16, 16, 1)
    same = build_deblurrer(setup.record)(state.params, state.batch_stats, volumes)
    np.testing.assert_allclose(same, volumes, atol=1e-5)
    new, metrics = jax.jit(step)(state, next(setup.batches(0)))
    assert np.isfinite(metrics["loss"]) and {"l1", "ssim", "edge", "high_frequency"} <= set(metrics)
    assert _changed(state.params["head"], new.params["head"])


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    return _weights(tmp_path_factory.mktemp("weights") / "swin", SWIN, 2, size=32)


SWIN_CHANGES = {
    "model.name": "swin_unetr",
    "data.patch_size": (32, 32, 32),
    "train.batch_size": 1,
}


def test_segmentation_on_the_swin_runs_and_its_bottleneck_is_a_group(patches, swin, tmp_path):
    config = _config("segment", patches, init_from=str(swin), **SWIN_CHANGES, **{"encoder.thaw_epochs": 1})
    setup, step, start, _ = _begin(config, tmp_path)
    groups = {rule.group.name: rule.group.thaw_step for rule in setup.rules}
    assert groups == {"encoder": 4, "bottleneck": 0, "decoder": 0, "head": 0}
    state = start()
    step = jax.jit(step)
    new, metrics = step(state, next(setup.batches(0)))
    assert np.isfinite(metrics["loss"])
    backbone = state.params["backbone"]
    moved = {name for name in backbone if _changed(backbone[name], new.params["backbone"][name])}
    assert moved == {"bottleneck", "out", *(f"decoder_{i}" for i in range(5))}


def test_classification_on_the_swin_trains_what_leads_to_the_deepest_map(patches, swin, tmp_path):
    config = _config("classify", patches, init_from=str(swin), **SWIN_CHANGES, **{"encoder.bottleneck": "encoder"})
    setup, step, start, _ = _begin(config, tmp_path)
    state = start()
    new, metrics = jax.jit(step)(state, next(setup.batches(0)))
    assert np.isfinite(metrics["loss"])
    backbone = state.params["backbone"]
    moved = {name for name in backbone if _changed(backbone[name], new.params["backbone"][name])}
    # Decoder and skip connections have no gradient, and do not decay either.
    assert moved == {"transformer", "bottleneck"}
    assert len(_changed(state.params["head"], new.params["head"])) == 2


def test_deblurring_traces_on_the_swin(patches, swin, tmp_path):
    config = _config("deblur", patches, init_from=str(swin), **SWIN_CHANGES)
    setup, step, start, _ = _begin(config, tmp_path)
    state, batch = jax.eval_shape(start), next(setup.batches(0))
    new, metrics = jax.eval_shape(step, state, batch)
    assert metrics["loss"].shape == () and jax.tree.structure(new) == jax.tree.structure(state)
    jax.eval_shape(setup.task.evaluate, state.params, state.batch_stats, {}, next(iter(setup.validation)))


def test_wrong_weights_are_refused(patches, pretrained, swin, tmp_path):
    with pytest.raises(ConfigError, match=r"holds a swin_unetr, and model\.name is 'unet'"):
        _begin(_config("segment", patches, init_from=str(swin)), tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"no run\.json there"):
        _begin(_config("segment", patches, init_from=str(tmp_path)), tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"it has no teacher"):
        _begin(_config("segment", patches, init_from=str(pretrained), init_teacher=True), tmp_path / "c")
    with pytest.raises(ConfigError, match=r"data\.patch_size: \(15, 16, 16\); each must be a multiple of 2"):
        config = _config("segment", patches, init_from=str(pretrained), **{"data.patch_size": (15, 16, 16)})
        _begin(config, tmp_path / "d")


def test_patches_that_cannot_be_classified_are_refused(patches, tmp_path):
    with pytest.raises(LabelledDataError, match=r"all of one class, dense"):
        _begin(_config("classify", patches, **{"data.classes": ("dense",)}), tmp_path / "a")
    names = sorted(path.name.removesuffix(".nii.gz") for path in patches.glob("*_ch0.nii.gz"))
    table = tmp_path / "classes.csv"
    kinds = ["a", "b", "c", *"abb"]
    table.write_text("name,class\n" + "".join(f"{name},{kind}\n" for name, kind in zip(names, kinds, strict=True)))
    changes = {"data.class_from": "csv", "data.csv": str(table), "data.train_names": tuple(names[:2])}
    with pytest.raises(LabelledDataError, match=r"1 validation patches are of classes .* of c; training has a, b"):
        _begin(_config("classify", patches, **changes, **{"data.validation_names": (names[2],)}), tmp_path / "b")


def test_a_run_goes_to_its_end_and_starts_another(patches, pretrained, tmp_path):
    changes = {
        "init_from": str(pretrained),
        "train.batch_size": 8,
        "train.epochs": 2,
        "train.pictures_count": 2,
        "encoder.thaw_epochs": 1,
        "reinit_top": True,
    }
    config, run, lines = _config("segment", patches, **changes), tmp_path / "run", []
    setup = SETUPS["segment"](config, run, print_line=lines.append)
    execute(config, setup, run, print_line=lines.append)
    assert any("reinit_top: 7 parameters" in line for line in lines), lines
    assert any("100.00 %" in line for line in lines)
    record = json.loads((run / "run.json").read_text())
    assert record["task"] == "segment" and record["scaling"]["name"] == "percentile"
    assert list((run / "pictures").glob("*.png"))
    weights = read_weights(run)
    assert set(weights.params) == {"backbone", "head"}
    # The split is part of the run: other patches under its name are refused.
    split = json.loads((run / "split.json").read_text())
    split["train"][0]["sha256"] = "0"
    (run / "split.json").write_text(json.dumps(split))
    with pytest.raises(LabelledDataError, match=r"began with other patches"):
        SETUPS["segment"](config, run, print_line=lines.append)
    # Another run of the task takes the head too.
    second = SETUPS["segment"](
        _config("segment", patches, init_from=str(run)), tmp_path / "second", print_line=lines.append
    )
    ((_, given, _),) = second.initial
    assert set(given) == {"backbone", "head"}
    damaged = next(pathlib.Path(run / "best").rglob("state/**/d/*"))
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    for folder in (run / "checkpoints").iterdir():
        if folder.name.isdigit():
            (folder / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(CheckpointError, match=r"no whole checkpoint there"):
        SETUPS["segment"](_config("segment", patches, init_from=str(run)), tmp_path / "third", print_line=lines.append)


def test_weights_that_lack_a_leaf_name_it(patches, pretrained, tmp_path):
    weights = read_weights(pretrained)
    del weights.params["backbone"]["up_0"]["unit_0"]["conv"]["bias"]
    folder = tmp_path / "weights"
    write_weights(folder, record=weights.record, params=weights.params, batch_stats=weights.batch_stats)
    config = _config("segment", patches, init_from=str(folder), **{"train.batch_size": 8, "train.epochs": 1})
    setup = SETUPS["segment"](config, tmp_path / "run", print_line=lambda line: None)
    with pytest.raises(CoverageError, match=r"backbone/up_0/unit_0/conv/bias: missing"):
        execute(config, setup, tmp_path / "run", print_line=lambda line: None)
