"""What a change costs: a backbone is one file with its declaration, and one line in a dictionary."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from labelled_toy import write_patches
from toy_backbone import TOY

from lsmfm_jax.cli import main
from lsmfm_jax.config import ConfigError, defaults, flatten, schema, validate
from lsmfm_jax.models import BACKBONES, build_backbone, configured_architecture
from lsmfm_jax.train.optim import leaf_path
from lsmfm_jax.train.sharding import split_of
from lsmfm_jax.train.weights import read_weights

SMALL = {
    "unet": {"channels": (4, 6, 8), "strides": (2, 2), "out_channels": 5},
    "swin_unetr": {"feature_size": 12, "depths": (1, 1, 1, 1), "window": 2, "out_channels": 5},
    "resnet18": {"widths": (2, 2, 2, 2)},
}


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", TOY)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("patches"), count=4)


def _train(task: str, patches, folder, **changes) -> int:
    values = {
        "model.name": "toy",
        "model.out_channels": 6,
        "data.folder": str(patches),
        "data.patch_size": (14, 14, 14),
        "data.validation_frac": 0.5 if task == "classify" else 0.25,
        "data.crops_per_patch": 4,
        "train.batch_size": 8,
        "train.epochs": 1,
        "train.pictures_count": 1,
        "train.tensorboard": False,
        **changes,
    }
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    return main(["finetune", "--config", f"{task}_unet:tiny", "--workdir", str(folder), *overrides])


def test_a_toy_backbone_is_finetuned_frozen_drawn_anew_and_predicts(toy, patches, tmp_path, capsys):
    assert _train("segment", patches, tmp_path / "a", **{"model.toy.width": 5}) == 0
    first = read_weights(tmp_path / "a")
    assert first.architecture == {"name": "toy", "out_channels": 6, "width": 5}
    table = (tmp_path / "a" / "groups.txt").read_text()
    assert re.search(r"^encoder .* 2 +140$", table, re.M) and re.search(r"^decoder .* 2 +246$", table, re.M)

    start = {"init_from": str(tmp_path / "a"), "reinit_top": True, "encoder.frozen": True, "model.toy.width": 2}
    assert _train("segment", patches, tmp_path / "b", **start) == 0
    assert "2 parameters of ^grow/ are drawn anew" in capsys.readouterr().out
    second = read_weights(tmp_path / "b")
    kernels = [weights.params["backbone"]["shrink"]["kernel"] for weights in (first, second)]
    np.testing.assert_array_equal(*kernels)
    assert kernels[0].shape == (3, 3, 3, 1, 5), "the architecture is that of init_from"
    tops = [weights.params["backbone"]["grow"]["kernel"] for weights in (first, second)]
    assert not np.allclose(*tops)

    out = tmp_path / "out"
    assert main(["predict", "--checkpoint", str(tmp_path / "b"), str(patches), "--out", str(out)]) == 0
    assert len(list(out.glob("*_mask.nii.gz"))) == 4
    command = ["predict", "--checkpoint", str(tmp_path / "b"), str(patches), "--out", str(tmp_path / "odd")]
    assert main([*command, "--window", "13,14,14"]) == 2
    assert "the toy of this run takes three multiples of 2" in capsys.readouterr().err


def test_a_toy_backbone_classifies(toy, patches, tmp_path):
    assert _train("classify", patches, tmp_path / "run") == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["architecture"]["name"] == "toy" and record["classes"] == ["dense", "sparse"]


def test_a_toy_backbone_has_keys_of_its_own_and_they_are_checked(toy):
    for task in ("pretrain", "segment", "classify", "deblur", "inpaint"):
        config = defaults(task)
        assert config.model.toy.width == 3
        config.model.name = "toy"
        validate(config)
        config.model.toy.width = 13
        with pytest.raises(ConfigError, match=r"model\.toy\.width: 13; any other number is needed"):
            validate(config)
        config.model.toy.width = 0
        with pytest.raises(ConfigError, match=r"model\.toy\.width: 0; at least 1"):
            validate(config)
    config = defaults("segment")
    config.model.name, config.data.patch_size = "toy", (16, 15, 16)
    with pytest.raises(ConfigError, match=r"patch_size: \(16, 15, 16\); each must be a multiple of 2, the toy's"):
        validate(config)


def test_without_a_decoder_it_is_offered_to_classification_alone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", dataclasses.replace(TOY, dense=False, top=None))
    assert "toy" in dict(flatten(schema("classify")))["model.name"].choices
    for task in ("pretrain", "segment", "deblur", "inpaint"):
        assert "toy" not in dict(flatten(schema(task)))["model.name"].choices
        assert "model.toy.width" not in dict(flatten(schema(task)))
    config = defaults("classify")
    config.model.name = "toy"
    assert configured_architecture(config.model.to_dict()) == {"name": "toy", "width": 3}


def test_a_declared_rule_splits_what_the_general_ones_do_not_cover(monkeypatch):
    path, shape = "params/backbone/memory_bank", (4096, 60)
    with pytest.raises(ValueError, match="no rule says how it is split"):
        split_of(path, shape, 8)
    declared = dataclasses.replace(TOY, split_rules=((r"/memory_bank$", (-1, -2)),))
    monkeypatch.setitem(BACKBONES, "toy", declared)
    assert tuple(split_of(path, shape, 8)) == ("fsdp", None)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_declarations_fit_their_modules(name):
    """Keys are attributes with the same defaults, patterns find parameters, and the divisor is the least that works."""
    assert SMALL.keys() == BACKBONES.keys()
    declared = BACKBONES[name]
    plain = declared.build()
    for key, entry in declared.schema.items():
        assert getattr(plain, key) == entry.default, key
    assert hasattr(plain, "out_channels") == declared.dense

    module = build_backbone(name, **SMALL[name])
    architecture = {"name": name, **{key: getattr(module, key) for key in declared.schema}}
    factor, reason = declared.divisor(architecture)
    side = max(factor, 8)

    def shapes(size):
        call = lambda key: module.init(key, jnp.zeros((1, size, side, side, 1)), train=False, method="trunk")  # noqa: E731
        return jax.eval_shape(call, jax.random.key(0))["params"]

    leaves = {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes(side))}
    paths = list(leaves)
    for pattern in filter(None, (declared.encoder, declared.deepest, declared.bottleneck, declared.top)):
        found = [path for path in paths if re.search(pattern, path)]
        assert 0 < len(found) < len(paths) + (not declared.dense), pattern
    if declared.low_rank is not None:
        kernels = [path for path in paths if re.search(declared.low_rank, path)]
        assert kernels and all(len(leaves[path].shape) == 2 for path in kernels)
        encoder = declared.encoder_pattern(with_bottleneck=False, deepest_only=True)
        assert all(re.search(encoder, path) for path in kernels)
    if factor > 1:
        assert reason
        with pytest.raises(Exception, match=r"multiple|divisible"):
            shapes(side + factor // 2)


def test_configurations_and_declarations_import_no_jax():
    program = (
        "import sys, lsmfm_jax.models\n"
        "from lsmfm_jax.config import load_config\n"
        "load_config('classify_resnet18:tiny'); load_config('pretrain_swin_unetr')\n"
        "print(sorted({'jax', 'flax', 'jaxtyping', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
