"""Pretraining from other weights: `init_from` is read or refused, with its teacher, its words and its coverage."""

import dataclasses
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loader import write_store
from tiny_runs import finish, start

from lsmfm_jax.config import ConfigError, defaults, validate
from lsmfm_jax.models.text_directory import load_text_tower
from lsmfm_jax.tasks.pretrain_setup import pretraining_setup
from lsmfm_jax.train.checkpoint import CheckpointError
from lsmfm_jax.train.initialise import CoverageError
from lsmfm_jax.train.optim import make_optimiser
from lsmfm_jax.train.records import seal_records
from lsmfm_jax.train.run import first_state, optimiser_settings
from lsmfm_jax.train.sharding import make_mesh, state_shardings
from lsmfm_jax.train.state import state_of
from lsmfm_jax.train.weights import read_weights, write_weights

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETTINGS = {
    "model.dtype": "float32",
    "model.out_channels": 8,
    "model.unet.channels": (4, 8),
    "model.unet.strides": (2,),
    "model.unet.num_res_units": 1,
    "text.max_tokens": 16,
    "data.patch_size": (16, 16, 16),
    "data.input_size": (16, 16, 16),
    "data.validation_frac": 0.3,
    "augment.probability": 0.0,
    "train.batch_size": 4,
    "train.epochs": 1,
    "train.tensorboard": False,
    "optim.learning_rate": 0.0,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores") / "store", count=12, shape=(16, 16, 16)).path


def _config(store, **changes):
    config = defaults("pretrain")
    config.update_from_flattened_dict({**SETTINGS, "data.stores": (str(store),), **changes})
    validate(config)
    return config


def _first_state(config, folder):
    """The state before the first step, without a compiled step, and what was said on the way."""
    lines = []
    setup = pretraining_setup(config, folder, print_line=lines.append)
    settings = optimiser_settings(config, setup.steps_per_epoch)
    shapes = jax.eval_shape(setup.task.init, jax.random.key(0))

    def init(key):  # to compile a whole initialisation takes long, and what it draws does not matter here
        return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.25, leaf.dtype), shapes)

    setup = dataclasses.replace(setup, task=dataclasses.replace(setup.task, init=init))
    optimiser = make_optimiser(shapes[0], setup.rules, settings)
    abstract = jax.eval_shape(lambda p, s: state_of(setup.task, optimiser, p, s), *shapes)
    shardings = state_shardings(abstract, make_mesh(devices=jax.devices()[:1]))
    return first_state(config, setup, optimiser=optimiser, shardings=shardings, print_line=lines.append), setup, lines


