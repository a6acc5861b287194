"""Model cards: what the run says is in them, what it does not say is said to be missing, and no file is lost."""

import json
import shutil

import numpy as np
import pytest
from labelled_toy import write_patches

from lsmfm_jax.cli import main
from lsmfm_jax.config import load_config
from lsmfm_jax.config.load import as_json
from lsmfm_jax.files import replace_json
from lsmfm_jax.publish.card import card
from lsmfm_jax.publish.facts import NOT_STATED, UNKNOWN
from lsmfm_jax.scale import Scale
from lsmfm_jax.tasks.finetune_patches import read_patches
from lsmfm_jax.train.records import versions
from lsmfm_jax.train.tracking import Tracker
from lsmfm_jax.train.weights import write_weights

ARCHITECTURE = {"name": "unet", "out_channels": 6, "channels": [4, 8], "strides": [2]}
PARAMS = {"backbone": {"a": np.zeros((10, 100), np.float32), "b": np.zeros(234, np.float32)}, "head": {"c": np.ones(6)}}


def write_run(folder, record, **facts):
    """Weights as of a run's first step, beside whatever other records there are."""
    record = {"architecture": ARCHITECTURE, **record}
    write_weights(folder, record=record, params=PARAMS, batch_stats={})
    for name, value in facts.items():
        replace_json(folder / f"{name}.json", value)
    return folder


