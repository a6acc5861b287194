"""bioimage.io's own programs take our packages, and PyTorch gives the test output that JAX computed."""

import shutil
import warnings

import jax
import numpy as np
import pytest
import torch
import yaml
from brain_runs import RECORD, make_run
from toy_swin import SWIN

from lsmfm_jax.publish.bioimageio import package_for_bioimageio
from lsmfm_jax.publish.card import PAPER_URL
from lsmfm_jax.publish.stated import Stated
from lsmfm_jax.tasks.finetuning import Network, backbone_of, init_linear
from lsmfm_jax.train.weights import read_weights, write_weights

pytestmark = pytest.mark.filterwarnings("ignore")


def swin_run(folder):
    """A SwinUNETR as small as can be, on a scale that the format does not know."""
    network = Network(backbone_of(SWIN))
    params, stats = jax.jit(lambda key: network.init(key, (32, 32, 32)))(jax.random.key(0))
    head = jax.tree.map(lambda leaf: 10 * leaf, init_linear(jax.random.key(1), SWIN["out_channels"], 1))
    record = {**RECORD, "architecture": SWIN, "task": "segment", "patch_size": [32, 32, 32]}
    write_weights(
        folder,
        record={**record, "scaling": {"name": "local"}, "network_cut_off": {"logit": 0.25}},
        params={"backbone": params, "head": head},
        batch_stats={"backbone": stats},
    )
    return folder


def calibrated_run(folder):
    """A UNet on raw counts, its logit cut and shifted."""
    run = read_weights(make_run(folder.with_name("plain"), "segment"))
    record = {**run.record, "network_cut_off": {"logit": 0.25}, "logit_shift": -0.5}
    write_weights(folder, record=record, params=run.params, batch_stats=run.batch_stats)
    return folder


@pytest.fixture(scope="module", params=[calibrated_run, swin_run])
def package(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bioimageio")
    run = request.param(folder / "run")
    package_for_bioimageio(run, folder / "cells", stated=Stated("CC-BY-4.0", ("A. Alpha",)))
    return folder / "cells"


@pytest.fixture
def bioimageio(tmp_path, monkeypatch):
    """The libraries, which need no network but to look whether the paper's address exists: it is said to be known."""
    monkeypatch.setenv("BIOIMAGEIO_CACHE_PATH", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        core = pytest.importorskip("bioimageio.core")
        spec = pytest.importorskip("bioimageio.spec")
    with spec.ValidationContext(known_files={PAPER_URL: None}):
        yield spec, core


def test_the_description_is_valid_and_the_model_passes_its_test(package, bioimageio):
    spec, core = bioimageio
    checked = spec.load_description(package / "rdf.yaml")
    assert isinstance(checked, spec.model.v0_5.ModelDescr), checked.validation_summary
    assert checked.license == "CC-BY-4.0"
    summary = core.test_model(package / "rdf.yaml", weight_format="pytorch_state_dict", devices=["cpu"])
    told = [(detail.name, detail.status, [error.msg for error in detail.errors]) for detail in summary.details]
    assert summary.status == "passed", told
    assert any("Reproduce test outputs" in name for name, _, _ in told)


def test_a_wrong_output_does_not_pass(package, bioimageio, tmp_path):
    """The test above compares values: with an output that is another one it fails."""
    _, core = bioimageio
    broken = shutil.copytree(package, tmp_path / "broken")
    output = np.load(broken / "test_output.npy")
    np.save(broken / "test_output.npy", np.clip(output + 0.05, 0, 1))
    described = yaml.safe_load((broken / "rdf.yaml").read_text())
    described["outputs"][0]["test_tensor"].pop("sha256")
    (broken / "rdf.yaml").write_text(yaml.safe_dump(described))
    summary = core.test_model(broken / "rdf.yaml", devices=["cpu"], stop_early=True)
    assert summary.status != "passed"
    said = [error.msg for detail in summary.details for error in detail.errors]
    assert any("disagree with expected values" in message for message in said), said


def test_pytorch_gives_what_jax_gives(package, bioimageio):
    """Closer than the thousandth that bioimage.io's test allows."""
    spec, _ = bioimageio
    from bioimageio.core.backends.pytorch_backend import load_torch_model

    described = spec.load_description(package / "rdf.yaml")
    network = load_torch_model(described.weights.pytorch_state_dict, load_state=True).eval()
    given, expected = (np.load(package / f"test_{name}.npy") for name in ("input", "output"))
    if described.inputs[0].preprocessing and given.max() > 1:
        low, high = np.percentile(given, [1, 99])
        given = np.clip((given - low) / (high - low), 0, 1).astype(np.float32)
    with torch.no_grad():
        found = torch.sigmoid(network(torch.from_numpy(given))).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5)
