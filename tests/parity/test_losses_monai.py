"""The finetuning losses against MONAI and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss, DiceFocalLoss, SoftclDiceLoss, SoftDiceclDiceLoss, SSIMLoss

from lsmfm_jax.losses import classify, deblur, segment

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 4, (3, 10, 12, 14, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def target() -> np.ndarray:
    """Tubes, so that skeletons are not empty; the last sample has no foreground."""
    mask = np.zeros((3, 10, 12, 14, 1), np.float32)
    mask[0, 3:7, 2:6, :, 0] = 1
    mask[0, :, 8:11, 5:9, 0] = 1
    mask[1, 2:9, 3:8, 4:12, 0] = 1
    return mask


def channel_first(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(array, -1, 1).copy())


def mean(**settings):
    """The mean over samples of the loss that the task minimises."""
    return lambda x, y: jnp.mean(segment.segmentation_loss(x, y, **settings))


PAIRS = {
    "dice_focal": (
        mean(),
        DiceFocalLoss(sigmoid=True, alpha=0.25, gamma=2.0, lambda_dice=0.5, lambda_focal=0.5),
    ),
    "dice_focal_monai_defaults": (
        mean(dice_weight=1.0, other_weight=1.0, alpha=None),
        DiceFocalLoss(sigmoid=True),
    ),
    "dice_cross_entropy": (mean(name="dice_ce", dice_weight=1.0, other_weight=1.0), DiceCELoss(sigmoid=True)),
    "cl_dice": (lambda x, y: jnp.mean(segment.cl_dice(x, y)), SoftclDiceLoss(sigmoid=True)),
    "cl_dice_5": (
        lambda x, y: jnp.mean(segment.cl_dice(x, y, iterations=5)),
        SoftclDiceLoss(5, sigmoid=True),
    ),
    # MONAI smooths its Dice by 1 here.
    "dice_cl_dice": (
        lambda x, y: jnp.mean(0.5 * segment.dice(x, y, smooth=1.0) + 0.5 * segment.cl_dice(x, y)),
        SoftDiceclDiceLoss(sigmoid=True),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_segmentation_losses_and_gradients_equal_monai(name, logits, target):
    ours, theirs = PAIRS[name]
    x = channel_first(logits).requires_grad_()
    expected = theirs(x, channel_first(target))
    expected.backward()
    value, gradient = jax.value_and_grad(ours)(jnp.asarray(logits), jnp.asarray(target))
    print(name, abs(float(value) - expected.item()))
    assert float(value) == pytest.approx(expected.item(), abs=TOLERANCE)
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(gradient), -1, 1), x.grad.numpy(), atol=TOLERANCE * float(x.grad.abs().max())
    )


def test_extreme_logits_stay_finite_and_equal_monai(target):
    logits = np.where(target > 0, -90.0, 90.0).astype(np.float32)
    expected = DiceFocalLoss(sigmoid=True, alpha=0.25, lambda_dice=0.5, lambda_focal=0.5)(
        channel_first(logits), channel_first(target)
    )
    value, gradient = jax.value_and_grad(mean())(jnp.asarray(logits), jnp.asarray(target))
    assert float(value) == pytest.approx(expected.item(), rel=TOLERANCE)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(2, 16, 13, 11, 1), (1, 24, 20, 18, 1)])
def test_ssim_and_gradient_equal_monai(shape):
    random = np.random.default_rng(1)
    target = random.uniform(0, 1, shape).astype(np.float32)
    prediction = np.clip(target + random.normal(0, 0.1, shape), 0, 1).astype(np.float32)
    x = channel_first(prediction).requires_grad_()
    expected = SSIMLoss(spatial_dims=3)(x, channel_first(target))
    expected.backward()
    value, gradient = jax.value_and_grad(lambda p: 1 - jnp.mean(deblur.ssim(p, jnp.asarray(target))))(
        jnp.asarray(prediction)
    )
    print(abs(float(value) - expected.item()))
    assert float(value) == pytest.approx(expected.item(), abs=TOLERANCE)
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(gradient), -1, 1), x.grad.numpy(), atol=TOLERANCE * float(x.grad.abs().max())
    )


def test_ssim_of_bright_nearly_constant_volumes_equals_monai():
    """Where variances are small differences of large squares."""
    random = np.random.default_rng(2)
    target = (0.9 + random.normal(0, 0.003, (1, 16, 16, 16, 1))).astype(np.float32)
    prediction = (0.9 + random.normal(0, 0.003, (1, 16, 16, 16, 1))).astype(np.float32)
    expected = SSIMLoss(spatial_dims=3)(channel_first(prediction), channel_first(target))
    value = 1 - deblur.ssim(jnp.asarray(prediction), jnp.asarray(target))[0]
    assert float(value) == pytest.approx(expected.item(), abs=1e-4)


def test_box_mean_equals_torch_average_pool():
    volume = np.random.default_rng(3).normal(size=(2, 5, 6, 7, 1)).astype(np.float32)
    other = np.random.default_rng(4).normal(size=(2, 5, 6, 7, 1)).astype(np.float32)

    def high(x: torch.Tensor) -> torch.Tensor:
        return x - torch.nn.functional.avg_pool3d(x, 3, 1, 1, count_include_pad=False)

    expected = (high(channel_first(volume)) - high(channel_first(other))).abs().mean((1, 2, 3, 4))
    got = deblur.high_frequency_error(jnp.asarray(volume), jnp.asarray(other))
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)


@pytest.mark.parametrize("weighted", [True, False])
def test_weighted_cross_entropy_equals_torch(weighted):
    random = np.random.default_rng(5)
    logits = random.normal(size=(7, 4)).astype(np.float32)
    labels = random.integers(0, 4, 7).astype(np.int32)
    weights = np.array([0.5, 2.0, 1.0, 0.1], np.float32) if weighted else None
    x = torch.from_numpy(logits).requires_grad_()
    tensor = None if weights is None else torch.from_numpy(weights)
    expected = torch.nn.CrossEntropyLoss(weight=tensor)(x, torch.from_numpy(labels).long())
    expected.backward()
    given = jnp.ones(4) if weights is None else jnp.asarray(weights)
    shares = classify.shares_by_class(given, jnp.asarray(labels))
    value, gradient = jax.value_and_grad(lambda z: jnp.sum(shares * classify.cross_entropy(z, jnp.asarray(labels))))(
        jnp.asarray(logits)
    )
    assert float(value) == pytest.approx(expected.item(), abs=TOLERANCE)
    np.testing.assert_allclose(gradient, x.grad.numpy(), atol=TOLERANCE)
