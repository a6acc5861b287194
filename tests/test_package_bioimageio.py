"""`lsmfm package --for bioimageio`: files and their hashes, what the documentation says, and what is refused.

Whether bioimage.io's own programs take it is tested in parity/test_package_bioimageio.py.
"""

import hashlib
import json

import numpy as np
import pytest
import yaml
from brain_runs import RECORD, make_run
from toy_swin import SWIN

from lsmfm_jax.cli import main
from lsmfm_jax.convert.torch_files import read_torch_file
from lsmfm_jax.files import replace_json
from lsmfm_jax.predict.network import load_predictor
from lsmfm_jax.train.records import seal_records
from lsmfm_jax.train.weights import read_weights, write_weights

VOXELS = {"bias": -1.5, "weights": [3.0, -2.0, 4.0, 0.5], "network_weight": 0.25, "sigmas": [1.0, 2.0, 4.0]}


def changed(run, **facts):
    """A run with more in its record."""
    replace_json(run / "run.json", json.loads((run / "run.json").read_text()) | facts)
    seal_records(run)
    return run


def package(run, out, *more):
    assert main(["package", str(run), "--for", "bioimageio", "--out", str(out), *more]) == 0
    return out, yaml.safe_load((out / "rdf.yaml").read_text())


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(["package", *map(str, arguments), "--for", "bioimageio"]) == 2
    return capsys.readouterr().err


def head_bias(run):
    return np.asarray(read_weights(run).params["head"]["bias"])


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "secret" / "run", "segment")


def test_every_file_is_named_with_its_hash_and_none_with_a_path(run, tmp_path, capsys):
    terms = tmp_path / "terms.txt"
    terms.write_text("All may use it.")
    more = ["--license", "CC-BY-4.0", "--author", "A. Alpha", "--author", "B. Beta", "--license-file", str(terms)]
    changed(run, init_from=str(tmp_path / "secret" / "start"))
    out, described = package(run, tmp_path / "my µ cells", *more)
    named = {}

    def visit(value):
        if isinstance(value, dict):
            if "sha256" in value:
                named[value["source"]] = value["sha256"]
            value = list(value.values())
        for one in value if isinstance(value, list) else ():
            visit(one)

    visit(described)
    files = {file.name: file.read_bytes() for file in out.iterdir()}
    assert set(files) == {*named, "rdf.yaml"} and files["LICENSE"] == b"All may use it."
    assert named == {name: hashlib.sha256(files[name]).hexdigest() for name in named}
    assert not [name for name, content in files.items() if b"secret" in content]
    assert described["name"] == "my - cells" and described["license"] == "CC-BY-4.0"
    assert described["authors"] == [{"name": "A. Alpha"}, {"name": "B. Beta"}]
    assert capsys.readouterr().out.splitlines()[-1] == f"bioimageio test '{out / 'rdf.yaml'}'"
    assert "| started from | start |" in (out / "README.md").read_text()


def test_the_test_output_is_what_the_run_predicts(run, tmp_path):
    changed(run, network_cut_off={"logit": 0.25}, logit_shift=-0.5)
    out, described = package(run, tmp_path / "cells")
    given, probability = (np.load(out / f"test_{name}.npy")[0, 0] for name in ("input", "output"))
    predictor = load_predictor(run, window=given.shape)
    expected = predictor.apply(predictor.prepared(given, predictor.levels(given))[None])[0]
    np.testing.assert_allclose(probability, expected, rtol=1e-5)
    assert given.max() > 100 and np.ptp(probability) > 0.01
    scaling = [step["id"] for step in described["inputs"][0]["preprocessing"]]
    assert scaling == ["scale_range", "clip"]
    state = read_torch_file(out / "weights.pt").state
    np.testing.assert_allclose(state["head.bias"], head_bias(run) - 0.25 - 0.5, rtol=1e-6)


def test_what_is_not_in_the_package_is_said(run, tmp_path, capsys):
    scaling = {"name": "local", "sigma_voxels": 6.0, "offset_counts": 10.0}
    changed(run, voxel_classifier=VOXELS, logit_shift=-0.5, scaling=scaling)
    out, described = package(run, tmp_path / "cells")
    said = capsys.readouterr().out
    assert "NOT in the package: the run's regression of voxels" in said
    assert "bioimage.io asks for --license and --author" in said
    text = (out / "README.md").read_text()
    assert "0.25 times the network's logit + 3 times the scaled voxel" in text and "+ -2, and calls foreground" in text
    assert "Scale('local', sigma_voxels=6.0, sigma_um=0.0, offset_counts=10.0, fixed_level=None)" in text
    assert "## Validation" in text and "lsmfm_jax.load" not in text and "raw counts" not in text
    assert "preprocessing" not in described["inputs"][0] and np.load(out / "test_input.npy").max() <= 1
    # The calibration is of the sum of network and voxels, so the network alone has none of it.
    np.testing.assert_allclose(read_torch_file(out / "weights.pt").state["head.bias"], head_bias(run), rtol=1e-6)


def test_what_no_network_of_monai_can_hold_is_refused(run, tmp_path, capsys):
    out = tmp_path / "out"
    line = refused(capsys, make_run(tmp_path / "classes", "classify"), "--out", out)
    assert "a run of task 'classify' with a unet; packages for bioimage.io are made of segmentation runs" in line
    assert "`lsmfm package --for hub` takes every run" in line
    record = {**RECORD, "task": "segment", "architecture": {**SWIN, "merging": "duplicated"}}
    write_weights(tmp_path / "old", record=record, params={"backbone": {"a": np.ones(2)}}, batch_stats={})
    assert "merges patches as MONAI up to 1.4 did" in refused(capsys, tmp_path / "old", "--out", out)
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("mine")
    assert "a folder with files in it is there already" in refused(capsys, run, "--out", out)
    assert [file.name for file in out.iterdir()] == ["mine"]
