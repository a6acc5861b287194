"""Configurations are refused before any device work, by messages that say what to do."""

import pathlib
import re
import subprocess
import sys

import pytest

from lsmfm_jax.config import ConfigError, check_step_count, defaults, flatten, schema, validate
from lsmfm_jax.config.load import as_json, differences, load_config

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
        ("--config.nosuch.key=1", r"nosuch\.key: no such key; allowed here: augment\., data\., [^ ]"),
        ("--config.data.workers=100000", r"data\.workers: 100000; at most 256"),
        ("--config.train.batch_size=many", r"train\.batch_size"),
        ("--config.train.batch_size=0", r"train\.batch_size: 0; at least 1"),
        ("--config.mask.ratio=1.5", r"mask\.ratio: 1\.5; at most 1"),
        ("--config.model.name=vit", r"model\.name: 'vit'; allowed: unet, swin_unetr"),
        ("--config.model.dtype=float64", r"model\.dtype: 'float64'; allowed: float32, bfloat16"),
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


TASK_NAMES = ("pretrain", "segment", "classify", "deblur", "inpaint")
USELESS = (float("nan"), float("inf"), -float("inf"), 10**30, -(10**30), 1e300, 10**300)


def _with(task, path, value):
    config = defaults(task)
    *parents, name = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    if type(value) is not tuple and type(place[name]) is tuple:
        value = (value,) * max(1, len(place[name]))
    with place.unlocked(), place.ignore_type():
        place[name] = value
    return config


@pytest.mark.parametrize("task", TASK_NAMES)
def test_no_number_may_be_nan_or_beyond_all_use(task):
    checked = 0
    for path, key in flatten(schema(task)):
        sample = (*key.default, key.of())[0] if type(key.default) is tuple else key.default
        if type(sample) not in (int, float):
            continue
        for value in USELESS:
            with pytest.raises(ConfigError, match=re.escape(path)) as refused:
                validate(_with(task, path, value))
            assert "\n" not in str(refused.value) and len(str(refused.value)) < 300
        checked += 1
    assert checked > 40


@pytest.mark.parametrize("task", TASK_NAMES)
def test_a_tuple_may_be_empty_only_where_it_is_by_default(task):
    for path, key in flatten(schema(task)):
        if type(key.default) is tuple and key.default:
            with pytest.raises(ConfigError, match=rf"^{path}: "):
                validate(_with(task, path, ()))
            if key.length:
                with pytest.raises(ConfigError, match=r"numbers.* are needed"):
                    validate(_with(task, path, (*key.default, key.default[0])))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optim.learning_rate=nan", r"optim\.learning_rate: nan is not a number; from 0 to 100"),
        ("--config.optim.learning_rate=1e999", r"optim\.learning_rate: inf; at most 100"),
        ("--config.seed=123456789012345678901234567890", r"seed: 123456789012345678901234567890; at most 4294967295"),
        ("--config.optim.b2=1.0", r"optim\.b2: 1\.0; at most 0\.999999"),
        ("--config.mask.ratio=0.0", r"mask\.ratio: 0\.0; at least 1e-06"),
        ("--config.mask.block_sizes=()", r"mask\.block_sizes: \(\) is empty"),
        ("--config.data.stores=(1,)", r"data\.stores: 1 in \(1,\); allowed: values like a tuple of str"),
        ("--config.augment.smooth_sigma=(2.0, 1.0)", r"augment\.smooth_sigma: \(2\.0, 1\.0\); the smaller"),
        ("--config.init_allow=('(head',)", r"init_allow: '\(head' is no regular expression"),
    ],
)
def test_values_that_no_run_can_use_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(_recipe(), [override])


def test_attention_heads_that_do_not_divide_a_stage_are_refused():
    with pytest.raises(ConfigError, match=r"num_heads: \(3, 6, 12, 25\); 25 does not divide 288"):
        load_config(_recipe("pretrain_swin_unetr.py"), ["--config.model.swin_unetr.num_heads=(3, 6, 12, 25)"])


def test_more_steps_than_can_be_counted_are_refused():
    check_step_count("train.epochs", 10**6, 2000)
    with pytest.raises(ConfigError, match=r"train\.epochs: 1000000 epochs of 3000 steps .*at most 715827"):
        check_step_count("train.epochs", 10**6, 3000)


def test_a_run_of_an_earlier_release_lacks_later_keys_and_has_their_defaults():
    config = load_config(_recipe())
    earlier = as_json(config)
    del earlier["mask"]["rounding"], earlier["train"]["spike_factor"]
    assert differences(earlier, as_json(config)) == []
    earlier["train"]["batch_size"] = 8
    assert differences(earlier, as_json(config)) == ["train.batch_size: 8 -> 16"]


def test_overrides_change_what_they_name_and_nothing_else():
    plain = load_config(_recipe())
    changed = load_config(_recipe(), ["--config.train.batch_size=8", "--config.data.stores=('a', 'b')"])
    assert changed.data.stores == ("a", "b")
    assert differences(plain.to_dict(), changed.to_dict()) == [
        "data.stores: () -> ('a', 'b')",
        "train.batch_size: 16 -> 8",
    ]


def test_the_last_override_of_a_key_counts():
    """A makefile or a script gives some, and the person who calls it others."""
    given = ["--config.data.stores=('a',)", "--config.train.batch_size=4", "--config.data.stores=('b',)"]
    config = load_config(_recipe(), [*given, "--config.train.batch_size=2"])
    assert config.data.stores == ("b",) and config.train.batch_size == 2


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
    code = "import lsmfm_jax.config, lsmfm_jax.config.load, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
