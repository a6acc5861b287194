"""The ResNet-18 as a classifier from scratch: trained, predicted with and exported like the other networks."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from labelled_toy import write_patches

from lsmfm_jax.cli import main
from lsmfm_jax.config import ConfigError, defaults, validate
from lsmfm_jax.convert import resnet as convert
from lsmfm_jax.convert.torch_files import read_torch_file
from lsmfm_jax.models.resnet import ResNet18
from lsmfm_jax.train.weights import read_weights
from lsmfm_jax.volumes.read import read_single

WIDTHS = (4, 4, 6, 8)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("labelled"), count=6)


@pytest.fixture(scope="module")
def run(patches, tmp_path_factory):
    """A run of two epochs from the command line."""
    folder = tmp_path_factory.mktemp("resnet") / "run"
    overrides = {
        "data.folder": str(patches),
        "data.patch_size": (16, 16, 16),
        "data.validation_frac": 0.34,
        "model.resnet18.widths": WIDTHS,
        "train.batch_size": 8,
        "train.epochs": 2,
        "train.pictures_every_epochs": 0,
        "train.pictures_count": 1,
        "train.tensorboard": False,
        "augment.probability": 0.0,
    }
    arguments = ["finetune", "--config", "configs/classify_resnet18.py:tiny", "--workdir", str(folder)]
    assert main([*arguments, *(f"--config.{key}={value}" for key, value in overrides.items())]) == 0
    return folder


def test_everything_trains_and_is_recorded(run):
    record = json.loads((run / "run.json").read_text())
    assert record["architecture"] == {"name": "resnet18", "widths": list(WIDTHS)}
    table = (run / "groups.txt").read_text()
    weights = read_weights(run)
    count = sum(leaf.size for leaf in jax.tree.leaves(weights.params["backbone"]))
    (encoder,) = (line for line in table.splitlines() if line.startswith("encoder"))
    assert encoder.endswith(f"{count:,}") and "step 0" in encoder
    # The running statistics have left their start: batch norm was trained.
    norm = weights.batch_stats["backbone"]["stage_3_block_1"]["norm_1"]
    assert np.abs(norm["mean"]).min() > 0 and not np.allclose(norm["var"], 1.0)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any(line["kind"] == "validation" and 0 <= line["accuracy"] <= 1 for line in lines)


def test_predictions_are_those_of_the_whole_network(run, patches, tmp_path):
    images = sorted(patches.glob("*_ch0.nii.gz"))[:2]
    arguments = ["predict", "--checkpoint", str(run), *map(str, images), "--window", "20,20,20"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert main(["convert", "export", str(run), "--out", str(tmp_path / "net.pt")]) == 0
    # Through the exported file, whose classifier is the run's head.
    variables = jax.tree.map(jnp.asarray, convert.from_torch(read_torch_file(tmp_path / "net.pt").state))
    network = ResNet18(2, widths=WIDTHS)
    for row, image in zip(rows, images, strict=True):
        volume, _ = read_single(image)
        low, high = np.percentile(volume, (1, 99))
        scaled = np.clip((volume.astype(np.float32) - low) / (high - low), 0, 1)[None, ..., None]
        logits = jax.jit(lambda x: network.apply(variables, x, train=False))(jnp.asarray(scaled, jnp.float32))
        ours = [float(row[f"probability_{name}"]) for name in ("dense", "sparse")]
        np.testing.assert_allclose(ours, jax.nn.softmax(logits)[0], atol=1e-4)


def test_it_classifies_only_and_keeps_its_shape(run, patches, tmp_path, capsys):
    for task in ("pretrain", "segment", "deblur"):
        config = defaults(task)
        config.model.name = "resnet18"
        with pytest.raises(ConfigError, match=r"model\.name: 'resnet18'; allowed: unet, swin_unetr"):
            validate(config)
    config = defaults("classify")
    config.model.name, config.model.resnet18.widths = "resnet18", (4, 8)
    with pytest.raises(ConfigError, match=r"model\.resnet18\.widths: \(4, 8\); four numbers are needed"):
        validate(config)
    arguments = ["--workdir", str(tmp_path / "run"), f"--config.data.folder={patches}", f"--config.init_from={run}"]
    assert main(["finetune", "--config", "configs/classify_unet.py:tiny", *arguments]) == 2
    assert "holds a resnet18, and model.name is 'unet'" in capsys.readouterr().err
