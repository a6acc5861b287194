"""Configurations are refused before any device work, by messages that say what to do."""

import pathlib
import subprocess
import sys

import pytest

from lsmfm_jax.config import ConfigError, defaults, flatten, schema, validate
from lsmfm_jax.config_files import differences, load_config

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "configs").glob("*.py"))


def _recipe(name: str = "pretrain_unet.py") -> str:
    return str(ROOT / "configs" / name)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_variant_of_every_recipe_is_valid(recipe):
    import importlib.util

    spec = importlib.util.spec_from_file_location(recipe.stem, recipe)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for variant in module.VARIANTS:
        config = load_config(f"{recipe}:{variant}")
        assert config.is_locked
    with pytest.raises(ConfigError, match=r"'nosuch' is unknown; allowed: "):
        load_config(f"{recipe}:nosuch")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.train.batchsize=8", r"train\.batchsize: no such key; did you mean train\.batch_size"),
        ("--config.nosuch.key=1", r"nosuch\.key: no such key"),
        ("--config.train.batch_size=many", r"train\.batch_size"),
        ("--config.train.batch_size=0", r"train\.batch_size: 0; at least 1"),
        ("--config.mask.ratio=1.5", r"mask\.ratio: 1\.5; at most 1"),
        ("--config.model.name=vit", r"model\.name: 'vit'; allowed: unet, swin_unetr"),
        ("--config.mask.block_sizes=(5,)", r"mask\.block_sizes: 5 does not divide"),
        ("--config.train.accumulate_steps=3", r"accumulate_steps: 3 does not divide train\.batch_size 16"),
        ("--config.data.input_size=(60, 64, 64)", r"data\.input_size: .*multiple of 8"),
        ("--config.data.input_size=(64, 64)", r"three numbers"),
        ("--config.model.unet.strides=(2, 2)", r"model\.unet\.strides: \(2, 2\); one less than"),
        ("--config.loss.contrast_group=5", r"loss\.contrast_group: 5 does not divide"),
        ("--config.data.upper_percentile=98", r"upper_percentile: '98'; allowed: .*99"),
        ("--config.mesh.fsdp=0", r"mesh"),
        ("--config.seed", r"write --config\.key=value"),
        ("--confg.seed=1", r"not understood; write --config\.key=value; did you mean --config\.seed"),
    ],
)
def test_wrong_overrides_name_the_key_and_what_is_allowed(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(_recipe(), [override])


def test_overrides_change_what_they_name_and_nothing_else():
    plain = load_config(_recipe())
    changed = load_config(_recipe(), ["--config.train.batch_size=8", "--config.data.stores=('a', 'b')"])
    assert changed.data.stores == ("a", "b")
    assert differences(plain.to_dict(), changed.to_dict()) == [
        "data.stores: () -> ('a', 'b')",
        "train.batch_size: 16 -> 8",
    ]


def test_a_locked_configuration_refuses_a_new_key():
    with pytest.raises(AttributeError):
        defaults("pretrain").train.new_key = 1


def test_wrong_type_is_refused():
    config = defaults("pretrain")
    with config.train.ignore_type():
        config.train.batch_size = "8"
    with pytest.raises(ConfigError, match=r"train\.batch_size: '8' is str; a int is needed"):
        validate(config)


def test_missing_recipe_names_the_file():
    with pytest.raises(ConfigError, match=r"nosuch\.py is not a file"):
        load_config("nosuch.py")


def test_every_key_says_what_it_means():
    for path, key in flatten(schema("pretrain")):
        assert len(key.meaning) > 7, path


def test_released_numbers():
    """The paper's released configurations, as REFERENCE gives them."""
    unet = load_config(_recipe())
    assert unet.model.unet.channels == (32, 64, 128, 256, 512)
    assert (unet.model.out_channels, unet.optim.learning_rate, unet.teacher.decay) == (128, 1e-4, 0.996)
    assert tuple(unet.loss[name] for name in ("distill", "reconstruct", "align", "contrast")) == (
        0.29,
        0.2,
        0.06,
        0.36,
    )
    swin = load_config(_recipe("pretrain_swin_unetr.py"))
    assert (swin.model.out_channels, swin.model.swin_unetr.feature_size, swin.teacher.decay) == (
        512,
        36,
        0.994,
    )
    assert (swin.loss.student_temperature, swin.loss.teacher_temperature, swin.warmup_epochs) == (
        0.025,
        0.1,
        30,
    )
    faithful = load_config(_recipe("pretrain_unet.py") + ":faithful")
    assert faithful.mask.block_sizes == (8, 16)
    assert faithful.loss.contrast_group * 2 * faithful.train.accumulate_steps == faithful.train.batch_size


def test_the_schema_does_not_import_jax():
    code = "import lsmfm_jax.config, lsmfm_jax.config_files, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
