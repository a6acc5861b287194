"""The text tower: reading Hugging Face directories, pooling, and which parameters train."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lsmfm_jax.models.text import TextTower, pooled_tokens, trainable_text_rules
from lsmfm_jax.models.text_directory import load_text_tower, read_bert_config
from lsmfm_jax.models.tiny_bert import build_tiny_bert

CAPTIONS = [
    "Light-sheet image of amyloid plaques in a cleared mouse brain.",
    "Vessels of a mouse brain.",
    "Nuclei.",
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    return build_tiny_bert(folder, CAPTIONS, hidden=16, layers=3, heads=2, vocab_size=90, seed=1)


@pytest.fixture(scope="module")
def loaded(directory):
    return load_text_tower(directory)


def encode(tokenizer, captions):
    batch = tokenizer(captions, padding=True, return_tensors="np")
    return jnp.asarray(batch["input_ids"]), jnp.asarray(batch["attention_mask"], bool)


def test_tokenizer_knows_the_captions_words_and_spells_out_others(loaded):
    _, _, tokenizer = loaded
    assert len(tokenizer) <= 90
    assert tokenizer.tokenize("Mouse brain, uml") == ["mouse", "brain", "[UNK]", "u", "##m", "##l"]
    tokens = tokenizer(CAPTIONS[1])["input_ids"]
    assert tokenizer.decode(tokens) == "[CLS] vessels of a mouse brain. [SEP]"


def test_same_captions_give_the_same_bytes_in_another_process(directory, tmp_path):
    program = (
        "import sys; from lsmfm_jax.models.tiny_bert import build_tiny_bert; "
        "build_tiny_bert(sys.argv[1], sys.argv[2:], hidden=16, layers=3, heads=2, vocab_size=90, seed=1)"
    )
    # The order of captions and the hash seed of the process must not matter.
    subprocess.run([sys.executable, "-c", program, tmp_path, *CAPTIONS[::-1]], check=True)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == sorted(file.name for file in directory.iterdir())
    assert all((tmp_path / name).read_bytes() == (directory / name).read_bytes() for name in names)


def test_parameters_have_the_shapes_that_the_tower_makes(loaded):
    config, params, tokenizer = loaded
    tokens, mask = encode(tokenizer, CAPTIONS)
    made = jax.eval_shape(TextTower(config).init, jax.random.key(0), tokens, mask)["params"]
    assert jax.tree.map(lambda leaf: leaf.shape, made) == jax.tree.map(lambda leaf: leaf.shape, params)


def test_padding_changes_nothing_when_real_tokens_are_pooled(loaded):
    config, params, tokenizer = loaded
    padded = TextTower(config).apply({"params": params}, *encode(tokenizer, CAPTIONS))
    alone = TextTower(config).apply({"params": params}, *encode(tokenizer, CAPTIONS[1:2]))
    np.testing.assert_allclose(padded[1:2], alone, atol=1e-5)
    faithful = TextTower(config, pooling="all")
    everything = faithful.apply({"params": params}, *encode(tokenizer, CAPTIONS))
    assert np.abs(everything[1] - padded[1]).max() > 1e-2
    with pytest.raises(ValueError, match="pooling"):
        TextTower(config, pooling="first").apply({"params": params}, *encode(tokenizer, CAPTIONS))


def test_captions_padded_to_the_batch_do_not_depend_on_the_longest_of_the_table(loaded):
    """The released code pads to the captions that are on a device together; a table is padded to its longest."""
    config, params, tokenizer = loaded
    tokens, mask = encode(tokenizer, CAPTIONS)
    assert tokens.shape[1] == int(mask.sum(axis=1).max())
    wide = [jnp.pad(leaf, ((0, 0), (0, 9))) for leaf in (tokens, mask)]
    theirs = TextTower(config, pooling="all").apply({"params": params}, tokens, mask)
    ours = TextTower(config, pooling="batch")
    np.testing.assert_allclose(ours.apply({"params": params}, *wide), theirs, atol=1e-5)
    table = TextTower(config, pooling="all").apply({"params": params}, *wide)
    assert np.abs(np.asarray(table) - np.asarray(theirs)).max() > 1e-2
    # Samples that are alone on their device are not padded at all.
    alone = pooled_tokens(wide[1], pooling="batch", group=1)
    np.testing.assert_array_equal(alone, wide[1])
    np.testing.assert_allclose(
        ours.apply({"params": params}, *wide, alone), TextTower(config).apply({"params": params}, *wide), atol=1e-5
    )


def test_padding_goes_up_to_the_longest_of_each_group():
    real = jnp.asarray([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], bool)
    lengths = {1: [2, 1, 3, 4], 2: [2, 2, 4, 4], 4: [4, 4, 4, 4]}
    for group, wanted in lengths.items():
        assert pooled_tokens(real, pooling="batch", group=group).sum(axis=1).tolist() == wanted
    assert pooled_tokens(real, pooling="all", group=2).all()


def test_too_long_captions_are_refused(loaded):
    config, params, _ = loaded
    tokens = jnp.zeros((1, config.max_positions + 1), int)
    with pytest.raises(ValueError, match=r"513 tokens.*512 positions"):
        TextTower(config).apply({"params": params}, tokens, tokens == 0)


def test_rules_cover_every_parameter_and_choose_the_top_layers(loaded):
    _, params, _ = loaded
    rules = trainable_text_rules(3, 1)
    paths = ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    trains = {path: next(value for rule, value in rules if re.search(rule, path)) for path in paths}
    assert trains["layer_2/attention/query/kernel"]
    assert not trains["layer_1/attention/query/kernel"]
    assert not trains["layer_0/feed_forward/down/bias"]
    assert trains["layer_0/attention/norm/scale"]
    assert trains["layer_1/feed_forward/norm/bias"]
    assert trains["embeddings/word"]
    assert trains["pooler/kernel"]
    # Frozen: six dense layers, kernel and bias, in each of the two lower layers.
    assert sum(not value for value in trains.values()) == 24
    with pytest.raises(ValueError, match="top_k is 4"):
        trainable_text_rules(3, 4)


def test_old_names_and_pretraining_heads_are_read(directory, loaded, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    old = {}
    for key, value in load_file(directory / "model.safetensors").items():
        key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[f"bert.{key}"] = value
    old["cls.predictions.bias"] = np.zeros(90, np.float32)
    save_file(old, tmp_path / "model.safetensors")
    again = load_text_tower(tmp_path).params
    jax.tree.map(np.testing.assert_array_equal, again, loaded.params)


def test_wrong_files_are_refused_by_name(directory, tmp_path):
    state = load_file(directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())

    def refuse(error, match, *, drop=None, **changes):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        kept = {key: value for key, value in state.items() if key != drop}
        save_file(kept, tmp_path / "model.safetensors")
        with pytest.raises(error, match=match):
            load_text_tower(tmp_path)

    refuse(ValueError, "missing.*pooler.dense.bias", drop="pooler.dense.bias")
    refuse(ValueError, "model_type is 'roberta'", model_type="roberta")
    refuse(ValueError, "hidden_act is 'relu'", hidden_act="relu")
    refuse(ValueError, "num_layers 4, the weights say 3", num_hidden_layers=4)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is missing"):
        load_text_tower(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        read_bert_config(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no such directory"):
        load_text_tower("./nowhere")


def test_a_hub_name_offline_says_what_to_do(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"is no local directory and could not be fetched.*hf download some-lab/some-bert"
    ):
        load_text_tower("some-lab/some-bert")


def test_captions_that_make_no_vocabulary_are_refused(tmp_path):
    with pytest.raises(ValueError, match="captions is empty"):
        build_tiny_bert(tmp_path, [])
    with pytest.raises(ValueError, match="vocab_size is 10"):
        build_tiny_bert(tmp_path, CAPTIONS, vocab_size=10)
    with pytest.raises(ValueError, match="multiple of heads"):
        build_tiny_bert(tmp_path, CAPTIONS, hidden=30, heads=4)
