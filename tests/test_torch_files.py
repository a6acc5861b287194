"""Torch checkpoints read as plain data: golden files, round trips, and files that try to do more."""

import io
import pathlib
import pickle
import random
import zipfile

import ml_dtypes
import numpy as np
import pytest

from lsmfm_jax.convert.torch_files import TorchFileError, read_torch_file, write_torch_file
from lsmfm_jax.convert.torch_records import TensorRecord

STATE = {
    "scale": np.array(2.5, np.float32),
    "weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "half": np.array([1.5, -2], np.float16),
    "brain": np.array([1.5, -2, 3e38], ml_dtypes.bfloat16),
    "steps": np.array(7, np.int64),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float64),
}


def assert_same(found: dict, wanted: dict) -> None:
    assert list(found) == list(wanted)
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype and found[name].shape == wanted[name].shape
        assert found[name].tobytes() == wanted[name].tobytes()


def repack(path, change, target):
    """Copy a torch archive, each entry's bytes passed through `change(name, data)`; None drops the entry."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def with_pickle(tmp_path, data: bytes):
    """An archive whose pickle is `data`."""
    write_torch_file(tmp_path / "base.pt", STATE)
    target = tmp_path / "changed.pt"
    return repack(tmp_path / "base.pt", lambda name, old: data if name.endswith("data.pkl") else old, target)


@pytest.mark.parametrize(
    "metadata", [None, {"epoch": 3, "hyper_parameters": {"a": [1, 2.5, None, "x", (True, 2**40)]}}]
)
def test_round_trip_is_bitwise(tmp_path, metadata):
    write_torch_file(tmp_path / "a.ckpt", STATE, metadata=metadata)
    found = read_torch_file(tmp_path / "a.ckpt")
    assert_same(found.state, STATE)
    assert found.metadata == (metadata or {})
    assert all(array.flags.writeable for array in found.state.values())
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


def test_safetensors_round_trip(tmp_path):
    write_torch_file(tmp_path / "a.safetensors", STATE, metadata={"arch": "unet"})
    found = read_torch_file(tmp_path / "a.safetensors")
    assert_same({name: found.state[name] for name in STATE}, STATE)
    assert found.metadata == {"arch": "unet"}
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-3])
    with pytest.raises(TorchFileError, match=r"cut\.safetensors: damaged"):
        read_torch_file(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(("name", "tensors"), [("unet", 235), ("swinunetr", 393)])
def test_golden_lightning_checkpoints(shared, name, tensors):
    found = read_torch_file(shared / "golden" / f"{name}_image_text_tiny.ckpt")
    assert len(found.state) == tensors
    teachers = [key for key in found.state if key.startswith("teacher_encoder.")]
    assert teachers
    for key in teachers:
        assert found.state[key].shape == found.state[key.replace("teacher", "student", 1)].shape
    assert found.state["logit_scale"].shape == () and np.isfinite(found.state["logit_scale"])
    assert found.metadata["hyper_parameters"]["training"]["seed"] == 100


def test_tied_tensors_stay_one_storage(tmp_path):
    tied = np.arange(1000, dtype=np.float32)
    write_torch_file(tmp_path / "a.pt", {"a": tied, "b": tied})
    assert (tmp_path / "a.pt").stat().st_size < 6000
    assert_same(read_torch_file(tmp_path / "a.pt").state, {"a": tied, "b": tied})


def test_big_endian_file(tmp_path):
    write_torch_file(tmp_path / "little.pt", {"weight": STATE["weight"]})

    def swap(name, data):
        if name.endswith("byteorder"):
            return b"big"
        return np.frombuffer(data, "<u4").astype(">u4").tobytes() if "/data/" in name else data

    found = read_torch_file(repack(tmp_path / "little.pt", swap, tmp_path / "big.pt"))
    assert_same(found.state, {"weight": STATE["weight"]})


class Evil:
    """Pickles to a call that would leave a trace."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["state", "metadata", "root"])
