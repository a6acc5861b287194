"""Where the logit of a trained segmentation network is cut: the best place on its training patches, for predictions."""

import json

import numpy as np
import pytest

from lsmfm_jax.baselines import best_threshold
from lsmfm_jax.cli import main
from lsmfm_jax.data.labelled_patches import LabelledPatch
from lsmfm_jax.predict import cut_off
from lsmfm_jax.predict.cut_off import blended_logits, fit_cut_off, fitted_cut
from lsmfm_jax.predict.network import predictor_of
from lsmfm_jax.tasks.declaration import Patches
from lsmfm_jax.train.records import damaged_record
from lsmfm_jax.train.weights import read_weights
from lsmfm_jax.volumes.read import read_single, write_nifti

SIZES = ["model.out_channels=4", "model.unet.channels=(4,8)", "model.unet.strides=(2,)"]


def blobs(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((24, 24, 24), bool)
    for centre in rng.integers(4, 20, (4, 3)):
        mask |= sum((axis - at) ** 2 for axis, at in zip(np.indices(mask.shape), centre, strict=True)) < 9
    return (rng.normal(500, 40, mask.shape) + mask * 400).clip(0).astype(np.uint16), mask.astype(np.uint8)


def command(folder, workdir, *keys):
    settings = [f"data.folder={folder}", "data.patch_size=(16,16,16)", "data.crops_per_patch=4"]
    settings += ["train.epochs=1", "train.batch_size=8", *keys]
    overrides = [f"--config.{key}" for key in (*SIZES, *settings)]
    return ["finetune", "--config", "segment_unet:tiny", "--workdir", str(workdir), *overrides]


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut_off") / "patches"
    folder.mkdir()
    for number in range(4):
        image, mask = blobs(number)
        write_nifti(folder / f"a_patch_00{number}_vol{number}_ch0.nii.gz", image, like=None)
        write_nifti(folder / f"a_patch_00{number}_vol{number}_ch0_label.nii.gz", mask, like=None)
    return folder


@pytest.fixture(scope="module")
def run(patches):
    assert main(command(patches, patches.parent / "run")) == 0
    return patches.parent / "run"


def alone(run, **record):
    """A run's predictor with nothing beside its network but what is given."""
    weights = read_weights(run)
    kept = {key: value for key, value in weights.record.items() if key not in ("voxel_classifier", "network_cut_off")}
    return predictor_of(weights._replace(record={**kept, **record}), run)


def training_patches(run, patches):
    split = json.loads((run / "split.json").read_text())
    for name in (entry["name"] for entry in split["train"]):
        yield read_single(patches / f"{name}.nii.gz")[0], read_single(patches / f"{name}_label.nii.gz")[0] > 0


def mean_dice(logits, truths, cut):
    masks = [one > cut for one in logits]
    return np.mean(
        [2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask, truth in zip(masks, truths, strict=True)]
    )


def test_no_other_cut_is_better_on_the_training_patches(run, patches):
    found = json.loads((run / "run.json").read_text())["network_cut_off"]
    predictor, logits, truths = alone(run), [], []
    for counts, truth in training_patches(run, patches):
        logits.append(blended_logits(predictor, predictor.prepared(counts, predictor.levels(counts))))
        truths.append(truth)
    assert mean_dice(logits, truths, 0.0) == pytest.approx(found["dice_before"], abs=1e-3)
    assert mean_dice(logits, truths, found["logit"]) == pytest.approx(found["dice_after"], abs=1e-3)
    others = np.quantile(np.concatenate([one.ravel() for one in logits]), np.linspace(0, 1, 400))
    assert found["dice_after"] >= max(mean_dice(logits, truths, cut) for cut in others) - 0.005
    # A network of one epoch is not cut well at 0: otherwise this test would hold without a fit.
    assert found["dice_after"] > found["dice_before"] + 0.02


def test_the_cut_is_taken_off_the_networks_logit_alone(run, patches):
    cut = json.loads((run / "run.json").read_text())["network_cut_off"]["logit"]
    counts, _ = next(training_patches(run, patches))
    raw, moved = alone(run), alone(run, network_cut_off={"logit": cut})
    scaled = raw.prepared(counts, raw.levels(counts))
    difference = blended_logits(moved, scaled) - blended_logits(raw, scaled)
    # Where windows overlap, probabilities are averaged and not logits.
    np.testing.assert_allclose(np.median(difference), -cut, atol=0.05)


def test_a_run_that_goes_on_is_cut_anew_and_its_records_stay_sealed(run, patches, tmp_path):
    first = json.loads((run / "run.json").read_text())["network_cut_off"]
    assert main(command(patches, run)) == 0
    assert json.loads((run / "run.json").read_text())["network_cut_off"] == first
    assert not damaged_record(run, "run.json")


def test_it_can_be_left_out(patches, tmp_path):
    assert main(command(patches, tmp_path / "run", "fit_cut_off=False")) == 0
    assert "network_cut_off" not in json.loads((tmp_path / "run" / "run.json").read_text())


def test_patches_without_foreground_leave_the_run_as_it_is(run, monkeypatch):
    before = (run / "run.json").read_bytes()
    empty = np.zeros((16, 16, 16), np.uint8)
    patch = LabelledPatch("a", empty, 0.0, 1.0, target=empty, counts=empty)
    monkeypatch.setattr(cut_off, "read_patches", lambda *_, **__: Patches([patch], [], ()))
    assert fit_cut_off(run) is None
    assert (run / "run.json").read_bytes() == before


def test_a_fitted_cut_is_never_worse_than_the_one_that_is_there():
    """Of a sparse structure the cuts that are tried lie per cents apart, and 0 can be better than all of them."""
    rng = np.random.default_rng(3)
    truth = np.zeros((1, 1, 40000), bool)
    truth[..., :377] = True
    logits = np.where(truth, 4.0, -4.0) + rng.normal(0, 0.5, truth.shape)
    assert best_threshold([logits], [truth])[1] < 1.0  # none of those tried
    assert fitted_cut([logits], [truth]) == (0.0, 1.0, 1.0)
    cut, before, after = fitted_cut([logits - 6.0], [truth])
    assert -11 < cut < -1 and before < 0.1 and after > 0.98
