"""`lsmfm convert import` on files that are damaged or made to harm: one error of ours, soon, or a right import."""

import json
import pathlib
import pickle
import random
import resource
import struct
import time
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsmfm_jax.cli import main
from lsmfm_jax.convert import checks, importing, unet
from lsmfm_jax.convert.importing import import_checkpoint
from lsmfm_jax.convert.torch_files import TorchFileError, read_torch_file, write_torch_file
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.models import build_backbone

SIZES = {"channels": (4, 6, 8), "strides": (2, 1), "num_res_units": 2, "out_channels": 5, "norm": "batch"}
# Of the processor. A file that is believed costs minutes; the slack is for machines that do several things at once.
MOST_SECONDS = 10.0
MOST_BYTES = 500e6


@pytest.fixture(scope="module")
def state():
    """The state dict of a small UNet, as MONAI names it."""
    network = build_backbone("unet", **SIZES)
    volume = jax.ShapeDtypeStruct((1, 4, 4, 4, 1), jnp.float32)
    shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), volume)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) ** 2 + 0.1, shapes)
    return unet.to_torch(drawn, batches_tracked=3)


@pytest.fixture
def import_only(monkeypatch):
    """Importing without its slow ends, the writing of weights and the tracing of a network it has traced before."""
    traced, backbone_shapes = {}, checks.backbone_shapes

    def remembered(name, architecture):
        key = (name, repr(sorted(architecture.items())))
        if key not in traced:
            traced[key] = backbone_shapes(name, architecture)
        return dict(traced[key])

    found = {}
    monkeypatch.setattr(checks, "backbone_shapes", remembered)
    monkeypatch.setattr(importing, "write_weights", lambda folder, **parts: found.update(parts))
    return found


