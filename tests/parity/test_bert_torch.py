"""The Flax BERT against PyTorch's, with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lsmfm_jax.models.text import TextTower  # noqa: E402
from lsmfm_jax.models.text_directory import load_text_tower  # noqa: E402
from lsmfm_jax.models.tiny_bert import build_tiny_bert  # noqa: E402

CAPTIONS = [
    "Light-sheet image of amyloid plaques in a cleared mouse brain.",
    "Vessels.",
    "Sparse c-Fos positive nuclei, 639 nm channel, with dense arborisation of the glial network.",
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    build_tiny_bert(folder, CAPTIONS, hidden=32, layers=3, heads=4, vocab_size=200, seed=3)
    return folder


@pytest.mark.parametrize("pooling", ["real", "all"])
def test_hidden_states_pooling_and_gradients_equal_pytorch(directory, pooling):
    from transformers import BertModel

    config, params, tokenizer = load_text_tower(directory)
    reference = BertModel.from_pretrained(directory, local_files_only=True).eval()
    # Weights ten times larger than at initialisation, so that attention is far from uniform.
    with torch.no_grad():
        for weight in reference.parameters():
            weight.mul_(10.0 if weight.ndim == 2 else 1.0)
    params = jax.tree.map(lambda leaf: leaf * 10.0 if leaf.ndim == 2 else leaf, params)

    batch = tokenizer(CAPTIONS, padding=True, return_tensors="np")
    tokens, mask = jnp.asarray(batch["input_ids"]), jnp.asarray(batch["attention_mask"], bool)
    assert mask.sum() < mask.size
    torch_mask = torch.from_numpy(batch["attention_mask"])
    output = reference(input_ids=torch.from_numpy(batch["input_ids"]), attention_mask=torch_mask)
    if pooling == "all":
        expected = output.last_hidden_state.mean(1)
    else:
        weight = torch_mask[..., None].float()
        expected = (output.last_hidden_state * weight).sum(1) / weight.sum(1)

    tower = TextTower(config, pooling=pooling)
    hidden, pooled = tower.apply({"params": params}, tokens, mask, method="hidden_states")
    np.testing.assert_allclose(hidden, output.last_hidden_state.detach(), atol=1e-5)
    np.testing.assert_allclose(pooled, output.pooler_output.detach(), atol=1e-5)
    np.testing.assert_allclose(tower.apply({"params": params}, tokens, mask), expected.detach(), atol=1e-5)

    direction = np.random.default_rng(0).normal(size=expected.shape).astype(np.float32)
    (expected * torch.from_numpy(direction)).sum().backward()
    grads = jax.grad(lambda p: (tower.apply({"params": p}, tokens, mask) * direction).sum())(params)
    word = reference.embeddings.word_embeddings.weight.grad.numpy()
    np.testing.assert_allclose(grads["embeddings"]["word"], word, atol=2e-5 * np.abs(word).max())
    query = reference.encoder.layer[0].attention.self.query.weight.grad.numpy()
    np.testing.assert_allclose(
        grads["layer_0"]["attention"]["query"]["kernel"].T, query, atol=2e-5 * np.abs(query).max()
    )
    assert reference.pooler.dense.weight.grad is None
    assert not np.any(grads["pooler"]["kernel"])
