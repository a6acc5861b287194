"""Several runs together: the mean of what each says alone, their uncertainty, and runs that do not go together."""

import csv
import shutil

import brain_runs
import jax
import nibabel
import numpy as np
import pytest
from brain_runs import ARCHITECTURE, quiet
from scipy import stats

import lsmfm_jax
from lsmfm_jax.cli import main
from lsmfm_jax.predict.ensemble import Ensemble, flip_members, load_ensemble
from lsmfm_jax.predict.in_memory import Settings, segment
from lsmfm_jax.predict.inputs import PredictionError, find_cases
from lsmfm_jax.predict.network import load_predictor
from lsmfm_jax.predict.run import predict
from lsmfm_jax.tasks.finetuning import Network, backbone_of, init_linear
from lsmfm_jax.train.weights import write_weights

# Of two seeds, with an intensity scale and a window each.
PERCENTILES = {**brain_runs.RECORD, "task": "segment"}
LOCAL = {**PERCENTILES, "scaling": {"name": "local", "sigma_voxels": 3.0}, "patch_size": [8, 16, 16]}
SHAPE = (18, 20, 16)


@jax.jit
def drawn(key):
    """Weights, by one compilation for all runs."""
    backbone, head = jax.random.split(key)
    params, statistics = Network(backbone_of(ARCHITECTURE)).init(backbone, (16, 16, 16))
    # A larger head, so that probabilities are not all near one half.
    head = jax.tree.map(lambda leaf: 10 * leaf, init_linear(head, 6, 1))
    return {"backbone": params, "head": head}, {"backbone": statistics}


def make_run(folder, seed, **record):
    params, statistics = drawn(jax.random.key(seed))
    write_weights(folder, record=record, params=params, batch_stats=statistics)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / "a", 0, **PERCENTILES), make_run(folder / "b", 1, **LOCAL)]


@pytest.fixture(scope="module")
def volume():
    return brain_runs.blobs(SHAPE, seed=5)


@pytest.fixture(scope="module")
def alone(runs, volume):
    """What each run says without the other."""
    return [segment(load_predictor(run), volume, None, Settings()).probability for run in runs]


def disagreement(probabilities):
    """Of an independent library, in double precision."""
    each = np.stack(probabilities).astype(np.float64)
    mean = each.mean(axis=0)
    entropies = stats.entropy(np.stack([each, 1 - each]), base=2, axis=0)
    return stats.entropy([mean, 1 - mean], base=2, axis=0) - entropies.mean(axis=0)


def loaded(path):
    return nibabel.load(path).get_fdata(dtype=np.float32).transpose(2, 1, 0)


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_files_get_the_mean_of_the_runs_and_their_uncertainty(runs, volume, alone, tmp_path, capsys):
    affine = np.array([[-0.5, 0, 0, 3], [0, 0.7, 0.1, -4], [0, 0, 2.0, 5], [0, 0, 0, 1]])
    nibabel.Nifti1Image(volume.transpose(2, 1, 0), affine).to_filename(tmp_path / "a.nii.gz")
    truth = (volume > np.percentile(volume, 80)).astype(np.uint8)
    nibabel.Nifti1Image(truth.transpose(2, 1, 0), affine).to_filename(tmp_path / "a_label.nii.gz")
    out = tmp_path / "out"
    both = [argument for run in runs for argument in ("--checkpoint", str(run))]
    arguments = ["predict", *both, str(tmp_path), "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "the mean of 2 runs" in printed and "16 x 16 x 16 and 8 x 16 x 16 voxels" in printed

    mean = np.mean(alone, axis=0, dtype=np.float64)
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    np.testing.assert_allclose(loaded(out / "a_prob.nii.gz"), mean, atol=1e-6)
    np.testing.assert_array_equal(loaded(out / "a_mask.nii.gz") > 0, loaded(out / "a_prob.nii.gz") >= 0.5)
    uncertainty = loaded(out / "a_uncertainty.nii.gz")
    np.testing.assert_allclose(uncertainty, disagreement(alone), atol=1e-6)
    written = nibabel.load(out / "a_uncertainty.nii.gz")
    assert written.get_data_dtype() == np.float32
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)
    (row,) = rows_of(out / "predictions.csv")
    assert float(row["mean_uncertainty"]) == pytest.approx(uncertainty.mean(), rel=1e-4)
    shared = 2 * (truth & (mean >= 0.5)).sum() / (truth.sum() + (mean >= 0.5).sum())
    assert float(row["dice"]) == pytest.approx(shared, abs=1e-3)
    # Two scales, two levels.
    low = np.percentile(volume, 1)
    assert float(row["scaled_from"].split()[0]) == pytest.approx(low) and len(row["scaled_from"].split()) == 2
    # `lsmfm evaluate`, and another prediction into the folder of the images, take it for no image and no mask.
    table = tmp_path / "scores.csv"
    assert main(["evaluate", "--pred", str(out), "--label", str(tmp_path), "--out", str(table)]) == 0
    shutil.copy(out / "a_uncertainty.nii.gz", tmp_path)
    cases, _ = find_cases([tmp_path], task="segment")
    assert [case.name for case in cases] == ["a"]

    # One run alone leaves no uncertainty behind that is not its own.
    capsys.readouterr()
    single = ["predict", "--checkpoint", str(runs[0]), str(tmp_path), "--out", str(out)]
    assert main(single) == 2 and "there already" in capsys.readouterr().err
    assert main([*single, "--overwrite"]) == 0
    assert not (out / "a_uncertainty.nii.gz").exists()
    np.testing.assert_array_equal(loaded(out / "a_prob.nii.gz"), alone[0])