def outcome(file: pathlib.Path, out: pathlib.Path) -> str | None:
    """Import within the limits of time and memory; the one-line message of our error, or None."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.process_time()
    try:
        import_checkpoint(file, out)
        message = None
    except LsmfmError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 1500, message[:300]
        assert str(file) in message or str(out) in message
        assert not out.exists()
    assert time.process_time() - start < MOST_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MOST_BYTES
    return message


def mutated(data: bytes, draw: random.Random) -> bytes:
    bad = bytearray(data)
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(bad))
        action = draw.randrange(5)
        if action <= 1:
            bad[at] ^= 1 << draw.randrange(8)
        elif action == 2:
            bad[at] = draw.randrange(256)
        elif action == 3:
            del bad[at : at + draw.randrange(1, 40)]
        else:
            bad[at:at] = bad[at : at + draw.randrange(1, 40)]
    return bytes(bad[: draw.randrange(len(bad))] if draw.random() < 0.15 else bad)


def repacked(base: pathlib.Path, pickled: bytes, target: pathlib.Path) -> pathlib.Path:
    """The archive with another pickle, its checksums right."""
    with zipfile.ZipFile(base) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return target


def test_240_changed_files_are_refused_or_read_right(state, import_only, tmp_path):
    metadata = {"epoch": 3, "hyper_parameters": {"lr": 0.1, "sizes": [1, 2, (3, None)], "names": {"a": "b"}}}
    write_torch_file(tmp_path / "base.pt", state, metadata=metadata)
    write_torch_file(tmp_path / "base.safetensors", state)
    whole, pickled = {}, zipfile.ZipFile(tmp_path / "base.pt").read("archive/data.pkl")
    for suffix in (".pt", ".safetensors"):
        whole[suffix] = (tmp_path / f"base{suffix}").read_bytes()
    wanted = unet.from_torch(state)["params"]
    draw, reads, refusals = random.Random(11), 0, 0
    for case in range(240):
        kind = ("archive", ".safetensors", "pickle")[case % 3]
        file, out = tmp_path / f"case{case}", tmp_path / f"out{case}"
        if kind == "pickle":
            file = repacked(tmp_path / "base.pt", mutated(pickled, draw), file.with_suffix(".pt"))
        else:
            # Half of the changes of a safetensors file in its header, which is small beside the values.
            suffix = ".pt" if kind == "archive" else kind
            split = 2000 if kind == ".safetensors" and case % 2 else len(whole[suffix])
            file = file.with_suffix(suffix)
            file.write_bytes(mutated(whole[suffix][:split], draw) + whole[suffix][split:])
        import_only.clear()
        if outcome(file, out) is not None:
            refusals += 1
            continue
        reads += 1
        found = import_only["params"]["backbone"]
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, wanted)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
        if kind == "archive":  # its checksums cover the values
            jax.tree.map(np.testing.assert_array_equal, found, wanted)
        file.unlink()
    assert refusals > 100 and reads > 10, (refusals, reads)


# --- pickles that are small and ask for much ---

LEVELS = 60


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def doubled(leaf: bytes, pair: bytes) -> bytes:
    """A value of 2^60 leaves in a few hundred bytes: each level holds the one before twice. The last is memo 0."""
    return leaf + b"q\x00" + b"".join(pair.replace(b"@", b"h\x00") + b"q\x00" for _ in range(LEVELS))


def filled_later(depth: int) -> bytes:
    """Lists made empty, each put twice into the one before, so that no list has content when it is shared."""
    made = b"".join(b"]q" + bytes([level]) for level in range(depth))
    return made + b"".join(b"h%c(h%ch%ce" % (level, level + 1, level + 1) for level in range(depth - 1))


SHARED = {
    "tuples": doubled(b")", b"@@\x86"),
    "lists": doubled(b"]", b"](@@e"),
    "dictionaries": doubled(b"}", b"}(" + text("a") + b"@" + text("b") + b"@u"),
    "ordered": doubled(
        b")", b"ccollections\nOrderedDict\n](" + (text("a") + b"@\x86") + (text("b") + b"@\x86") + b"e\x85R"
    ),
    "lists filled later": filled_later(60),
    "a list in itself": b"]q\x00h\x00a",
    "a wide list used often": b"](" + b"N" * 20_000 + b"eq\x00](" + b"h\x00" * 20_000 + b"e",
}
CALLS = {
    "path": b"cpathlib\nPosixPath\n@\x85R",
    "device": b"ctorch\ndevice\n@\x85R",
    "size": b"ctorch\nSize\n@\x85R",
    "set": b"cbuiltins\nset\n@\x85R",
    "dictionary": b"ccollections\nOrderedDict\n@\x85R",
    "bytes": b"c_codecs\nencode\n@" + text("latin1") + b"\x86R",
    "numpy dtype": b"cnumpy\ndtype\n@\x85R",
    "numpy scalar": b"cnumpy.core.multiarray\nscalar\n@@\x86R",
    "persistent reference": b"(" + text("storage") + b"@" + text("0") + text("cpu") + b"K\x01tQ",
    "storage itself": b"@Q",
    "key": b"}@K\x01s",
    "name": b"@@\x93",
    "parameter": b"ctorch._utils\n_rebuild_parameter\n@\x85R",
    "tensor": b"ctorch._utils\n_rebuild_tensor_v2\n(@@@@@@tR",
    "state": b"ccollections\nOrderedDict\n)R@b",
}
OTHERS = {
    "a far memo index": b"Nr\xf0\xff\xff\x7f",
    "a long integer": b"\x8b\xff\xff\xff\x7f\x01",
    "long bytes": b"\x8e" + b"\xff" * 7 + b"\x01",
    "long text": b"\x8d\x00\x00\x00\x00\x01\x00\x00\x00",
    "a frame past the end": b"\x95\x00\x00\x00\x00\xff\x00\x00\x00N",
    "a mutable buffer": b"\x96\x00\x00\x00\x00\x01\x00\x00\x00",
    "an extension code": b"\x82\x01",
    "a reconstructor": b"ccopyreg\n_reconstructor\nc__builtin__\nobject\nc__builtin__\nobject\nN\x87R",
    "a new object": b"ccollections\nOrderedDict\n)\x81",
    "an instance": b"(ios\nsystem\n",
    "attributes of a known name": b"ctorch._utils\n_rebuild_tensor_v2\nN}" + text("__call__") + b"K\x01s\x86b",
    "a deep tuple": b")" + b"\x85" * 30_000,
    "keys of one hash": b"}("
    + b"".join(b"\x8a\x14" + ((2**61 - 1) * (2**80 + k)).to_bytes(20, "little") + b"N" for k in range(9000))
    + b"u",
    "many copies of one list": b"](" + b"K\x01" * 3000 + b"eq\x00(" + b"cbuiltins\nset\nh\x00\x85R" * 3000 + b"t",
    "many copies of one text": text("x" * 50_000)
    + b"q\x00("
    + (b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R") * 30_000
    + b"t",
}  # fmt: skip


def crafted() -> dict[str, bytes]:
    cases = dict(SHARED) | OTHERS
    for name, call in CALLS.items():
        for nesting in ("tuples", "lists"):
            cases[f"{name} of nested {nesting}"] = SHARED[nesting] + call.replace(b"@", b"h\x00")
    # In a list, as none of them leaves one value alone on the stack.
    return {name: b"](" + value + b"e" for name, value in cases.items()}


@pytest.mark.parametrize("where", ["hyper_parameters", "lsmfm_jax", "root"])
@pytest.mark.parametrize("name", crafted())
def test_pickles_that_ask_for_much_end_soon(state, import_only, tmp_path, name, where):
    """Beside the weights of a whole network, so that a harmless one is read, in every entry that is looked at."""
    write_torch_file(tmp_path / "base.pt", state, metadata={"epoch": 1})
    pickled = zipfile.ZipFile(tmp_path / "base.pt").read("archive/data.pkl")
    value = crafted()[name]
    if where == "root":
        content = b"\x80\x02" + value + b"."
    else:
        assert pickled.endswith(b"u.")
        content = pickled[:-2] + text(where) + value + b"u."
    outcome(repacked(tmp_path / "base.pt", content, tmp_path / "crafted.pt"), tmp_path / "out")


def test_nothing_of_a_crafted_file_is_run(tmp_path, state):
    class Evil:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "trace",))

    write_torch_file(tmp_path / "base.pt", state)
    file = repacked(tmp_path / "base.pt", pickle.dumps({"state_dict": {}, "a": Evil()}, 4), tmp_path / "evil.pt")
    with pytest.raises(TorchFileError, match="code and not data"):
        import_checkpoint(file, tmp_path / "out")
    assert not (tmp_path / "trace").exists()


def test_shared_metadata_is_read_and_stays_shared(tmp_path, state):
    """What exhausted the memory before is harmless: an optimizer's groups often share one dictionary."""
    write_torch_file(tmp_path / "base.pt", state, metadata={"epoch": 1})
    pickled = zipfile.ZipFile(tmp_path / "base.pt").read("archive/data.pkl")
    content = pickled[:-2] + text("groups") + b"](" + doubled(b"]", b"](@@e") + b"e" + b"u."
    file = repacked(tmp_path / "base.pt", content, tmp_path / "shared.pt")
    groups = read_torch_file(file).metadata["groups"]
    assert len(groups) == LEVELS + 1 and groups[-1][0] is groups[-1][1] is groups[-2]


