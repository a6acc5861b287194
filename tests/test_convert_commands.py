"""`lsmfm convert`: the released checkpoints in and out again, bit for bit, and what is refused."""

import contextlib
import io
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lsmfm_jax.cli import main
from lsmfm_jax.convert import swin_unetr, unet
from lsmfm_jax.convert.exporting import export_run
from lsmfm_jax.convert.importing import import_checkpoint
from lsmfm_jax.convert.pretraining import from_lightning
from lsmfm_jax.convert.torch_files import read_torch_file, write_torch_file
from lsmfm_jax.models import build_backbone
from lsmfm_jax.models.text import TextTower
from lsmfm_jax.models.text_directory import load_text_tower
from lsmfm_jax.train.weights import read_weights, write_weights

UNET = {"channels": (4, 8), "strides": (2,), "num_res_units": 2, "out_channels": 6, "norm": "batch"}
SWIN = {
    "out_channels": 5,
    "feature_size": 12,
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 1, 2, 2),
    "window": 2,
    "merging": "duplicated",
}
FILES = {"unet": "unet", "swin_unetr": "swinunetr"}


def random_like(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) ** 2 + 0.1, shapes)


def variables_of(name, sizes, *, side, seed=0):
    backbone = build_backbone(name, **sizes)
    volume = jax.ShapeDtypeStruct((1, side, side, side, 1), jnp.float32)
    init = lambda key, x: backbone.init(key, x, train=False)  # noqa: E731
    shapes = jax.eval_shape(init, jax.random.key(0), volume)
    return {"batch_stats": {}, **random_like(shapes, seed)}


@pytest.fixture(scope="module")
def networks():
    """Random variables of both backbones, small."""
    return {
        "unet": (UNET, variables_of("unet", UNET, side=8)),
        "swin_unetr": (SWIN, variables_of("swin_unetr", SWIN, side=32)),
    }


@pytest.fixture(scope="module", params=FILES)
def golden(request, shared, tmp_path_factory):
    """A released checkpoint, imported from the command line."""
    file = shared / "golden" / f"{FILES[request.param]}_image_text_tiny.ckpt"
    out = tmp_path_factory.mktemp("imported") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["convert", "import", str(file), "--out", str(out)]) == 0
    return request.param, file, out, printed.getvalue()