@pytest.fixture(scope="module")
def pretrained(store, tmp_path_factory):
    """Weights as a run has them, its text model beside; the teacher is not the student."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    setup = pretraining_setup(_config(store), folder, print_line=lambda line: None)
    shapes = jax.eval_shape(setup.task.init, jax.random.key(0))
    rng = np.random.default_rng(5)
    params, stats = jax.tree.map(lambda leaf: rng.uniform(0.1, 0.9, leaf.shape).astype(np.float32), shapes)
    teacher = jax.tree.map(lambda leaf: leaf / 2, {"params": params["backbone"], "batch_stats": stats["backbone"]})
    write_weights(folder, record=setup.record, params=params, batch_stats=stats, teacher=teacher)
    return folder


def _same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(tree), jax.device_get(other))


def _rewritten(pretrained, folder, change):
    """The weights with a change made to them, in a folder of their own."""
    weights = read_weights(pretrained, both=True)
    parts = {"params": weights.params, "batch_stats": weights.batch_stats, "teacher": weights.teacher}
    parts = {name: dict(part) if isinstance(part, dict) else part for name, part in parts.items()}
    record = json.loads(json.dumps(weights.record))
    change(parts, record)
    shutil.copytree(pretrained / "text", folder / "text")
    write_weights(folder, record=record, **parts)
    return folder


def test_student_teacher_and_statistics_are_those_of_init_from(store, pretrained, tmp_path):
    state, setup, lines = _first_state(_config(store, init_from=str(pretrained)), tmp_path / "run")
    weights = read_weights(pretrained, both=True)
    _same(state.params, weights.params)
    _same(state.batch_stats, weights.batch_stats)
    _same(state.teacher, weights.teacher)
    assert int(state.step) == 0 and setup.record["init_from"] == str(pretrained)
    covered = [line for line in lines if f"from {pretrained / 'best'} step 0" in line]
    assert len(covered) == 2 and all("(100.00 %)" in line for line in covered), lines
    assert "from scratch" not in lines


def test_the_own_checkpoint_of_a_run_comes_before_init_from(store, pretrained, tmp_path):
    folder = tmp_path / "run"
    config = _config(store, init_from=str(pretrained))
    assert pretraining_setup(config, folder, print_line=lambda line: None).start is not None
    (folder / "checkpoints" / "3").mkdir(parents=True)
    config.init_from = "/does/not/exist"
    assert pretraining_setup(config, folder, print_line=lambda line: None).start is None


def test_weights_without_a_teacher_say_so(store, pretrained, tmp_path):
    folder = _rewritten(pretrained, tmp_path / "w", lambda parts, record: parts.update(teacher=None))
    state, _, lines = _first_state(_config(store, init_from=str(folder)), tmp_path / "run")
    _same(state.teacher["params"], state.params["backbone"])
    assert any("has no teacher: it starts as a copy of the student" in line for line in lines)


@pytest.mark.parametrize("what", ["/does/not/exist", "empty", "a file"])
def test_what_is_no_run_is_refused(store, tmp_path, what):
    place = pathlib.Path(what) if what.startswith("/") else tmp_path / "from"
    if what == "empty":
        place.mkdir()
    if what == "a file":
        place.write_text("x")
    with pytest.raises(CheckpointError, match=str(place)) as refused:
        pretraining_setup(_config(store, init_from=str(place)), tmp_path / "run", print_line=lambda line: None)
    assert "\n" not in str(refused.value)


def test_parts_that_are_missing_or_unexpected_are_named_and_may_be_allowed(store, pretrained, tmp_path):
    def without_text(parts, record):
        for name in ("text_tower", "text_projection", "image_projection", "logit_scale"):
            del parts["params"][name]
        parts["params"]["head"] = {"kernel": np.ones((8, 1), np.float32), "bias": np.zeros(1, np.float32)}

    folder = _rewritten(pretrained, tmp_path / "w", without_text)
    with pytest.raises(CoverageError) as refused:
        _first_state(_config(store, init_from=str(folder)), tmp_path / "a")
    message = str(refused.value)
    for part in (
        "params/text_tower: missing, with its",
        "params/head: unexpected, with its 2 leaves",
        " leaves do not fit: ",
        "init_allow",
    ):
        assert part in message
    assert "params/logit_scale: missing" in message and len(message) < 900
    allowed = ("^params/(text_|image_projection|logit_scale|head)",)
    state, _, lines = _first_state(_config(store, init_from=str(folder), init_allow=allowed), tmp_path / "b")
    _same(state.params["backbone"], read_weights(folder).params["backbone"])
    _same(state.params["text_tower"], load_text_tower(tmp_path / "b" / "text").params)
    assert "head" not in state.params and any("left as they were" in line for line in lines)


def test_another_shape_is_refused_and_may_be_allowed(store, pretrained, tmp_path):
    changed = {"init_from": str(pretrained), "model.unet.channels": (4, 12)}
    with pytest.raises(CoverageError, match=r"params/backbone/\S+: \(.*8\) where \(.*12\) is needed"):
        _first_state(_config(store, **changed), tmp_path / "a")
    state, _, _ = _first_state(_config(store, **changed, init_allow=("backbone/", "^teacher/")), tmp_path / "b")
    assert state.params["backbone"]["bottom"]["unit_0"]["conv"]["kernel"].shape[-1] == 12
    _same(state.params["light_decoder"], read_weights(pretrained).params["light_decoder"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("strides", [1], r"model\.unet\.strides: \(2,\), and init_from \S+ has \(1,\)"),
        ("name", "swin_unetr", r"model\.name: 'unet', and init_from \S+ has 'swin_unetr'"),
    ],
)
def test_an_architecture_that_no_shape_shows_is_refused(store, pretrained, tmp_path, key, value, message):
    folder = _rewritten(pretrained, tmp_path / "w", lambda parts, record: record["architecture"].update({key: value}))
    with pytest.raises(ConfigError, match=message):
        pretraining_setup(_config(store, init_from=str(folder)), tmp_path / "run", print_line=lambda line: None)


def test_values_that_are_not_finite_are_refused(store, pretrained, tmp_path):
    def spoil(parts, record):
        parts["params"]["light_decoder"] = jax.tree.map(lambda leaf: leaf * np.nan, parts["params"]["light_decoder"])

    folder = _rewritten(pretrained, tmp_path / "w", spoil)
    with pytest.raises(CheckpointError, match=r"leaves have NaN or infinite values, such as params/light_decoder"):
        pretraining_setup(_config(store, init_from=str(folder)), tmp_path / "run", print_line=lambda line: None)


def test_the_words_are_numbered_as_the_weights_know_them(store, pretrained, tmp_path):
    """Another store has other captions, whose own tiny vocabulary would give words other numbers of the same table."""
    other = write_store(tmp_path / "other", count=12, shape=(16, 16, 16))
    captions = other.path / "captions.json"
    assert "glia in tissue" in captions.read_text()
    folder = tmp_path / "run"
    shutil.copytree(pretrained, tmp_path / "w")
    tokenizer = tmp_path / "w" / "text" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    words = content["model"]["vocab"]
    one, other_word = sorted(words)[-2:]
    words[one], words[other_word] = words[other_word], words[one]
    tokenizer.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"text/tokenizer\.json: contents differ .*init_from"):
        pretraining_setup(_config(other.path, init_from=str(tmp_path / "w")), folder, print_line=lambda line: None)
    seal_records(tmp_path / "w")
    config = _config(other.path, init_from=str(tmp_path / "w"))
    pretraining_setup(config, folder, print_line=lambda line: None)
    assert load_text_tower(folder / "text").tokenizer.get_vocab()[one] == words[one]
    # A text model named by the configuration must have the words of the weights.
    config = _config(other.path, init_from=str(tmp_path / "w"), **{"text.source": str(pretrained / "text")})
    with pytest.raises(ConfigError, match=r"text\.source: .*another vocabulary .*set it to '\S+/w/text'"):
        pretraining_setup(config, tmp_path / "third", print_line=lambda line: None)


def test_the_command_ends_with_one_line(store, tmp_path):
    overrides = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    said = finish(
        start(
            "pretrain",
            "--config",
            ROOT / "configs" / "pretrain_unet.py:tiny",
            "--workdir",
            tmp_path / "run",
            f"--config.data.stores=('{store}',)",
            *overrides,
            "--config.init_from=/does/not/exist",
        ),
        expect=2,
    )
    assert said.count("\n") == 1 and said.startswith("lsmfm: /does/not/exist: no run.json there"), said
    assert not (tmp_path / "run").exists()


def test_no_run_begins_in_a_store_or_in_place_of_a_file(store, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    for place, words in (
        (store, r"a patch store, and a run would write"),
        (tmp_path / "notes.txt", "a file, and a run"),
    ):
        before = sorted(store.iterdir())
        told = finish(start("pretrain", "--config", "pretrain_unet:tiny", "--workdir", place), expect=2)
        assert re.search(rf"lsmfm: {re.escape(str(place))}: {words}.*name another --workdir", told)
        assert sorted(store.iterdir()) == before


def test_a_store_without_counts_is_refused_by_the_scales_of_ratios(tmp_path):
    folder = tmp_path / "patches"
    rng = np.random.default_rng(0)
    for number in range(6):
        folder.mkdir(exist_ok=True)
        np.save(folder / f"scaled_patch_{number}_vol{number}_ch0.npy", rng.random((16, 16, 16)).astype(np.float32))
    finish(start("data", "ingest", "--layout", "flat", "--root", folder, "--out", tmp_path / "store"))
    changes = {"text.enabled": False, "data.scale": "local"}
    with pytest.raises(
        ConfigError, match=r"6 of 6 patches, such as .*scaled_patch_\d_vol\d_ch0\.npy .*data\.scale 'local'.*z_score"
    ):
        pretraining_setup(_config(tmp_path / "store", **changes), tmp_path / "run", print_line=lambda line: None)
    pretraining_setup(
        _config(tmp_path / "store", **changes | {"data.scale": "z_score"}),
        tmp_path / "other",
        print_line=lambda line: None,
    )