# --- archives that announce more than they hold ---


def test_archives_that_announce_more_than_the_file_are_refused(tmp_path, state):
    write_torch_file(tmp_path / "base.pt", state)
    data = bytearray((tmp_path / "base.pt").read_bytes())
    at = data.index(b"PK\x01\x02")
    struct.pack_into("<II", data, at + 20, 2**31, 2**31)
    (tmp_path / "bomb.pt").write_bytes(data)
    with pytest.raises(TorchFileError, match="its entries announce 2,147"):
        read_torch_file(tmp_path / "bomb.pt")
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"N0" * 10_000_000 + b".")
    with pytest.raises(TorchFileError, match=r"packed\.pt.*(announce|compressed)"):
        read_torch_file(tmp_path / "packed.pt")


def test_many_views_of_one_storage_are_bounded(tmp_path):
    """Two names of one tensor are usual; hundreds of them would be copied into as much memory."""
    big = np.zeros(1_000_000, np.float32)
    write_torch_file(tmp_path / "tied.pt", {"a": big, "b": big, "c": big})
    assert len(read_torch_file(tmp_path / "tied.pt").state) == 3
    write_torch_file(tmp_path / "many.pt", {f"a{k}": big for k in range(300)})
    assert (tmp_path / "many.pt").stat().st_size < 5e6
    with pytest.raises(TorchFileError, match=r"many\.pt.*expanded"):
        read_torch_file(tmp_path / "many.pt")


# --- tensors that make no network ---


def refused(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    return printed


def test_every_tensor_of_another_shape_is_named(state, import_only, tmp_path):
    """One axis longer, one more axis, one fewer, none: the message has the key."""
    draw = np.random.default_rng(5)
    keys = [key for key in state if not key.endswith("num_batches_tracked")]
    for key in draw.choice(keys, 24, replace=False):
        value = state[key]
        changes = [np.concatenate([value, value[:1]]), value[None], value[0], value.reshape(-1), value[:0]]
        changed = changes[draw.integers(len(changes))]
        if changed.shape == value.shape:
            continue
        write_torch_file(tmp_path / "net.pt", {**state, str(key): changed})
        message = outcome(tmp_path / "net.pt", tmp_path / "out")
        assert message is not None and key in message, (key, changed.shape, message)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.bool_, np.int8, np.float64])