def test_from_python_it_is_the_same(runs, volume, alone):
    models = lsmfm_jax.load([str(run) for run in runs])
    result = models.predict(volume, threshold=0.4)
    np.testing.assert_allclose(result.probability, np.mean(alone, axis=0, dtype=np.float64), atol=1e-6)
    np.testing.assert_array_equal(result.mask, result.probability >= 0.4)
    np.testing.assert_allclose(result.uncertainty, disagreement(alone), atol=1e-6)
    assert len(result.levels) == 2 and models.task == "segment" and str(runs[1]) in repr(models)
    assert lsmfm_jax.load(runs[0]).predict(volume).uncertainty is None
    blank = models.predict(np.full((16, 16, 16), 9, np.uint16), threshold=0.0)
    assert not blank.mask.any() and not blank.uncertainty.any()
    with pytest.raises(PredictionError, match="a list of 1 runs"):
        lsmfm_jax.load([runs[0]])


def test_one_run_with_itself_in_a_copy_is_certain(runs, volume, alone, tmp_path):
    shutil.copytree(runs[0], tmp_path / "copy")
    result = segment(load_ensemble([runs[0], tmp_path / "copy"]), volume, None, Settings())
    np.testing.assert_array_equal(result.probability, alone[0])
    np.testing.assert_array_equal(result.uncertainty, np.zeros(SHAPE))


def test_flips_of_one_run_are_members_too(runs, volume, tmp_path, capsys):
    np.save(tmp_path / "v.npy", volume)
    arguments = ["predict", "--checkpoint", str(runs[0]), str(tmp_path / "v.npy"), "--tta"]
    assert main([*arguments, "--out", str(tmp_path / "flips")]) == 0
    assert main([*arguments, "--out", str(tmp_path / "apart"), "--uncertainty"]) == 0
    assert not (tmp_path / "flips" / "v_uncertainty.nii.gz").exists()
    apart = loaded(tmp_path / "apart" / "v_prob.nii.gz")
    np.testing.assert_allclose(apart, loaded(tmp_path / "flips" / "v_prob.nii.gz"), atol=1e-5)
    members = flip_members(load_predictor(runs[0]))
    windows = np.random.default_rng(0).random((2, 16, 16, 16)).astype(np.float32)
    first, last = (np.asarray(one.apply(windows)) for one in (members[0], members[-1]))
    assert len(members) == 8
    flipped = np.asarray(load_predictor(runs[0]).apply(windows[:, ::-1, ::-1, ::-1]))[:, ::-1, ::-1, ::-1]
    np.testing.assert_allclose(last, flipped, atol=1e-6)
    assert np.abs(first - last).max() > 1e-3
    each = [segment(one, volume, None, Settings()).probability for one in members]
    found = loaded(tmp_path / "apart" / "v_uncertainty.nii.gz")
    np.testing.assert_allclose(found, disagreement(each), atol=1e-6)
    assert found.max() > 1e-4


def test_a_single_run_is_the_predictor_itself(runs):
    assert load_ensemble([runs[0]]).apply is not None and not isinstance(load_ensemble([runs[0]]), Ensemble)
    with pytest.raises(PredictionError, match="nobody to disagree with; name several with --checkpoint, or add --tta"):
        load_ensemble([runs[0]], uncertainty=True)


def test_runs_that_do_not_go_together_are_named(runs, tmp_path, capsys):
    other = tmp_path / "labels"
    make_run(other, 2, **PERCENTILES, labels={"foreground": [2], "background": [], "ignore": [0]})
    for folder, task in (("deblur", "deblur"), ("sharp", "deblur")):
        make_run(tmp_path / folder, 3, **{**PERCENTILES, "task": task})
    refused = {
        (runs[0], other): r"a and .*labels cannot be combined: data\.foreground_labels is \(\) in one and \(2,\) in",
        (runs[0], tmp_path / "deblur"): "a and .*deblur cannot be combined: their tasks are 'segment' and 'deblur'",
        (tmp_path / "deblur", tmp_path / "sharp"): "of task 'deblur', and a mean is taken of segmentation alone",
        (runs[0], runs[0].parent / "b" / ".." / "a"): "named twice; name different runs",
    }
    for checkpoints, message in refused.items():
        with pytest.raises(PredictionError, match=message):
            load_ensemble(checkpoints)
    with pytest.raises(PredictionError, match="only segmentation has one"):
        load_ensemble([tmp_path / "deblur"], flips=True, uncertainty=True)
    np.save(tmp_path / "v.npy", brain_runs.blobs((16, 16, 16)))
    both = [argument for run in (runs[0], other) for argument in ("--checkpoint", str(run))]
    assert main(["predict", *both, str(tmp_path / "v.npy"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()
    both = [argument for run in runs for argument in ("--checkpoint", str(run))]
    assert main(["predict", *both, str(tmp_path / "v.npy"), "--out", str(tmp_path / "o.ome.zarr")]) == 2
    message = capsys.readouterr().err
    assert "2 times --checkpoint, and one volume of any size is predicted with one run" in message


def test_a_file_that_fails_does_not_stop_the_others(runs, tmp_path):
    np.save(tmp_path / "good.npy", brain_runs.blobs((16, 16, 16)))
    (tmp_path / "broken.npy").write_bytes(b"x")
    with pytest.raises(PredictionError, match="1 of 2 files failed"):
        predict(runs, [tmp_path], tmp_path / "out", print_line=quiet)
    assert (tmp_path / "out" / "good_uncertainty.nii.gz").exists()
