"""The pretraining losses and heads against PyTorch's own functions, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from lsmfm_jax.convert import heads as convert_heads  # noqa: E402
from lsmfm_jax.losses.pretrain import (  # noqa: E402
    alignment,
    contrastive,
    distillation,
    mean_normalised_features,
    reconstruction_l1,
)
from lsmfm_jax.models.heads import LightDecoder, ProjectionHead  # noqa: E402

BATCH, SIDE, TRUNK, DENSE = 2, (4, 6, 5), 5, 12


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def leaf(array):
    return torch.from_numpy(array.copy()).requires_grad_()


def to_torch_layout(volume):
    return np.moveaxis(volume, -1, 1)


def close(ours, theirs, tolerance=1e-5):
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert np.abs(theirs).max() > 0
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("temperatures", [(0.1, 0.1), (0.025, 0.1)])
def test_distillation_and_image_vector_equal_pytorch(temperatures):
    student, teacher, kernel, bias = arrays((BATCH, *SIDE, TRUNK), (BATCH, *SIDE, TRUNK), (TRUNK, DENSE), (DENSE,))
    mask = np.random.default_rng(1).random((BATCH, *SIDE)) < 0.3

    def dense(values, kernel, bias):
        return functional.conv3d(values, kernel.T[..., None, None, None], bias)

    values, weight, offset = leaf(to_torch_layout(student)), leaf(kernel), leaf(bias)
    normalised = functional.normalize(dense(values, weight, offset), dim=1)
    with torch.no_grad():
        target = functional.normalize(dense(torch.from_numpy(to_torch_layout(teacher)), weight, offset), dim=1)
        target = torch.softmax(target / temperatures[1], dim=1)
    divergence = functional.kl_div(
        torch.log_softmax(normalised / temperatures[0], dim=1), target, reduction="none"
    ).sum(1)
    masked = torch.from_numpy(mask)
    expected = divergence[masked].mean() + (normalised.mean((2, 3, 4)) ** 2).sum()
    expected.backward()

    def loss(student, kernel, bias):
        tail = kernel, bias
        sums = distillation(
            student,
            tail,
            jnp.asarray(teacher),
            tail,
            jnp.asarray(mask),
            student_temperature=temperatures[0],
            teacher_temperature=temperatures[1],
            slab_voxels=40,
        )
        vector = mean_normalised_features(student, tail)
        return sums.divergence.sum() / sums.voxels.sum() + (vector**2).sum()

    arguments = jnp.asarray(student), jnp.asarray(kernel), jnp.asarray(bias)
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(*arguments)
    close(value, expected)
    close(to_torch_layout(np.asarray(gradients[0])), values.grad, 1e-4)
    close(gradients[1], weight.grad, 1e-4)
    close(gradients[2], offset.grad, 1e-4)


def test_clip_alignment_and_reconstruction_equal_pytorch():
    image, text, prediction, target = arrays((6, 8), (6, 8), (BATCH, *SIDE, 1), (BATCH, *SIDE, 1), seed=2)
    mask = np.random.default_rng(3).random((BATCH, *SIDE)) < 0.3
    raw_image, raw_text = leaf(image), leaf(text)
    unit_image, unit_text = functional.normalize(raw_image, dim=-1), functional.normalize(raw_text, dim=-1)
    scores = 10.0 * unit_image @ unit_text.T
    labels = torch.arange(6)
    clip = 0.5 * (functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels))
    align = 1 - functional.cosine_similarity(unit_image, unit_text.detach(), dim=-1).mean()
    (clip + align).backward()

    def loss(image, text):
        image = image / jnp.linalg.norm(image, axis=-1, keepdims=True)
        text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
        return contrastive(image, text, jnp.float32(10.0)) + alignment(image, text).mean()

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(jnp.asarray(image), jnp.asarray(text))
    close(value, clip + align)
    close(gradients[0], raw_image.grad, 1e-4)
    close(gradients[1], raw_text.grad, 1e-4)

    difference = (torch.from_numpy(prediction) - torch.from_numpy(target)).abs()[..., 0]
    sums = reconstruction_l1(jnp.asarray(prediction), jnp.asarray(target), jnp.asarray(mask))
    close(sums.sum() / mask.sum(), difference[torch.from_numpy(mask)].mean())


class PlainDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(
            nn.Conv3d(DENSE, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv3d(64, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv3d(32, 1, 1),
        )


def test_decoder_behind_a_tail_equals_pytorch_and_converts_back():
    torch.manual_seed(0)
    values, kernel, bias = arrays((BATCH, *SIDE, TRUNK), (TRUNK, DENSE), (DENSE,), seed=4)
    reference = PlainDecoder()
    dense = torch.from_numpy(to_torch_layout(values @ kernel + bias))
    state = {key: value.numpy() for key, value in reference.state_dict().items()}
    variables = convert_heads.from_torch(state, convert_heads.LIGHT_DECODER)
    ours = LightDecoder().apply(
        {"params": jax.tree.map(jnp.asarray, variables["params"])},
        jnp.asarray(values),
        (jnp.asarray(kernel), jnp.asarray(bias)),
    )
    close(to_torch_layout(np.asarray(ours)), reference.decoder(dense))
    back = convert_heads.to_torch(variables, convert_heads.LIGHT_DECODER)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[key], state[key]) for key in state)


def test_projection_equals_pytorch_and_wrong_keys_are_named():
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8))
    state = {key: value.numpy() for key, value in reference.state_dict().items()}
    (x,) = arrays((3, 7), seed=5)
    variables = convert_heads.from_torch(state, convert_heads.TEXT_PROJECTION)
    ours = ProjectionHead(8).apply({"params": variables["params"]}, jnp.asarray(x))
    close(ours, functional.normalize(reference(torch.from_numpy(x)), dim=-1))
    with pytest.raises(ValueError, match=r"unknown \['extra'\]"):
        convert_heads.from_torch(state | {"extra": x}, convert_heads.TEXT_PROJECTION)