def rows_of(text):
    """Name to value of the card's tables of two columns."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in cells if len(row) == 2}


@pytest.fixture
def segmentation(tmp_path):
    patches = write_patches(tmp_path / "patches", count=5, size=16)
    (patches / "LICENSE.txt").write_text("\nCC BY 4.0\nmore\n")
    overrides = [f"--config.data.folder={patches}", "--config.data.patch_size=(16,16,16)", "--config.seed=7"]
    config = load_config("segment_unet:tiny", overrides)
    run = tmp_path / "run"
    read = read_patches(config, run, print_line=lambda line: None)
    tracker = Tracker(run, start_step=0, total_steps=3, tensorboard=False)
    for step, dice in ((0, 0.25), (3, 0.75)):
        tracker.metrics(step, "validation", {"dice": dice, "loss": 0.5 - step / 10})
    tracker.close()
    scale = Scale("local", sigma_um=25.0)
    record = {
        "task": "segment",
        "scaling": scale.record(),
        "patch_size": [16, 16, 16],
        "init_from": "",
        "patches": {"train": [p.name for p in read.train], "validation": [p.name for p in read.validation]},
        "labels": {"foreground": [2], "background": [], "ignore": [0]},
        "versions": versions(),
    }
    methods = {
        "this run": {"dice": 0.25, "run_is_ahead_by": 0.0, "interval_95": None},
        "otsu": {"dice": 0.125, "run_is_ahead_by": 0.125, "interval_95": [0.05, 0.2]},
        "a|b": {"dice": 0.5, "run_is_ahead_by": -0.25, "interval_95": None},
    }
    write_run(run, record, config=as_json(config), comparison={"methods": methods, "verdict": "ahead of otsu"})
    return run, patches, read


def test_the_card_says_what_the_run_says(segmentation):
    run, patches, read = segmentation
    text = card(run)
    rows = rows_of(text)
    assert rows["parameters"] == "1,240 (backbone 1,234, head 6)"
    assert rows["architecture"] == "unet" and rows["channels"] == "4, 8" and rows["weights"] == "step 0"
    assert rows["folder"] == str(patches) and rows["started from"] == "scratch"
    volumes = {patch.volume for patch in read.train}
    assert rows["patches, train"].startswith(f"{len(read.train)} of {len(volumes)} volumes (")
    assert all(volume in rows["patches, train"] for volume in volumes)
    assert rows["licence of the data"] == f"{patches / 'LICENSE.txt'}: CC BY 4.0"
    assert "sigma 25 µm (else 12 voxels)" in rows["intensities"]
    assert rows["label values"] == "foreground 2, ignore 0" and rows["seed"] == "7"
    # Of the step that the weights are from, not the best or the last line.
    assert rows["dice"] == "0.25" and "at step 0" in text
    assert "| otsu | 0.125 | 0.125 | [0.050, 0.200] |" in text
    assert "| a\\|b | 0.5 | -0.25 | too few volumes for one |" in text
    assert "Verdict of the run: ahead of otsu." in text
    assert f"jax {versions()['jax']}" in rows["trained with"]
    assert "import lsmfm_jax\n" in text and f"lsmfm_jax.load({str(run)!r})" in text and ").mask\n" in text
    assert "on a new volume it may be worse" not in text


def test_what_a_run_does_not_say_is_not_made_up(tmp_path):
    run = write_run(tmp_path / "calibrated", {"task": "segment", "logit_shift": -0.5, "calibrated_on": ["b_vol9"]})
    text = card(run)
    rows = rows_of(text)
    missing = ("weights", "started from", "patches, train", "patches, validation", "intensities", "seed", "loss")
    assert {name: rows[name] for name in (*missing, "trained with")} == dict.fromkeys(
        (*missing, "trained with"), UNKNOWN
    )
    assert rows["folder"] == UNKNOWN and rows["licence of the data"] == NOT_STATED
    assert rows["calibrated"] == "-0.500 added to every logit, by b_vol9"
    assert f"Validation of these weights: {UNKNOWN}." in text
    assert f"patches that it did not train on is {UNKNOWN}" in text
    for invented in ("None", "nan", "{", "lsmfm calibrate"):
        assert invented not in text


def test_stores_captions_and_imported_weights(tmp_path):
    patches = write_patches(tmp_path / "patches", count=4, size=16)
    store = tmp_path / "store"
    size = ["--voxel-size-um", "4,2,2"]
    ingest = ["data", "ingest", "--layout", "flat", "--root", str(patches), "--out", str(store), *size]
    assert main(ingest) == 0
    record = {
        "task": "pretrain",
        "stores": [str(store), str(tmp_path / "gone")],
        "patches": {"train": 3, "validation": 1},
        "caption_keys": ["dense", "sparse"],
    }
    split = {"train": [{"volume": "a"}, {"volume": "a"}, {"volume": "b"}], "validation": [{"volume": "b"}]}
    config = as_json(load_config("pretrain_unet:tiny"))
    rows = rows_of(text := card(write_run(tmp_path / "run", record, config=config, split=split)))
    assert rows["stores"] == f"{store}, {tmp_path / 'gone'}" and rows["resized to, voxels"] == "32, 32, 32"
    assert rows["captions"] == "2 keys (dense, sparse); text model tiny"
    assert rows["voxel size, Z × Y × X"] == "4 × 2 × 2 µm (4 patches)"
    assert rows["patches, train"] == "3 of 2 volumes (a 2 patches, b 1)"
    assert "on a new volume it may be worse" in text and "model.embed(volume" in text
    imported = {"task": "backbone", "imported": {"file": "net.pt", "sha256": "ab12", "layout": "monai"}}
    text = card(write_run(tmp_path / "imported", imported))
    assert rows_of(text)["weights"] == "`net.pt`, SHA-256 ab12, converted"
    assert f"--config.init_from={tmp_path / 'imported'}" in text and "lsmfm_jax.load" not in text


def test_the_command_prints_or_writes_and_replaces_only_cards(segmentation, tmp_path, capsys):
    run, _, _ = segmentation
    out = tmp_path / "CARD.md"
    for _ in range(2):
        assert main(["card", str(run), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["card", str(run)]) == 0
    assert capsys.readouterr().out.strip() == out.read_text().strip() == card(run).strip()
    out.write_text("my notes")
    assert main(["card", str(run), "--out", str(out)]) == 2
    assert "`lsmfm card` did not write is there already" in capsys.readouterr().err and out.read_text() == "my notes"
    assert main(["card", str(tmp_path)]) == 2
    assert "no run.json there" in capsys.readouterr().err
    shutil.rmtree(run / "best")
    assert main(["card", str(run)]) == 2
    assert "no whole checkpoint there" in capsys.readouterr().err
    (run / "run.json").write_text(json.dumps({"task": "segment"}))
    assert main(["card", str(run)]) == 2
    assert "damaged: it names no architecture" in capsys.readouterr().err
