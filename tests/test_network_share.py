"""A network that makes validation patches worse is left out of predictions, and only then."""

import json
import shutil

import numpy as np
import pytest
from labelled_toy import write_patches
from scipy.special import expit

from lsmfm_jax.baselines import PixelClassifier, pixel_logits
from lsmfm_jax.cli import main
from lsmfm_jax.files import replace_json
from lsmfm_jax.predict.network import load_predictor
from lsmfm_jax.predict.network_share import leave_out_where_worse
from lsmfm_jax.predict.next_boxes import _segmentation
from lsmfm_jax.predict.windows import blend_windows
from lsmfm_jax.train.records import damaged_record, seal_records
from lsmfm_jax.volumes.read import read_single

SIZES = ["model.out_channels=4", "model.unet.channels=(4,8)", "model.unet.strides=(2,)"]


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("share") / "patches", size=24)


def _finetuned(patches, workdir, *keys):
    settings = [f"data.folder={patches}", "data.patch_size=(16,16,16)", "data.crops_per_patch=4", "train.epochs=1"]
    overrides = [f"--config.{key}" for key in (*SIZES, *settings, "train.batch_size=8", *keys)]
    assert main(["finetune", "--config", "segment_unet:tiny", "--workdir", str(workdir), *overrides]) == 0
    return workdir


@pytest.fixture(scope="module")
def trained(patches):
    return _finetuned(patches, patches.parent / "run", "voxel_classifier.always_network=True")


def _record(run):
    return json.loads((run / "run.json").read_text())


@pytest.fixture
def copy(trained, tmp_path):
    """Gives a copy of the run with another regression beside its network."""

    def made(**voxels):
        run = shutil.copytree(trained, tmp_path / "copy")
        record = _record(run)
        record["voxel_classifier"] |= voxels
        replace_json(run / "run.json", record)
        seal_records(run)
        return run

    return made


def _validation(run, patches):
    for entry in json.loads((run / "split.json").read_text())["validation"]:
        name = entry["name"]
        yield read_single(patches / f"{name}.nii.gz")[0], read_single(patches / f"{name}_label.nii.gz")[0] > 0


def _mean_dice(run, patches):
    predictor, found = load_predictor(run), []
    for counts, truth in _validation(run, patches):
        scaled = predictor.prepared(counts, predictor.levels(counts))
        settings = {"window": predictor.window, "overlap_frac": 0.25, "batch_size": 1}
        mask = blend_windows(predictor.apply, scaled, **settings) >= 0.5
        found.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    return np.mean(found)


def test_a_network_that_spoils_the_regression_is_left_out(copy, patches, capsys):
    # So much of a network of one epoch that it alone decides.
    run = copy(network_weight=100.0)
    before = _mean_dice(run, patches)
    found = leave_out_where_worse(run)
    assert found == _record(run)["network_left_out"] and not damaged_record(run, "run.json")
    assert found["with_network"] == pytest.approx(before) and found["without"] > before + 0.1
    assert _mean_dice(run, patches) == pytest.approx(found["without"])
    assert "left out of predictions" in capsys.readouterr().out


def test_predictions_without_the_network_are_the_regressions(copy, patches):
    run = copy(network_weight=100.0)
    leave_out_where_worse(run)
    voxels, predictor = _record(run)["voxel_classifier"], load_predictor(run)
    counts, _ = next(_validation(run, patches))
    scaled = predictor.prepared(counts, predictor.levels(counts))[:16, :16, :16]
    wanted = expit(pixel_logits(PixelClassifier(tuple(voxels["weights"]), voxels["bias"]), scaled))
    got = np.asarray(predictor.apply(scaled[None]))[0]
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_a_network_that_helps_counts(copy, patches):
    # A regression that finds nothing: whatever the network adds is better.
    run = copy(weights=[0.0, 0.0, 0.0, 0.0], bias=-1e-4, network_weight=1.0)
    assert _mean_dice(run, patches) > 0
    before = (run / "run.json").read_bytes()
    assert leave_out_where_worse(run) is None
    assert (run / "run.json").read_bytes() == before


def test_boxes_to_annotate_next_are_still_where_the_network_is_unsure(copy, patches):
    run = copy(network_weight=100.0)
    counts, _ = next(_validation(run, patches))
    before = load_predictor(run)
    window = before.prepared(counts, before.levels(counts))[None, :16, :16, :16]
    leave_out_where_worse(run)
    asked = _segmentation([run], window=None, flips=False)
    np.testing.assert_array_equal(asked.apply(window), before.apply(window))
    assert np.abs(np.asarray(load_predictor(run).apply(window)) - np.asarray(before.apply(window))).max() > 0.1


def test_training_ends_with_the_question_unless_told_otherwise(trained, patches, tmp_path):
    assert "network_left_out" not in _record(trained)
    run = _finetuned(patches, tmp_path / "run", "voxel_classifier.network_weight=100.0")
    assert _record(run)["network_left_out"]["without"] > _record(run)["network_left_out"]["with_network"]
    comparison = json.loads((run / "comparison.json").read_text())
    assert comparison["methods"]["this run"]["dice"] == pytest.approx(_record(run)["network_left_out"]["without"])
