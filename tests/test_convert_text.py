"""The text encoder of an imported checkpoint: its attention heads are read or given, never guessed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lsmfm_jax.cli import main
from lsmfm_jax.convert import checks, heads, unet
from lsmfm_jax.convert.torch_files import write_torch_file
from lsmfm_jax.models import build_backbone
from lsmfm_jax.models.text import TextTower
from lsmfm_jax.models.text_directory import TextModelError, load_text_tower
from lsmfm_jax.models.tiny_bert import build_tiny_bert

CAPTIONS = ["a mouse brain, microglia", "nuclei of the cortex"]
SIZES = {"channels": (4, 6), "strides": (2,), "num_res_units": 1, "out_channels": 5, "norm": "instance"}
# As in MiniLM: 384 wide with 12 heads of 32 channels; 384 / 64 would be 6 heads.
WIDTH, HEADS = 384, 12


def random_like(shapes: dict, prefix: str) -> dict:
    rng = np.random.default_rng(len(prefix))
    return {f"{prefix}.{key}": rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT's directory, and beside it a pretraining checkpoint that holds this BERT."""
    folder = tmp_path_factory.mktemp("text")
    build_tiny_bert(folder / "mini", CAPTIONS, hidden=WIDTH, layers=1, heads=HEADS, vocab_size=90, max_positions=16)
    network = build_backbone("unet", **SIZES)
    volume = jnp.zeros((1, 4, 4, 4, 1))
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), volume)
    rng = np.random.default_rng(0)
    drawn = unet.to_torch(jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), variables))
    text = load_file(folder / "mini" / "model.safetensors")
    state = {f"student_encoder.{key}": value for key, value in drawn.items()}
    state |= {f"teacher_encoder.{key}": value for key, value in drawn.items()}
    state |= {f"text_encoder.{key}": value for key, value in text.items()}
    state |= random_like(checks.decoder_shapes(heads.LIGHT_DECODER, 5), "reconstruction_head")
    state |= random_like(checks.projection_shapes(heads.IMAGE_PROJECTION, 5, 7), "image_proj")
    state |= random_like(checks.projection_shapes(heads.TEXT_PROJECTION, WIDTH, 7), "text_proj")
    state["logit_scale"] = np.float32(2.3)
    write_torch_file(folder / "net.ckpt", state, metadata={"epoch": 1})
    named = {"hyper_parameters": {"model": {"text_model_name": "mini"}}}
    write_torch_file(folder / "named.ckpt", state, metadata=named)
    write_torch_file(folder / "network.pt", drawn)
    return folder