def same_states(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert (one[key].dtype, one[key].shape) == (other[key].dtype, other[key].shape), key
        assert one[key].tobytes() == other[key].tobytes(), key


def same_trees(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --- the released checkpoints ---


def test_released_checkpoint_comes_in_and_goes_out_bit_for_bit(golden, tmp_path, capsys):
    """What is read back is what `test_golden` holds to the golden features, losses and gradients."""
    name, file, run, printed = golden
    state = read_torch_file(file).state
    assert printed.startswith(f"coverage 100.00 %: {len(state)} of {len(state)} tensors")
    record = json.loads((run / "run.json").read_text())
    assert record["task"] == "pretrain" and record["architecture"]["name"] == name
    assert record["architecture"].get("merging", "duplicated") == "duplicated"
    weights, expected = read_weights(run), from_lightning(state, text_heads=4)
    same_trees(weights.params, expected.params)
    same_trees(weights.batch_stats, expected.batch_stats)
    assert {"name": name, **json.loads(json.dumps(expected.architecture))} == weights.architecture
    out = tmp_path / "again.ckpt"
    assert main(["convert", "export", str(run), "--out", str(out), "--layout", "lightning"]) == 0
    assert f"{len(state)} tensors" in capsys.readouterr().out
    same_states(read_torch_file(out).state, state)


@pytest.fixture(scope="module")
def golden_unet(shared, tmp_path_factory):
    """The released UNet, imported with student and teacher, and the golden arrays."""
    file = shared / "golden" / "unet_image_text_tiny.ckpt"
    out = tmp_path_factory.mktemp("unet") / "run"
    lines = import_checkpoint(file, out)
    assert any("statistics are those of a new network" in line for line in lines)
    return file, out, np.load(shared / "golden" / "unet_step.npz")


def test_teacher_is_taken_on_demand(golden_unet, tmp_path):
    file, run, _ = golden_unet
    import_checkpoint(file, tmp_path / "teacher", teacher=True)
    both, teacher = read_weights(run, teacher=True), read_weights(tmp_path / "teacher")
    same_trees(both.params["backbone"], teacher.params["backbone"])
    same_trees(both.batch_stats, teacher.batch_stats)
    state = read_torch_file(file).state
    ours = teacher.params["backbone"]["down_0"]["unit_0"]["conv"]["bias"]
    np.testing.assert_array_equal(ours, state["teacher_encoder.model.0.conv.unit0.conv.bias"])


def test_imported_weights_reproduce_the_golden_features_and_text(golden_unet):
    """Student in training mode on the masked volume, teacher in evaluation mode, as the released code has it."""
    _, run, arrays = golden_unet
    student, teacher = read_weights(run), read_weights(run, teacher=True)
    sizes = {key: tuple(v) if isinstance(v, list) else v for key, v in student.architecture.items()}
    backbone = build_backbone(**sizes)
    x, mask = (np.moveaxis(arrays[key], 1, -1) for key in ("x", "mask"))

    def features(weights, x, train):
        variables = {"params": weights.params["backbone"], "batch_stats": weights.batch_stats["backbone"]}
        variables = jax.tree.map(jnp.asarray, variables)
        out = backbone.apply(variables, jnp.asarray(x), train=train, mutable=["batch_stats"])[0]
        return np.asarray(out)[:, ::4, ::4, ::4]

    raw, target = features(student, np.where(mask, 0.0, x), True), features(teacher, x, False)
    ours = {
        "student_feats_raw": raw,
        "student_out_norm": raw / np.linalg.norm(raw, axis=-1, keepdims=True),
        "teacher_out_norm": target / np.linalg.norm(target, axis=-1, keepdims=True),
    }
    for key, value in ours.items():
        expected = np.moveaxis(arrays[key], 1, -1)
        np.testing.assert_allclose(value, expected, atol=1e-4 * np.abs(expected).max(), err_msg=key)

    text = load_text_tower(run / "text")
    assert text.config.num_heads == 4
    same_trees(text.params, student.params["text_tower"])
    tower = TextTower(text.config, pooling="all")
    tokens, real = arrays["tok_input_ids"].astype(np.int32), arrays["tok_attention_mask"].astype(bool)
    pooled = tower.apply({"params": jax.tree.map(jnp.asarray, text.params)}, jnp.asarray(tokens), jnp.asarray(real))
    np.testing.assert_allclose(pooled, arrays["text_pooled"], atol=1e-5)


def test_a_text_tower_of_unknown_heads_is_kept_and_said_so(golden_unet, tmp_path):
    file, run, _ = golden_unet
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(file.read_bytes())  # away from its text model
    lines = import_checkpoint(alone, tmp_path / "run")
    assert any("--text-model" in line for line in lines)
    assert not (tmp_path / "run" / "text").exists()
    same_trees(read_weights(tmp_path / "run").params["text_tower"], read_weights(run).params["text_tower"])
    lines = import_checkpoint(alone, tmp_path / "told", text_model=file.parent / "tiny_bert")
    assert any("text tower and tokenizer" in line for line in lines)
    assert (tmp_path / "told" / "text" / "vocab.txt").exists()


# --- plain networks ---


@pytest.mark.parametrize("name, suffix", [("unet", ".pt"), ("unet", ".safetensors"), ("swin_unetr", ".safetensors")])
def test_ours_to_theirs_to_ours_is_bitwise(networks, tmp_path, name, suffix):
    sizes, variables = networks[name]
    architecture = {"name": name, **sizes}
    run, file = tmp_path / "run", tmp_path / f"net{suffix}"
    params, stats = {"backbone": variables["params"]}, {"backbone": variables["batch_stats"]}
    write_weights(run, record={"task": "backbone", "architecture": architecture}, params=params, batch_stats=stats)
    lines = export_run(run, file)
    assert any("merging is duplicated" in line for line in lines) == (name == "swin_unetr")
    lines = import_checkpoint(file, tmp_path / "again")
    assert lines[0].startswith("coverage 100.00 %")
    again = read_weights(tmp_path / "again")
    same_trees(again.params, params)
    same_trees(again.batch_stats, stats)
    # In safetensors there is a place for the form of merging, which no tensor tells.
    assert again.architecture == json.loads(json.dumps(architecture))
    # And theirs again, now from what was imported.
    export_run(tmp_path / "again", tmp_path / f"twice{suffix}")
    same_states(read_torch_file(tmp_path / f"twice{suffix}").state, read_torch_file(file).state)


@pytest.mark.parametrize("asked, taken", [(None, "corrected"), ("duplicated", "duplicated")])
def test_merging_of_a_plain_state_dict_is_asked_for(networks, tmp_path, asked, taken):
    write_torch_file(tmp_path / "net.pt", swin_unetr.to_torch(networks["swin_unetr"][1]))
    lines = import_checkpoint(tmp_path / "net.pt", tmp_path / "run", merging=asked)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["architecture"]["merging"] == taken
    assert any("--merging says otherwise" in line for line in lines) == (asked is None)


def test_wrapped_and_half_precision_networks_are_read(networks, tmp_path):
    _, variables = networks["unet"]
    state = unet.to_torch(variables, batches_tracked=7)
    half = {
        f"module.{key}": value.astype(ml_dtypes.bfloat16) if value.dtype == np.float32 else value
        for key, value in state.items()
    }
    write_torch_file(tmp_path / "net.pth", half, metadata={"epoch": 3})
    lines = import_checkpoint(tmp_path / "net.pth", tmp_path / "run")
    assert any("widened to float32" in line for line in lines)
    weights = read_weights(tmp_path / "run")
    assert weights.record["imported"]["prefix"] == "module."
    assert weights.record["imported"]["batches_tracked"] == [7]
    rounded = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16).astype(np.float32), variables["params"])
    same_trees(weights.params["backbone"], rounded)


