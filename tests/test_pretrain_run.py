"""The whole job, as a user starts it: generate, ingest, pretrain, look; tiny variants of the real recipes."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from quick_compiling import quick_flags

TINY = ("--config", "configs/pretrain_unet.py:tiny")
ROOT = pathlib.Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


def _lsmfm(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess:
    """Runs the command in a process of its own, on one device, where compiling takes most of the time."""
    environment = {**os.environ, "XLA_FLAGS": quick_flags(), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "lsmfm_jax.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    _lsmfm("data", "phantom", "--out", folder / "p", "--count", 20, "--size", "32,32,32", "--seed", 3)
    captions = folder / "p" / "captions.json"
    _lsmfm("data", "ingest", "--layout", "selma", "--root", folder / "p", "--captions", captions, "--out", folder / "s")
    return folder / "s"


def _pretrain(recipe, store, workdir, *overrides, expect=0):
    return _lsmfm(
        "pretrain",
        "--config",
        f"configs/pretrain_{recipe}",
        "--workdir",
        workdir,
        f"--config.data.stores=('{store}',)",
        "--config.data.patch_size=(32, 32, 32)",
        "--config.train.batch_size=4",
        "--config.train.epochs=8",
        "--config.warmup_epochs=1",
        *overrides,
        expect=expect,
    )


def _metrics(workdir, kind):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def unet_run(store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "unet"
    return workdir, _pretrain("unet.py:tiny", store, workdir, "--config.data.input_size=(16, 16, 16)")


def test_pretraining_falls_and_leaves_what_it_promises(unet_run):
    workdir, done = unet_run
    validation = _metrics(workdir, "validation")
    assert validation[-1]["loss"] < validation[0]["loss"]
    assert validation[-1]["reconstruct"] < validation[0]["reconstruct"]
    for name in ("distill", "align", "contrast", "teacher_entropy", "image_to_text_top1"):
        assert np.isfinite(validation[-1][name])
    train = _metrics(workdir, "train")
    assert {"loss", "grad_norm", "patches_per_s", "teacher_information", "logit_scale"} <= train[-1].keys()
    for name in ("best", "checkpoints", "metrics.jsonl", "tensorboard", "split.json", "groups.txt", "report.html"):
        assert (workdir / name).exists(), name
    assert list((workdir / "pictures").glob("*.png"))
    page = (workdir / "report.html").read_text()
    assert page.count("<svg") > 6 and "data:image/png;base64," in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    assert str(workdir / "report.html") in done.stdout


def test_a_finished_run_is_not_trained_again(unet_run, store):
    workdir, _ = unet_run
    before = (workdir / "metrics.jsonl").read_bytes()
    done = _pretrain("unet.py:tiny", store, workdir, "--config.data.input_size=(16, 16, 16)")
    assert "resumed from" in done.stdout
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_configuration_is_refused_with_the_difference(unet_run, store):
    workdir, _ = unet_run
    done = _pretrain(
        "unet.py:tiny", store, workdir, "--config.data.input_size=(16, 16, 16)", "--config.seed=7", expect=2
    )
    assert "seed: 100 -> 7. Resume refused" in done.stderr


def test_text_trains_after_the_warm_up(unet_run):
    """REFERENCE, item 5: the released code never gave the unfrozen layers to its optimiser."""
    from lsmfm_jax.models.text_directory import load_text_tower
    from lsmfm_jax.train.weights import read_weights

    workdir, _ = unet_run
    start, end = load_text_tower(workdir / "text").params, read_weights(workdir).params["text_tower"]
    assert not np.array_equal(start["embeddings"]["word"], end["embeddings"]["word"])
    assert not np.array_equal(
        start["layer_1"]["attention"]["query"]["kernel"], end["layer_1"]["attention"]["query"]["kernel"]
    )
    np.testing.assert_array_equal(
        start["layer_0"]["attention"]["query"]["kernel"], end["layer_0"]["attention"]["query"]["kernel"]
    )


def test_a_whole_run_verifies_and_a_flipped_bit_is_named(unet_run, tmp_path):
    import shutil

    workdir = tmp_path / "copy"
    shutil.copytree(unet_run[0], workdir)
    assert "whole" in _lsmfm("verify", workdir).stdout
    victim = max(
        (path for path in (workdir / "best").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    damaged = bytearray(victim.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    victim.write_bytes(damaged)
    assert str(victim) in _lsmfm("verify", workdir, expect=1).stdout


def test_image_only_builds_no_text_tower(store, tmp_path):
    _pretrain(
        "unet.py:tiny_image_only",
        store,
        tmp_path / "run",
        "--config.data.input_size=(16, 16, 16)",
        "--config.train.epochs=1",
    )
    assert "text" not in (tmp_path / "run" / "groups.txt").read_text()
    assert "contrast" not in _metrics(tmp_path / "run", "validation")[-1]


def test_swin_unetr_pretrains_with_text(store, tmp_path):
    short = "--config.train.epochs=2", "--config.train.validate_every_epochs=1", "--config.warmup_epochs=0"
    # One block at each stage: a block takes seconds to compile, in each program that it is part of.
    _pretrain(
        "swin_unetr.py:tiny",
        store,
        tmp_path / "run",
        *short,
        "--config.train.pictures_every_epochs=0",
        "--config.model.swin_unetr.depths=(1,1,1,1)",
    )
    validation = _metrics(tmp_path / "run", "validation")
    assert validation[-1]["loss"] < validation[0]["loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", "configs/nosuch.py"), "configs/nosuch.py is not a file"),
        (TINY, "data.stores: (); name at least one patch store"),
        (
            ("--config", "configs/pretrain_unet.py:tiny", "--config.data.stores=('nosuch',)"),
            "nosuch is not a patch store",
        ),
        ((*TINY, "--config.train.epoch=1"), "did you mean train.epochs"),
        ((*TINY, "--config.train.batch_size=90000"), "train.batch_size: 90000 patches of 32 x 32 x 32 voxels"),
    ],
)
def test_mistakes_get_one_line_that_says_what_to_do(arguments, message, tmp_path):
    done = _lsmfm("pretrain", "--workdir", tmp_path / "run", *arguments, expect=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