def test_a_pickle_that_calls_something_is_refused_by_name(tmp_path, protocol, place):
    evil = Evil(exec, f"open({str(tmp_path / 'trace')!r}, 'w')")
    content = {
        "state": {"state_dict": {"a": evil}},
        "metadata": {"state_dict": {}, "epoch": evil},
        "root": evil,
    }
    path = with_pickle(tmp_path, pickle.dumps(content[place], protocol))
    with pytest.raises(TorchFileError, match=r"changed\.pt.*(exec|instruction)"):
        read_torch_file(path)
    assert not (tmp_path / "trace").exists()


def test_storage_names_and_known_names_cannot_be_misused(tmp_path):
    for data in [
        b"ctorch\nFloatStorage\n)R.",  # a storage type called
        b"ccollections\nOrderedDict\n(K\x01K\x02tR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n}U\x0b__globals__}sb.",  # attributes set on a known name
        b"c__builtin__\nset\n((K\x01ttR0.",
        b"]]a" + b"\x85" * 10_000 + b"}q\x00.",
        b"}" + b")" + b"\x85" * 20_000 + b"K\x01s.",  # a key too deep to hash
        b"\x80\x02]q\x00h\x00a.",  # a list in itself
        b"}X\x05\x00\x00\x00epoch]q\x00h\x00asX\x0a\x00\x00\x00state_dict}s.",
    ]:
        with pytest.raises(TorchFileError):
            read_torch_file(with_pickle(tmp_path, data))


def test_fuzzed_pickles_end_in_our_error(tmp_path, monkeypatch):
    """Bytes of a good pickle replaced, cut, doubled: read or refused, never another exception."""
    write_torch_file(tmp_path / "base.pt", STATE, metadata={"epoch": 3})
    good = zipfile.ZipFile(tmp_path / "base.pt").read("archive/data.pkl")
    draw = random.Random(0)
    refused = 0
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(len(bad))
            action = draw.randrange(3)
            if action == 0:
                bad[at] = draw.randrange(256)
            elif action == 1:
                del bad[at : at + draw.randrange(1, 20)]
            else:
                bad[at:at] = bad[at : at + draw.randrange(1, 40)]
        try:
            read_torch_file(with_pickle(tmp_path, bytes(bad)))
        except TorchFileError:
            refused += 1
    assert refused > 50


def test_tensor_records_out_of_bounds_are_refused(tmp_path):
    good = zipfile.ZipFile(io.BytesIO(saved(tmp_path, {"weight": STATE["weight"]}))).read("archive/data.pkl")
    size = b"J\x18\x00\x00\x00"  # 24 elements, as the storage announces
    for old, new, message in [
        (b"(J\x02\x00\x00\x00J\x03", b"(J\x03\x00\x00\x00J\x03", "outside its storage"),
        (b"(J\x0c\x00\x00\x00", b"(J\xf4\xff\xff\xff", "strides"),
        (size, b"J\x19\x00\x00\x00", "bytes where 100 are announced"),
        (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009", "missing"),
        (b"X\x01\x00\x00\x000", b"X\x02\x00\x00\x00..", "bad name"),
    ]:
        assert good.count(old) == 1
        with pytest.raises(TorchFileError, match=message):
            read_torch_file(with_pickle(tmp_path, good.replace(old, new)))


def saved(tmp_path, state) -> bytes:
    write_torch_file(tmp_path / "saved.pt", state)
    return (tmp_path / "saved.pt").read_bytes()


def test_an_expanded_tensor_cannot_fill_the_memory(tmp_path):
    good = zipfile.ZipFile(io.BytesIO(saved(tmp_path, {"a": np.zeros(1, np.float32)}))).read("archive/data.pkl")
    huge = good.replace(
        b"(J\x01\x00\x00\x00t(J\x01\x00\x00\x00t", b"(\x8a\x06\x00\x00\x00\x00\x00\x01t(J\x00\x00\x00\x00t"
    )
    assert huge != good
    with pytest.raises(TorchFileError, match="expanded"):
        read_torch_file(with_pickle(tmp_path, huge))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before 1.6"),
        (b"\0" * 257 + b"ustar" + b"\0" * 300, "before 1.6"),
        (b"hello", "not a torch checkpoint"),
        (b"", "not a torch checkpoint"),
        (pickle.dumps({"a": 1}), "bare pickle"),
        (pickle.dumps({"a": 1}, protocol=0), "not a torch checkpoint"),
    ],
)
def test_other_formats_are_named(tmp_path, data, message):
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(TorchFileError, match=rf"a\.pt: cannot be read: .*{message}"):
        read_torch_file(tmp_path / "a.pt")