def run(capsys, *arguments) -> tuple[int, str]:
    code = main(["convert", *(str(argument) for argument in arguments)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_without_a_word_about_its_heads_the_text_side_is_not_written(folder, tmp_path, capsys):
    code, printed = run(capsys, "import", folder / "net.ckpt", "--out", tmp_path / "run")
    assert code == 0 and "--text-heads N" in printed and "--text-model DIR" in printed
    assert not (tmp_path / "run" / "text").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["imported"]["text"]["num_heads"] is None


@pytest.mark.parametrize("way", ["given", "directory", "beside"])
def test_the_text_features_are_those_of_the_model_that_was_saved(folder, tmp_path, capsys, way):
    options = {"given": ("--text-heads", HEADS), "directory": ("--text-model", folder / "mini"), "beside": ()}[way]
    file = folder / ("named.ckpt" if way == "beside" else "net.ckpt")
    code, printed = run(capsys, "import", file, "--out", tmp_path / "run", *options)
    assert code == 0 and f"{HEADS} attention heads" in printed
    text = tmp_path / "run" / "text"
    assert json.loads((text / "config.json").read_text())["num_attention_heads"] == HEADS
    assert (text / "vocab.txt").exists() == (way != "given")
    if way == "given":
        return
    tokens = jnp.asarray([[2, 7, 9, 3]])
    saved, imported = load_text_tower(folder / "mini"), load_text_tower(text)
    features = [
        TextTower(tower.config).apply({"params": tower.params}, tokens, tokens > 0) for tower in (saved, imported)
    ]
    np.testing.assert_array_equal(*features)
    # And the export keeps them: what comes in again needs no word about them.
    assert run(capsys, "export", tmp_path / "run", "--out", tmp_path / "again.ckpt", "--layout", "lightning")[0] == 0
    code, printed = run(capsys, "import", tmp_path / "again.ckpt", "--out", tmp_path / "again")
    assert code == 0 and f"{HEADS} attention heads" in printed


def test_heads_that_cannot_be_are_refused(folder, tmp_path, capsys):
    build_tiny_bert(tmp_path / "other", CAPTIONS, hidden=64, layers=1, heads=2, vocab_size=90, max_positions=16)
    for file, options, reason in (
        ("net.ckpt", ("--text-heads", 7), "text_heads is 7: the text encoder is 384 wide"),
        ("net.ckpt", ("--text-heads", 0), "--text-heads 0: give the number"),
        ("net.ckpt", ("--text-heads", -12), "--text-heads -12: give the number"),
        ("net.ckpt", ("--text-heads", 6, "--text-model", folder / "mini"), "mini has 12; leave one of them out"),
        ("net.ckpt", ("--text-model", tmp_path / "other"), "hidden_size 64 where the file has 384"),
        ("net.ckpt", ("--text-model", tmp_path / "none"), "no config.json there"),
        ("network.pt", ("--text-heads", 12), "holds no text encoder"),
        ("network.pt", ("--text-model", folder / "mini"), "holds no text encoder"),
    ):
        code, printed = run(capsys, "import", folder / file, "--out", tmp_path / "run", *options)
        assert code == 2 and reason in printed and printed.count("\n") == 1, printed
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content, reason",
    [
        ("", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("[]", "no JSON object"),
        ('{"hidden_size": 384}', "vocab_size is missing"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": "12"}, "num_attention_heads is 12, it must be a whole number"),
        ({"num_attention_heads": 7}, "must be a multiple of num_attention_heads 7"),
        ({"hidden_size": 1e3}, "hidden_size is 1000.0"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is small"),
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
    ],
)
def test_damaged_directories_are_refused_in_one_line(folder, tmp_path, capsys, content, reason):
    (tmp_path / "mini").mkdir()
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / "mini" / "config.json").read_text()) | content)
    (tmp_path / "mini" / "config.json").write_text(content)
    options = ("--out", tmp_path / "run", "--text-model", tmp_path / "mini")
    code, printed = run(capsys, "import", folder / "net.ckpt", *options)
    assert code == 2 and reason in printed and "config.json" in printed and printed.count("\n") == 1
    with pytest.raises(TextModelError, match=r"config\.json"):
        load_text_tower(tmp_path / "mini")


def test_damaged_weights_of_a_text_model_are_refused(folder, tmp_path):
    (tmp_path / "mini").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "mini" / name).write_bytes((folder / "mini" / name).read_bytes())
    (tmp_path / "mini" / "model.safetensors").write_bytes(b"not one")
    with pytest.raises(TextModelError, match=r"model\.safetensors"):
        load_text_tower(tmp_path / "mini")


@pytest.mark.parametrize(
    "key", ["reconstruction_head.decoder.2.weight", "image_proj.4.weight", "text_proj.0.weight", "logit_scale",
            "text_encoder.encoder.layer.0.attention.self.key.bias", "teacher_encoder.model.0.conv.unit0.conv.bias",
            "text_encoder.embeddings.position_embeddings.weight"],
)  # fmt: skip
def test_tensors_outside_the_student_are_compared_too(folder, tmp_path, capsys, key):
    from lsmfm_jax.convert.torch_files import read_torch_file

    state = read_torch_file(folder / "net.ckpt").state
    write_torch_file(tmp_path / "net.ckpt", {**state, key: state[key][None]})
    code, printed = run(capsys, "import", tmp_path / "net.ckpt", "--out", tmp_path / "run")
    module, _, rest = key.partition(".")
    assert code == 2 and module in printed and (rest or module) in printed and "shape" in printed
    if state[key].ndim:
        write_torch_file(tmp_path / "net.ckpt", {**state, key: state[key][..., :-1]})
        code, printed = run(capsys, "import", tmp_path / "net.ckpt", "--out", tmp_path / "run")
        assert code == 2 and (rest in printed or "fit" in printed)
