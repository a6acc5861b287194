"""`lsmfm package` for the Hugging Face hub: the run's own predictions, a card that the hub reads, no paths."""

import json
import pathlib
import shlex

import jax
import numpy as np
import pytest
from brain_runs import blobs, make_run
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id
from tiny_pretrained import make_run as make_pretrained
from toy_swin import SWIN

import lsmfm_jax
from lsmfm_jax.cli import main
from lsmfm_jax.files import replace_json
from lsmfm_jax.publish.front_matter import PIPELINE_TAGS, front_matter
from lsmfm_jax.publish.stated import NOTHING_STATED, Stated, without_folders
from lsmfm_jax.train.records import seal_records
from lsmfm_jax.train.tracking import Tracker
from lsmfm_jax.train.weights import read_weights, write_weights
from lsmfm_jax.verify import verify

VOLUME = blobs((20, 24, 28))
VOXELS = {"bias": 0.0, "weights": [3.0, -2.0, 4.0, 0.5], "network_weight": 0.25, "sigmas": [1.0, 2.0, 4.0]}


def recorded(run: pathlib.Path, **facts) -> pathlib.Path:
    """A run with more in its record."""
    replace_json(run / "run.json", json.loads((run / "run.json").read_text()) | facts)
    seal_records(run)
    return run