def test_damage_is_named(tmp_path):
    whole = saved(tmp_path, STATE)
    for cut in (10, 200, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:cut])
        with pytest.raises(TorchFileError, match=r"cut\.pt"):
            read_torch_file(tmp_path / "cut.pt")
    flipped = bytearray(whole)
    flipped[whole.index(STATE["weight"].tobytes()) + 5] ^= 4
    (tmp_path / "flipped.pt").write_bytes(flipped)
    with pytest.raises(TorchFileError, match=r"flipped\.pt: damaged"):
        read_torch_file(tmp_path / "flipped.pt")
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        read_torch_file(tmp_path / "none.pt")


def test_foreign_archives_are_named(tmp_path):
    write_torch_file(tmp_path / "base.pt", STATE)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"}.")
    script = tmp_path / "script.pt"
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("a/data.pkl", b"}.")
        archive.writestr("a/constants.pkl", b").")
    for name, message in [
        ("other.zip", "not one written"),
        ("packed.pt", "compressed"),
        ("script.pt", "TorchScript"),
    ]:
        with pytest.raises(TorchFileError, match=message):
            read_torch_file(tmp_path / name)
    dropped = repack(
        tmp_path / "base.pt", lambda name, data: None if name.endswith("data/1") else data, tmp_path / "d.pt"
    )
    with pytest.raises(TorchFileError, match="'data/1' is missing"):
        read_torch_file(dropped)


def test_unknown_layouts_are_named(tmp_path):
    for content in ({"a": 1, "b": "x"}, {"state_dict": {"a": 3}}, {}, [1], {"state_dict": {}}):
        with pytest.raises(TorchFileError, match=r"changed\.pt"):
            read_torch_file(with_pickle(tmp_path, pickle.dumps(content, 2)))


def test_harmless_metadata_is_read(tmp_path):
    """What schedulers and callbacks leave behind: numpy scalars, sets, bytes, paths."""
    write_torch_file(tmp_path / "base.pt", STATE, metadata={"here": "x"})
    good = zipfile.ZipFile(tmp_path / "base.pt").read("archive/data.pkl")
    extra = {
        "loss": np.float64(0.25),
        "count": np.int32(3),
        "names": {"a", "b"},
        "raw": b"\x00\xff",
        "where": pathlib.PosixPath("/runs/a"),
    }
    text = pickle.dumps(extra, 2)[2:-1]
    path = with_pickle(tmp_path, good.replace(b"X\x01\x00\x00\x00x", text))
    assert read_torch_file(path).metadata["here"] == {**extra, "where": "/runs/a"}


def test_large_tensors_of_the_metadata_are_only_described(tmp_path):
    tensor = np.arange(6, dtype=np.float32)
    good = zipfile.ZipFile(io.BytesIO(saved(tmp_path, {"a": tensor}))).read("archive/data.pkl")[2:-1]
    text = b"\x80\x02}X\x0a\x00\x00\x00state_dict" + good + b"sX\x03\x00\x00\x00opt" + good + b"s."
    write_torch_file(tmp_path / "base.pt", {"a": tensor})
    target = tmp_path / "changed.pt"
    repack(tmp_path / "base.pt", lambda name, old: text if name.endswith("data.pkl") else old, target)
    found = read_torch_file(target)
    assert isinstance(found.metadata["opt"]["a"], TensorRecord) and found.metadata["opt"]["a"].shape == (6,)
    assert_same(found.state, {"a": tensor})


def test_what_cannot_be_written_is_named_and_leaves_no_file(tmp_path):
    with pytest.raises(TypeError, match=r"'bad' is complex64"):
        write_torch_file(tmp_path / "a.pt", {"bad": np.zeros(2, np.complex64)})
    with pytest.raises(TypeError, match=r"\['config'\] is a object"):
        write_torch_file(tmp_path / "a.pt", STATE, metadata={"config": object()})
    assert not list(tmp_path.iterdir())