def test_weights_that_are_no_float32_are_named(state, tmp_path, capsys, dtype):
    key = "model.1.submodule.0.conv.unit1.conv.weight"
    for suffix in (".pt", ".safetensors"):
        write_torch_file(tmp_path / f"net{suffix}", {**state, key: np.ones(state[key].shape, dtype)})
        printed = refused(capsys, "convert", "import", tmp_path / f"net{suffix}", "--out", tmp_path / "out")
        assert f"{key} ({np.dtype(dtype)})" in printed and f"net{suffix}" in printed
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [np.float32(3), np.int32(3), np.int64(-1), np.zeros(2, np.int64)])
def test_counters_that_are_no_counts_are_named(state, tmp_path, value):
    key = next(key for key in state if key.endswith("num_batches_tracked"))
    write_torch_file(tmp_path / "net.pt", {**state, key: np.asarray(value)})
    with pytest.raises(importing.ConversionError, match=f"{key} has dtype"):
        import_checkpoint(tmp_path / "net.pt", tmp_path / "out")


def test_a_wide_window_is_compared_before_its_index_is_made(tmp_path):
    """The table of a window of 50 is small; its index would take 125 GB."""
    state = {
        f"swinViT.layers{i}.0.blocks.0.attn.relative_position_bias_table": np.zeros((99**3, 1), np.float16)
        for i in range(1, 5)
    }
    state |= {
        f"swinViT.layers{i}.0.blocks.0.attn.relative_position_index": np.zeros((2, 2), np.int64) for i in range(1, 5)
    }
    state |= {f"swinViT.layers{i}.0.blocks.0.norm1.weight": np.zeros(12, np.float16) for i in range(1, 5)}
    state["swinViT.patch_embed.proj.weight"] = np.zeros((12, 1, 2, 2, 2), np.float16)
    state["out.conv.conv.weight"] = np.zeros((5, 12, 1, 1, 1), np.float16)
    write_torch_file(tmp_path / "net.pt", state)
    assert outcome(tmp_path / "net.pt", tmp_path / "out") is not None


def test_damaged_notes_are_refused(state, import_only, tmp_path):
    for note in (
        "{", "[1]", '{"architecture": 3}', '{"architecture": {"merging": "none"}}', '{"text_heads": "many"}',
        '{"text_heads": 0}', '{"architecture": {"strides": ["2", 1]}}', '{"architecture": {"strides": [2, [1]]}}',
        '{"architecture": {"strides": [1, 1]}}', '{"architecture": {"strides": [2]}}', "[" * 100_000,
    ):  # fmt: skip
        write_torch_file(tmp_path / "net.safetensors", state, metadata={"lsmfm_jax": note})
        assert outcome(tmp_path / "net.safetensors", tmp_path / "out") is not None, note
    write_torch_file(tmp_path / "net.safetensors", state, metadata={"lsmfm_jax": json.dumps({"architecture": {}})})
    assert outcome(tmp_path / "net.safetensors", tmp_path / "out") is None


# --- where it is written ---


def test_an_import_never_adds_to_a_folder_that_holds_something(state, tmp_path, capsys):
    write_torch_file(tmp_path / "net.pt", state)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("notes", "file", "link"):
        printed = refused(capsys, "convert", "import", tmp_path / "net.pt", "--out", tmp_path / name)
        assert f"/{name}: " in printed and "there" in printed
    assert (tmp_path / "notes" / "text.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "link", "net.pt", "notes"]
    printed = refused(capsys, "convert", "import", tmp_path / "net.pt", "--out", tmp_path / "file" / "run")
    assert "could not be written" in printed
    (tmp_path / "empty").mkdir()
    assert main(["convert", "import", str(tmp_path / "net.pt"), "--out", str(tmp_path / "empty")]) == 0
    for name in ("net.pt", "link", "notes"):
        out = tmp_path / f"{name}.pt" if name != "net.pt" else tmp_path / name
        if name != "net.pt":
            (tmp_path / name).rename(out)
        printed = refused(capsys, "convert", "export", tmp_path / "empty", "--out", out)
        assert "is there already" in printed
    printed = refused(capsys, "convert", "export", tmp_path / "empty", "--out", tmp_path / "file" / "net.pt")
    assert "cannot be written" in printed


def test_a_full_disk_leaves_nothing(state, tmp_path, monkeypatch, capsys):
    write_torch_file(tmp_path / "net.pt", state)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(importing, "write_weights", full)
        printed = refused(capsys, "convert", "import", tmp_path / "net.pt", "--out", tmp_path / "run")
    assert "the disk is full" in printed and "run" in printed
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.pt"]
