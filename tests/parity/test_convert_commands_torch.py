"""Exported files in PyTorch: MONAI loads them strictly and gives our outputs, and its files come in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from monai.networks.nets import SwinUNETR, UNet
from safetensors.torch import load_file

from lsmfm_jax.cli import main
from lsmfm_jax.tasks.segment import build_segmenter
from lsmfm_jax.train.weights import read_weights, write_weights

SIDE = {"unet": 16, "swin_unetr": 64}
TOLERANCE = 1e-4  # of the largest output


def theirs(name, *, out_channels=6):
    """A small MONAI network; a UNet with statistics that are not those of a new one."""
    torch.manual_seed(0)
    if name == "swin_unetr":
        return SwinUNETR(in_channels=1, out_channels=out_channels, feature_size=12).eval()
    network = UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=out_channels,
        channels=(4, 8, 12),
        strides=(2, 1),
        num_res_units=2,
        norm="batch",
    )
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(2, 1, 8, 8, 8) + 1)
    return network.eval()


@pytest.fixture(scope="module", params=SIDE)
def imported(request, tmp_path_factory):
    """A MONAI network, saved by torch and imported from the command line."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    network = theirs(name)
    torch.save(network.state_dict(), folder / "theirs.pt")
    assert main(["convert", "import", str(folder / "theirs.pt"), "--out", str(folder / "run")]) == 0
    return name, network, folder


def output(network, x):
    with torch.no_grad():
        return np.moveaxis(network(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).numpy(), 1, -1)


def close(ours, expected):
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE * np.abs(expected).max(), rtol=0)


def test_export_loads_strictly_and_is_bitwise_what_came_in(imported):
    name, network, folder = imported
    for file in ("back.pt", "back.safetensors"):
        assert main(["convert", "export", str(folder / "run"), "--out", str(folder / file)]) == 0
        path = folder / file
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        other = theirs(name)
        other.load_state_dict(state, strict=True)
        for key, value in network.state_dict().items():
            assert torch.equal(state[key], value), key
            assert state[key].dtype == value.dtype, key


def test_a_segmentation_run_gives_its_probabilities_in_pytorch(imported):
    name, _, folder = imported
    weights = read_weights(folder / "run")
    rng = np.random.default_rng(0)
    head = {
        "kernel": rng.normal(size=(6, 1)).astype(np.float32),
        "bias": rng.normal(size=1).astype(np.float32),
    }
    record = {"task": "segment", "architecture": weights.architecture}
    params = {**weights.params, "head": head}
    write_weights(folder / "segment", record=record, params=params, batch_stats=weights.batch_stats)
    assert main(["convert", "export", str(folder / "segment"), "--out", str(folder / "segment.pt")]) == 0

    network = theirs(name, out_channels=1 if name == "swin_unetr" else 6)
    network.load_state_dict(torch.load(folder / "segment.pt", weights_only=True), strict=True)
    if name == "unet":
        last = torch.nn.Conv3d(6, 1, 1)
        last.load_state_dict(torch.load(folder / "segment_head.pt", weights_only=True), strict=True)
        network = torch.nn.Sequential(network, last)
    x = rng.random((1, *(SIDE[name],) * 3, 1), dtype=np.float32)
    apply = jax.jit(build_segmenter(record))
    ours = apply(*jax.tree.map(jnp.asarray, (params, weights.batch_stats)), jnp.asarray(x))
    close(ours, 1 / (1 + np.exp(-output(network, x))))


def test_lightning_export_is_read_by_torch(shared, tmp_path):
    file = shared / "golden" / "unet_image_text_tiny.ckpt"
    assert main(["convert", "import", str(file), "--out", str(tmp_path / "run")]) == 0
    out = tmp_path / "again.ckpt"
    assert main(["convert", "export", str(tmp_path / "run"), "--out", str(out), "--layout", "lightning"]) == 0
    original = torch.load(file, weights_only=False)
    ours = torch.load(out, weights_only=True)
    assert ours["state_dict"].keys() == original["state_dict"].keys()
    for key, value in original["state_dict"].items():
        assert torch.equal(ours["state_dict"][key], value), key
    sizes, theirs_sizes = ours["hyper_parameters"]["model"], original["hyper_parameters"]["model"]
    assert sizes["embed_dim"] == theirs_sizes["embed_dim"]
    assert sizes["unet"]["channels"] == theirs_sizes["unet"]["channels"]


def test_a_file_with_code_is_refused(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    file = tmp_path / "trap.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "trap": Trap()}, file)
    assert main(["convert", "import", str(file), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "exec" in message and "which is code" in message
    assert not (tmp_path / "ran").exists()
