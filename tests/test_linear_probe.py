"""The linear probe: features voxel by voxel, a layer that predicts as it was fitted, and what it stands beside."""

import json

import brain_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from labelled_toy import write_patches

from lsmfm_jax.cli import main
from lsmfm_jax.predict.linear_probe import RANDOM, RUN, _Probe, probe_run
from lsmfm_jax.tasks.finetuning import Network, backbone_of
from lsmfm_jax.train.weights import read_weights, write_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return brain_runs.make_run(tmp_path_factory.mktemp("run") / "run", "segment")


@pytest.fixture(scope="module")
def probe(run):
    weights = read_weights(run)
    network = Network(backbone_of(weights.architecture))
    return _Probe(network, {"backbone": weights.params["backbone"]}, weights.batch_stats, (16, 16, 16))


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("labelled"), count=4)


def test_rows_are_the_features_of_the_chosen_voxels(run, probe):
    weights = read_weights(run)
    volume = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    network = Network(backbone_of(weights.architecture))
    trunk = jax.jit(network.trunk)(weights.params, weights.batch_stats, jnp.asarray(volume)[None, ..., None])
    dense = np.asarray(trunk.values if trunk.tail is None else trunk.values @ trunk.tail[0] + trunk.tail[1])[0]
    chosen = np.random.default_rng(1).random(volume.shape) < 0.1
    np.testing.assert_allclose(probe.rows(volume, chosen), dense[chosen], atol=1e-5)


def test_every_chosen_voxel_has_one_row_in_any_shape(probe):
    """Volumes larger than the window along one axis and smaller along another."""
    volume = np.random.default_rng(0).random((37, 16, 9)).astype(np.float32)
    chosen = np.random.default_rng(1).random(volume.shape) < 0.05
    rows = probe.rows(volume, chosen)
    assert rows.shape == (chosen.sum(), 6) and len(np.unique(rows, axis=0)) > 0.9 * len(rows)
    # The order is that of the mask: leaving out the first voxel takes away the first row.
    fewer = chosen.copy()
    fewer[tuple(np.argwhere(chosen)[0])] = False
    np.testing.assert_array_equal(probe.rows(volume, fewer), rows[1:])


def test_the_layer_scores_as_the_rows_say(probe):
    volume = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    weights, everywhere = np.array([1.0, -2.0, 0.5, 0.0, 3.0, -1.0]), np.ones(volume.shape, bool)
    wanted = probe.rows(volume, everywhere) @ weights + 0.25
    np.testing.assert_allclose(probe.score(weights, 0.25)(volume).ravel(), wanted, atol=1e-4)


def test_it_is_judged_on_other_volumes_beside_what_needs_no_network(run, patches, tmp_path, capsys):
    out = tmp_path / "probe.json"
    assert main(["probe", str(run), str(patches), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found["methods"]) == {RUN, RANDOM, "threshold", "regression of voxels"}
    # Bright balls on a dark ground: a threshold is right, and a network that was never trained still sees them.
    assert found["methods"]["threshold"]["dice"] > 0.9 > found["methods"][RUN]["dice"] > 0.3
    assert found["methods"][RANDOM].keys() >= {"run_is_ahead_by", "interval_95"} and len(found["volumes"]) == 1
    assert "random weights" in capsys.readouterr().out


def test_features_that_say_nothing_are_seen(run, patches, tmp_path):
    """A collapsed network gives all voxels the same features: no layer can tell them apart."""
    weights = read_weights(run)
    params = jax.tree.map(np.zeros_like, weights.params)
    write_weights(tmp_path / "dead", record=weights.record, params=params, batch_stats=weights.batch_stats)
    found = probe_run(tmp_path / "dead", patches, print_line=lambda line: None)
    assert found["methods"][RUN]["dice"] < 0.3 < found["methods"]["threshold"]["dice"]


def test_nothing_to_judge_on_or_to_fit_is_refused(run, tmp_path, capsys):
    only_train = write_patches(tmp_path / "a" / "train", count=2).parent
    assert main(["probe", str(run), str(only_train)]) == 2
    assert "no patches to judge on" in capsys.readouterr().err
    assert main(["probe", str(run), str(write_patches(tmp_path / "b", count=3)), "--foreground", "7"]) == 2
    assert "there is nothing to" in capsys.readouterr().err
    assert main(["probe", str(tmp_path / "none"), str(only_train)]) == 2
    assert "run.json" in capsys.readouterr().err
