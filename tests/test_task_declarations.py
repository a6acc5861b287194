"""What a change costs: a finetuning task is one file, and a line in each dictionary (keys, task, writer)."""

import json

import pytest
from labelled_toy import write_patches
from toy_backbone import TOY
from toy_task import TOY_KEYS, TOY_TASK, TOY_WRITER

from lsmfm_jax.cli import main
from lsmfm_jax.config import ConfigError, defaults
from lsmfm_jax.config.schema import ENCODER_TASKS, TASKS
from lsmfm_jax.models import BACKBONES
from lsmfm_jax.predict.brain_settings import images_of
from lsmfm_jax.predict.inputs import PredictionError, find_cases
from lsmfm_jax.predict.run import WRITERS, predict
from lsmfm_jax.tasks import SETUPS
from lsmfm_jax.tasks.finetune_setup import finetuning_setup
from lsmfm_jax.tasks.finetune_tasks import FINETUNING, finetune_task

RECIPE = """
from lsmfm_jax.config import defaults


def get_config(variant=""):
    config = defaults("toy")
    config.model.name, config.model.dtype, config.model.out_channels = "toy", "float32", 4
    config.data.patch_size, config.data.crops_per_patch, config.data.validation_frac = (14, 14, 14), 4, 0.25
    config.train.batch_size, config.train.epochs, config.train.tensorboard = 8, 1, False
    return config
"""


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", TOY)
    monkeypatch.setitem(TASKS, "toy", TOY_KEYS)
    monkeypatch.setitem(FINETUNING, "toy", TOY_TASK)
    # Made of FINETUNING when the package is imported.
    monkeypatch.setitem(SETUPS, "toy", finetuning_setup)
    monkeypatch.setitem(WRITERS, "toy", TOY_WRITER)


def test_a_toy_task_trains_on_a_toy_backbone_and_predicts(toy, tmp_path, capsys):
    patches = write_patches(tmp_path / "patches", count=4)
    (tmp_path / "toy.py").write_text(RECIPE)
    run = tmp_path / "run"
    command = ["--config", str(tmp_path / "toy.py"), "--workdir", str(run), f"--config.data.folder={patches}"]
    assert main(["pretrain", *command]) == 2
    assert "'toy'" in capsys.readouterr().err
    assert main(["finetune", *command, "--config.loss.power=5"]) == 2
    assert "loss.power: 5" in capsys.readouterr().err
    assert main(["finetune", *command, "--config.loss.power=3"]) == 0
    printed = capsys.readouterr().out
    assert "toy: 3 patches" in printed and "foreground" not in printed and "classes" not in printed
    record = json.loads((run / "run.json").read_text())
    assert record["task"] == "toy" and record["head"] == {"kind": "dense", "outputs": 1} and "labels" not in record
    validations = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss"} <= next(line.keys() for line in validations if line["kind"] == "validation")
    assert [path.read_text() for path in (run / "pictures").glob("*.png")] == ["toy"]

    assert main(["predict", "--checkpoint", str(run), str(patches), "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.txt"))) == 4
    WRITERS.pop("toy")
    with pytest.raises(PredictionError, match=r"'toy' writes no files; those of segment, classify, deblur, inpaint do"):
        predict(run, [patches], tmp_path / "again")


def test_an_unknown_task_is_refused_by_name_and_taken_for_none(tmp_path):
    with pytest.raises(ConfigError, match=r"'nosuch' is no finetuning task; allowed: segment, classify, deblur, in"):
        finetune_task("nosuch")
    with pytest.raises(ConfigError, match=r"'nosuch' is no finetuning task"):
        find_cases([tmp_path], task="nosuch")
    config = defaults("pretrain")
    with pytest.raises(ConfigError, match=r"'pretrain' is no finetuning task"):
        finetuning_setup(config, tmp_path)
    with pytest.raises(PredictionError, match=r"task 'nosuch' gives no map of a volume"):
        images_of("nosuch", ("mask",), "uint16")


def test_declarations_agree_with_each_other():
    assert set(TASKS) == {"pretrain"} | set(FINETUNING) == set(SETUPS)
    assert set(FINETUNING) == set(WRITERS)
    assert {name for name, task in FINETUNING.items() if not task.uses_decoder} == set(ENCODER_TASKS)