def package(run, out, *more) -> pathlib.Path:
    assert main(["package", str(run), "--out", str(out), *more]) == 0
    return out


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main(["package", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def as_downloaded(folder: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    """The folder as the hub's cache has it: links to files elsewhere, and no empty folder."""
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = place / "blobs" / str(number)
        link = place / "snapshot" / file.relative_to(folder)
        for one in (blob, link):
            one.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(file.read_bytes())
        link.symlink_to(blob)
    return place / "snapshot"


@pytest.fixture
def run(tmp_path):
    """A segmentation run with everything that prediction adds to a network, its data in a folder of this machine."""
    made = make_run(tmp_path / "secret" / "cells", "segment")
    scaling = {"name": "local", "sigma_voxels": 6.0, "sigma_um": 0.0, "offset_counts": 10.0, "fixed_level": 6.5}
    facts = {"voxel_classifier": VOXELS, "network_cut_off": {"logit": 0.25}, "logit_shift": -0.5, "scaling": scaling}
    data = tmp_path / "secret" / "annotated"
    data.mkdir()
    (data / "LICENSE").write_text("CC BY 4.0")
    recorded(made, **facts, calibrated_on=["b_vol9"], init_from=str(tmp_path / "secret" / "pretrained"))
    replace_json(made / "config.json", {"data": {"folder": str(data)}, "seed": 3})
    tracker = Tracker(made, start_step=0, total_steps=3, tensorboard=False)
    tracker.metrics(0, "validation", {"dice": 0.625, "loss": 0.5, "recall": float("nan")})
    tracker.close()
    return made


def test_the_folder_predicts_as_the_run_wherever_it_lies(run, tmp_path):
    out = package(run, tmp_path / "out" / "cells-2026", "--license", "CC-BY-4.0")
    expected = lsmfm_jax.load(run).predict(VOLUME)
    assert 0 < expected.mask.mean() < 1
    for folder in (out, as_downloaded(out, tmp_path / "cache")):
        found = lsmfm_jax.load(folder).predict(VOLUME)
        np.testing.assert_array_equal(found.probability, expected.probability)
        assert found.levels.facts() == expected.levels.facts()
        assert verify(folder) == []
    record = json.loads((out / "run.json").read_text())
    for key in ("voxel_classifier", "network_cut_off", "logit_shift", "scaling", "calibrated_on"):
        assert record[key] == json.loads((run / "run.json").read_text())[key]
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "best", "run.json", "seal.json"]


def test_no_path_of_this_machine_goes_along(run, tmp_path):
    out = package(run, tmp_path / "out" / "cells-2026")
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 5
    for file in files:
        assert str(tmp_path).encode() not in file.read_bytes(), file
    text = (out / "README.md").read_text()
    assert "| folder | annotated |" in text and "annotated/LICENSE: CC BY 4.0" in text
    assert "| started from | pretrained |" in text
    assert "lsmfm_jax.load('cells-2026')" in text and "--local-dir cells-2026" in text


@pytest.mark.parametrize("task", ["classify", "deblur"])
def test_other_tasks_predict_the_same(task, tmp_path):
    run = make_run(tmp_path / "run", task)
    models = [lsmfm_jax.load(folder) for folder in (run, package(run, tmp_path / "out"))]
    found, expected = (model.predict(VOLUME) for model in models)
    if task == "classify":
        assert found.probabilities == expected.probabilities
    else:
        np.testing.assert_array_equal(found.volume, expected.volume)


def test_low_rank_factors_are_merged(tmp_path):
    from lsmfm_jax.tasks.finetuning import Network, backbone_of, init_linear

    network = Network(backbone_of(SWIN))
    params, stats = jax.jit(lambda key: network.init(key, (32, 32, 32)))(jax.random.key(0))
    rng = np.random.default_rng(0)
    factors = {"a": rng.normal(size=(12, 2)).astype(np.float32), "b": rng.normal(size=(2, 48)).astype(np.float32)}
    lora = {"transformer": {"stage_0": {"block_0": {"linear1": {"kernel": factors}}}}}
    record = {"task": "segment", "architecture": SWIN, "patch_size": [32, 32, 32], "scaling": {}}
    write_weights(
        tmp_path / "run",
        record={**record, "lora": {"rank": 2, "alpha": 4.0}},
        params={"backbone": params, "head": init_linear(jax.random.key(1), 16, 1), "lora": lora},
        batch_stats={"backbone": stats},
    )
    out = package(tmp_path / "run", tmp_path / "out")
    found, expected = (read_weights(folder) for folder in (out, tmp_path / "run"))
    assert set(found.params) == {"backbone", "head"} and found.record["lora"] == {"rank": 2, "alpha": 4.0}
    assert jax.tree.structure(found.params) == jax.tree.structure(expected.params)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert "| adaptation | low rank 2 (LoRA)" in (out / "README.md").read_text()


def test_a_pretraining_run_keeps_its_patches_sizes_and_its_text_model(tmp_path, capsys):
    run, _ = make_pretrained(tmp_path / "secret", patches=4)
    out = package(run, tmp_path / "out" / "towers")
    texts = ["Many round nuclei.", "A lone cell."]
    found, expected = (lsmfm_jax.load(folder) for folder in (as_downloaded(out, tmp_path / "cache"), run))
    np.testing.assert_array_equal(found.embed(VOLUME), expected.embed(VOLUME))
    np.testing.assert_array_equal(found.embed_text(texts), expected.embed_text(texts))
    for file in (path for path in out.rglob("*") if path.is_file()):
        assert b"secret" not in file.read_bytes(), file
    assert "| stores | store |" in (out / "README.md").read_text()
    # A text model of a folder of its own comes along; where that folder is gone there is nothing to embed texts by.
    elsewhere = tmp_path / "bert"
    (run / "text").rename(elsewhere)
    config = json.loads((run / "config.json").read_text())
    for source in (elsewhere, tmp_path / "gone"):
        config["text"]["source"] = str(source)
        replace_json(run / "config.json", config)
        seal_records(run)
        if source == elsewhere:
            again = lsmfm_jax.load(package(run, tmp_path / "again"))
            np.testing.assert_array_equal(again.embed_text(texts), expected.embed_text(texts))
    line = refused(capsys, run, "--out", tmp_path / "third")
    assert f"text.source {tmp_path / 'gone'}, is not there any more; bring that folder back" in line
    assert not (tmp_path / "third").exists()


def test_the_hub_reads_the_card(run, tmp_path, capsys):
    terms = tmp_path / "terms.txt"
    terms.write_text("All may use it.")
    more = ["--license", "CC-BY-4.0", "--author", "A. Alpha", "--author", "B. Beta", "--license-file", str(terms)]
    out = package(run, tmp_path / "out" / "cells 2026", *more)
    assert (out / "LICENSE").read_text() == "All may use it."
    upload = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert upload == ["hf", "upload", "cells-2026", str(out)]
    validate_repo_id(upload[2])
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "lsmfm_jax"
    assert card.data.pipeline_tag == "image-segmentation"
    assert {"microscopy", "light-sheet", "3d", "segmentation", "unet"} <= set(card.data.tags)
    assert card.data.metrics == ["dice"]
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.task_type) == ("dice", 0.625, "image-segmentation")
    assert result.dataset_name == "annotated, validation patches"
    index = eval_results_to_model_index(card.data.model_name, card.data.eval_results)
    assert model_index_to_eval_results(index)[0] == card.data.model_name == "cells 2026"
    assert "Licence of the weights: CC-BY-4.0." in card.text and "| authors | A. Alpha, B. Beta |" in card.text
    # The hub finds the paper by its address in the text.
    assert "https://arxiv.org/abs/2605.26026" in card.text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", {}),
        ("MIT", {"license": "mit"}),
        ("GPL-3.0-or-later", {"license": "gpl-3.0"}),
        (
            "CERN-OHL-P-2.0",
            {
                "license": "other",
                "license_name": "cern-ohl-p-2.0",
                "license_link": "https://spdx.org/licenses/CERN-OHL-P-2.0.html",
            },
        ),
    ],
)
def test_licences_as_the_hub_writes_them(given, expected):
    facts = dict.fromkeys(("name", "architecture", "data", "mark"), "x")
    text = front_matter(**facts, task="segment", figures={}, stated=Stated(given))
    data = ModelCard(text).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == expected
    assert "model-index" not in text