# --- heads ---


def finetuned(networks, folder, name, task, head, **facts):
    sizes, variables = networks[name]
    write_weights(
        folder,
        record={"task": task, "architecture": {"name": name, **sizes}, **facts},
        params={"backbone": variables["params"], "head": head},
        batch_stats={"backbone": variables["batch_stats"]},
    )
    return variables


def test_a_voxelwise_head_goes_into_the_last_convolution_of_a_swin_unetr(networks, tmp_path):
    head = random_like({"kernel": np.zeros((5, 1)), "bias": np.zeros(1)}, 3)
    variables = finetuned(networks, tmp_path / "run", "swin_unetr", "segment", head)
    lines = export_run(tmp_path / "run", tmp_path / "net.pt")
    assert any("logit of the foreground" in line for line in lines) and any("out_channels=1" in line for line in lines)
    state = read_torch_file(tmp_path / "net.pt").state
    assert not (tmp_path / "net_head.pt").exists()
    features = np.random.default_rng(0).normal(size=(7, 12))
    out = variables["params"]["out"]
    expected = (features @ out["kernel"] + out["bias"]) @ head["kernel"] + head["bias"]
    kernel = state["out.conv.conv.weight"][:, :, 0, 0, 0]
    np.testing.assert_allclose(features @ kernel.T + state["out.conv.conv.bias"], expected, rtol=1e-5)
    before = swin_unetr.to_torch(variables)
    same_states(
        {key: value for key, value in state.items() if not key.startswith("out.")},
        {key: value for key, value in before.items() if not key.startswith("out.")},
    )


@pytest.mark.parametrize("task, width, shape", [("segment", 6, (1, 6, 1, 1, 1)), ("classify", 8, (1, 8))])
def test_other_heads_are_files_of_their_own(networks, tmp_path, task, width, shape):
    head = random_like({"kernel": np.zeros((width, 1)), "bias": np.zeros(1)}, 3)
    variables = finetuned(networks, tmp_path / "run", "unet", task, head)
    lines = export_run(tmp_path / "run", tmp_path / "net.safetensors")
    assert any("the head is a file of its own" in line for line in lines)
    same_states(read_torch_file(tmp_path / "net.safetensors").state, unet.to_torch(variables))
    state = read_torch_file(tmp_path / "net_head.safetensors").state
    assert state["weight"].shape == shape
    np.testing.assert_array_equal(state["weight"].reshape(1, width), head["kernel"].T)
    np.testing.assert_array_equal(state["bias"], head["bias"])


@pytest.mark.parametrize("name, inputs", [("unet", 6), ("swin_unetr", 5)])
def test_a_calibrated_cut_off_goes_into_the_exported_bias(networks, tmp_path, name, inputs):
    head = random_like({"kernel": np.zeros((inputs, 1)), "bias": np.zeros(1)}, 3)
    finetuned(networks, tmp_path / "as_it_was", name, "segment", head)
    cuts = {"logit_shift": -2.0, "network_cut_off": {"logit": -0.5}}
    finetuned(networks, tmp_path / "moved", name, "segment", head, **cuts)
    for run in ("as_it_was", "moved"):
        export_run(tmp_path / run, tmp_path / f"{run}.pt")
    file, bias = {"unet": ("_head.pt", "bias"), "swin_unetr": (".pt", "out.conv.conv.bias")}[name]
    before, after = (read_torch_file(tmp_path / f"{run}{file}").state[bias] for run in ("as_it_was", "moved"))
    np.testing.assert_allclose(after - before, [-1.5], atol=1e-6)


