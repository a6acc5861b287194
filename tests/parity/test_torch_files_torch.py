"""Our torch file reader and writer against torch itself."""

from collections import OrderedDict

import numpy as np
import pytest

from lsmfm_jax.convert.torch_files import TorchFileError, read_torch_file, write_torch_file

torch = pytest.importorskip("torch")


def values(tensor):
    """A torch tensor's raw bytes, also for bfloat16, which numpy lacks."""
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert str(found[name].dtype) == str(tensor.dtype).removeprefix("torch.")
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].tobytes() == values(tensor).tobytes()


@pytest.fixture
def state():
    torch.manual_seed(0)
    base = torch.randn(4, 6, 5)
    return OrderedDict(
        transposed=base.transpose(0, 2),
        sliced=base[1:, ::2, 1],
        offset=base[2],
        expanded=torch.randn(3, 1).expand(3, 4),
        parameter=torch.nn.Parameter(torch.randn(3)),
        scalar=torch.tensor(3.5),
        **{
            str(dtype): torch.randint(0, 2, (3, 2)).to(dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32)
        },
        **{
            str(dtype): torch.randint(0, 2, (5,)).to(dtype)
            for dtype in (torch.int16, torch.int8, torch.uint8, torch.bool)
        },
        channels_last=torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        empty=torch.zeros(0, 2),
    )


@pytest.mark.parametrize("layout", ["plain", "state_dict", "model"])
def test_reads_what_torch_wrote(tmp_path, state, layout):
    torch.save(
        state if layout == "plain" else {layout: state, "epoch": 3, "best": torch.tensor(0.5)},
        tmp_path / "a.pt",
    )
    found = read_torch_file(tmp_path / "a.pt")
    assert_same(found.state, state)
    assert layout == "plain" or (found.metadata["epoch"] == 3 and found.metadata["best"] == 0.5)


def test_reads_a_module_with_tied_weights_and_its_optimizer(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    module[2].weight = module[0].weight
    optimizer = torch.optim.AdamW(module.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
    module(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": module.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float32,
    }
    torch.save(content, tmp_path / "a.ckpt")
    found = read_torch_file(tmp_path / "a.ckpt")
    assert_same(found.state, module.state_dict())
    assert found.metadata["lr_schedulers"][0]["milestones"] == {2: 1, 5: 1}
    assert found.metadata["size"] == (1, 2) and found.metadata["device"] == "cpu"
    assert found.metadata["optimizer_states"][0]["state"][0]["exp_avg"].shape == (3, 3)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("metadata", [None, {"epoch": 3, "hyper_parameters": {"rate": 1e-4, "sizes": [1, -(2**40)]}}])
def test_torch_reads_what_we_wrote(tmp_path, state, metadata, mmap):
    torch.save(state, tmp_path / "a.pt")
    write_torch_file(tmp_path / "b.pt", read_torch_file(tmp_path / "a.pt").state, metadata=metadata)
    back = torch.load(tmp_path / "b.pt", weights_only=True, mmap=mmap)
    if metadata is not None:
        assert back.pop("hyper_parameters") == metadata["hyper_parameters"] and back.pop("epoch") == 3
        back = back["state_dict"]
    assert list(back) == list(state)
    for name in state:
        assert back[name].dtype == state[name].dtype and torch.equal(back[name], state[name])


def test_a_module_loads_our_file_strictly(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2))
    state = {name: np.asarray(tensor.numpy()) + 1 for name, tensor in module.state_dict().items()}
    write_torch_file(tmp_path / "a.pt", state)
    module.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True), strict=True)
    np.testing.assert_array_equal(module[0].weight.detach().numpy(), state["0.weight"])


def test_whole_modules_and_old_files_are_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(TorchFileError, match=r"module\.pt.*torch\.nn\.modules\.linear\.Linear"):
        read_torch_file(tmp_path / "module.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(TorchFileError, match=r"old\.pt.*before 1\.6"):
        read_torch_file(tmp_path / "old.pt")


@pytest.mark.parametrize("name", ["unet", "swinunetr"])
def test_golden_checkpoints_as_torch_reads_them(shared, name):
    path = shared / "golden" / f"{name}_image_text_tiny.ckpt"
    wanted = torch.load(path, weights_only=True)
    found = read_torch_file(path)
    assert_same(found.state, wanted["state_dict"])
    assert found.metadata["hyper_parameters"] == wanted["hyper_parameters"]