@pytest.mark.parametrize("task", [*PIPELINE_TAGS, "backbone"])
def test_each_task_has_a_task_of_the_hub_or_none(task):
    facts = dict.fromkeys(("name", "architecture", "data", "mark"), "a: 'b' #c")
    figures = {"ssim": 0.5, "image_loss": 2.0, "psnr": float("inf"), "count": 3}
    card = ModelCard(front_matter(**facts, task=task, figures=figures, stated=NOTHING_STATED))
    assert card.data.pipeline_tag == PIPELINE_TAGS.get(task)
    expected = [("ssim", 0.5), ("count", 3.0)] if task in PIPELINE_TAGS else []
    assert [(one.metric_type, one.metric_value) for one in card.data.eval_results or []] == expected


def test_what_it_did_not_make_stays_and_nothing_is_left_half(run, tmp_path, capsys):
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "a.txt").write_text("mine")
    assert "a folder with files in it is there already" in refused(capsys, run, "--out", mine)
    assert "a file is there already" in refused(capsys, run, "--out", mine / "a.txt")
    assert [path.name for path in mine.iterdir()] == ["a.txt"] and (mine / "a.txt").read_text() == "mine"
    out = tmp_path / "out"
    line = refused(capsys, run, "--out", out, "--license", "CC BY 4.0")
    assert "--license 'CC BY 4.0': an SPDX identifier is needed" in line
    assert "a person's name is needed" in refused(capsys, run, "--out", out, "--author", "a/b")
    line = refused(capsys, run, "--out", out, "--license-file", tmp_path / "none")
    assert "--license-file" in line and "cannot be read (no such file or folder" in line
    assert "no run.json there" in refused(capsys, mine, "--out", out)
    # Packing once more where it packed before is refused too: the card may have been edited.
    package(run, out)
    assert "is there already" in refused(capsys, run, "--out", out)
    kept = {"secret", "thesis", "out"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_paths_become_their_last_parts():
    record = {
        "stores": ["/a/b.zarr", "s3://bucket/c/"],
        "init_from": "runs/d",
        "text": {"source": "org/bert"},
        "other": ["~/e/f", 3, None, "µm/voxel"],
    }
    assert without_folders(record) == {
        "stores": ["b.zarr", "c"],
        "init_from": "d",
        "text": {"source": "org/bert"},
        "other": ["f", 3, None, "µm/voxel"],
    }