def test_what_a_run_adds_to_its_network_is_printed_since_the_file_has_no_place_for_it(networks, tmp_path):
    head = random_like({"kernel": np.zeros((6, 1)), "bias": np.zeros(1)}, 3)
    voxels = {"weights": [2.0, 0.5, -0.25, 0.125], "bias": -3.0, "network_weight": 0.25, "sigmas": [1.0, 2.0, 4.0]}
    cuts = {"logit_shift": 1.0, "network_cut_off": {"logit": 0.5}}
    finetuned(networks, tmp_path / "run", "unet", "segment", head, voxel_classifier=voxels, **cuts)
    (line,) = (line for line in export_run(tmp_path / "run", tmp_path / "net.pt") if line.startswith("NOT in the file"))
    for part in ("0.25 times the network's logit + 2 times the scaled voxel", "0.5, -0.25, 0.125", "1, 2, 4", "+ -2,"):
        assert part in line
    finetuned(
        networks, tmp_path / "alone", "unet", "segment", head, voxel_classifier=voxels, network_left_out={}, **cuts
    )
    lines = export_run(tmp_path / "alone", tmp_path / "alone.pt")
    assert any(
        "takes nothing of the network, which made the validation patches worse, but 2 times" in one for one in lines
    )
    # The calibration is in that line, and must not be in the file a second time; the network's own cut is in the file.
    np.testing.assert_allclose(read_torch_file(tmp_path / "net_head.pt").state["bias"], head["bias"] - 0.5, atol=1e-6)


# --- what is refused ---


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_foreign_files_are_refused_with_the_reason(networks, tmp_path, capsys):
    state = unet.to_torch(networks["unet"][1])
    file, out = tmp_path / "net.pt", tmp_path / "run"
    for change, reason in (
        ({"head.weight": np.zeros(3, np.float32)}, "unknown ['head.weight']"),
        ({"model.0.residual.bias": np.full(4, np.nan, np.float32)}, "NaN or Inf in model.0.residual.bias"),
        ({"model.0.residual.bias": np.zeros(4, np.float64)}, "float32 cannot hold"),
        ({"model.9.weight": np.zeros(4, np.float32)}, "model.9.weight"),
    ):
        write_torch_file(file, {**state, **change})
        message = refused(capsys, "convert", "import", file, "--out", out)
        assert reason in message and str(file) in message
        assert not out.exists()
    wrapped = {f"net.{key}": value for key, value in state.items()}
    write_torch_file(file, {**wrapped, "head.weight": np.zeros(3, np.float32)})
    assert "beside the network 'net.': head.weight" in refused(capsys, "convert", "import", file, "--out", out)
    write_torch_file(file, {"layer1.weight": np.zeros(3, np.float32)})
    assert "layer1" in refused(capsys, "convert", "import", file, "--out", out)
    file.write_bytes(file.read_bytes()[:-50])
    assert "cut short" in refused(capsys, "convert", "import", file, "--out", out)
    assert str(tmp_path / "absent.pt") in refused(capsys, "convert", "import", tmp_path / "absent.pt", "--out", out)


def test_imports_and_exports_overwrite_nothing(networks, tmp_path, capsys):
    file, run = tmp_path / "net.pt", tmp_path / "run"
    write_torch_file(file, unet.to_torch(networks["unet"][1]))
    assert main(["convert", "import", str(file), "--out", str(run)]) == 0
    assert "holds a run already" in refused(capsys, "convert", "import", file, "--out", run)
    assert "no teacher" in refused(capsys, "convert", "import", file, "--out", tmp_path / "t", "--teacher")
    assert "is there already" in refused(capsys, "convert", "export", run, "--out", file)
    assert "end it in one of" in refused(capsys, "convert", "export", run, "--out", tmp_path / "net.onnx")
    lightning = ("--out", tmp_path / "net.ckpt", "--layout", "lightning")
    assert "'backbone'; export it with --layout monai" in refused(capsys, "convert", "export", run, *lightning)
    assert "no teacher" in refused(capsys, "convert", "export", run, "--out", tmp_path / "n.pt", "--teacher")
    assert "no run.json" in refused(capsys, "convert", "export", tmp_path, "--out", tmp_path / "n.pt")
