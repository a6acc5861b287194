"""The metrics against MONAI's."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import (
    ConfusionMatrixMetric,
    DiceMetric,
    HausdorffDistanceMetric,
    MeanIoU,
    PSNRMetric,
    SSIMMetric,
    compute_hausdorff_distance,
)

from lsmfm_jax.metrics import classification, image, segmentation

# MONAI's own distance calls its own deprecated argument.
pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy.*:FutureWarning")


def tensor(volume: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(volume.astype(np.float32))[None, None]


@pytest.fixture(scope="module", params=range(4))
def masks(request) -> tuple[np.ndarray, np.ndarray]:
    """Boxes inside the volume and across its border, partly shared."""
    random = np.random.default_rng(request.param)
    prediction, truth = np.zeros((2, 18, 20, 22), bool)
    for z, y, x in random.integers(0, 16, (5, 3)):
        truth[z : z + 5, y : y + 4, x : x + 6] = True
        z, y, x = z + random.integers(-2, 3), max(y - 1, 0), x + 1
        prediction[max(z, 0) : z + 5, y : y + 5, x : x + 5] = True
    return prediction, truth


def test_dice_iou_precision_and_recall(masks):
    prediction, truth = masks
    scores = segmentation.foreground_scores(prediction, truth)
    dice = DiceMetric()(tensor(prediction), tensor(truth)).item()
    metric = ConfusionMatrixMetric(metric_name=["precision", "recall"])
    metric(tensor(prediction), tensor(truth))
    precision, recall = (value.item() for value in metric.aggregate())
    iou = MeanIoU()(tensor(prediction), tensor(truth)).item()
    assert scores == pytest.approx({"dice": dice, "iou": iou, "precision": precision, "recall": recall}, abs=1e-6)


@pytest.mark.parametrize("spacing", [None, (6.0, 1.6, 1.6)])
def test_hausdorff_95(masks, spacing):
    prediction, truth = masks
    expected = compute_hausdorff_distance(
        tensor(prediction), tensor(truth), percentile=95, include_background=True, spacing=spacing
    ).item()
    got = segmentation.hausdorff_95(prediction, truth, spacing=spacing or (1.0, 1.0, 1.0))
    assert got == pytest.approx(expected, abs=1e-5)


def test_hausdorff_95_metric_class(masks):
    prediction, truth = masks
    metric = HausdorffDistanceMetric(include_background=True, percentile=95)
    metric(tensor(prediction), tensor(truth))
    assert segmentation.hausdorff_95(prediction, truth) == pytest.approx(metric.aggregate().item(), abs=1e-5)


def test_psnr_and_ssim():
    random = np.random.default_rng(0)
    truth = random.uniform(size=(16, 17, 18)).astype(np.float32)
    prediction = np.clip(truth + random.normal(0, 0.1, truth.shape), 0, 1).astype(np.float32)
    psnr = PSNRMetric(max_val=1.0)(tensor(prediction), tensor(truth)).item()
    ssim = SSIMMetric(spatial_dims=3)(tensor(prediction), tensor(truth)).item()
    assert image.psnr(prediction, truth) == pytest.approx(psnr, abs=1e-4)
    assert image.ssim(prediction, truth) == pytest.approx(ssim, abs=1e-5)
    assert math.isinf(PSNRMetric(max_val=1.0)(tensor(truth), tensor(truth)).item())
    assert math.isinf(image.psnr(truth, truth))


def test_accuracy_and_f1_per_class():
    random = np.random.default_rng(1)
    truth, predicted = random.integers(0, 3, (2, 40))
    scores = classification.class_scores(classification.confusion_matrix(truth, predicted, classes=3))
    one_hot = [torch.nn.functional.one_hot(torch.from_numpy(x), 3) for x in (predicted, truth)]
    for name, ours in (("f1 score", "f1"), ("precision", "precision"), ("recall", "recall")):
        # "sum" adds the samples' counts up per class before the ratio is taken.
        metric = ConfusionMatrixMetric(metric_name=name, reduction="sum_batch", compute_sample=False)
        metric(*one_hot)
        np.testing.assert_allclose(scores[ours], metric.aggregate()[0].numpy(), atol=1e-6)
