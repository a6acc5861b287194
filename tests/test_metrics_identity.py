"""Every metric of a mask, a label image or a volume with itself is perfect, whatever its shape."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from lsmfm_jax.losses import segment as losses
from lsmfm_jax.metrics import image, instances, segmentation, topology
from lsmfm_jax.metrics.classification import classification_scores, confusion_matrix
from lsmfm_jax.metrics.retrieval import retrieval_accuracy

PERFECT = (
    *("dice", "precision", "recall", "panoptic_quality", "recognition_quality", "segmentation_quality"),
    *("cl_dice", "total_dice_paper", "count_dice_paper"),
)


def _masks():
    """Named masks that are not empty: random ones of many densities, and the awkward ones."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        shape = tuple(rng.integers(1, 14, 3))
        yield f"random{seed}", rng.uniform(size=shape) < rng.choice([0.02, 0.2, 0.5, 0.9])
        smooth = ndimage.gaussian_filter(rng.normal(size=tuple(rng.integers(6, 20, 3))), rng.uniform(0.5, 2))
        yield f"smooth{seed}", smooth > np.quantile(smooth, rng.uniform(0.3, 0.97))
    for voxel in ((0, 0, 0), (4, 5, 6), (8, 9, 10)):
        single = np.zeros((9, 10, 11), bool)
        single[voxel] = True
        yield f"single{voxel}", single
    for shape in ((1, 1, 1), (2, 2, 2), (5, 1, 7), (1, 6, 6), (7, 8, 9), (4, 4, 4)):
        yield f"full{shape}", np.ones(shape, bool)
    for axis in range(3):
        for place in (0, 5, 11):
            plate = np.zeros((12, 12, 12), bool)
            np.moveaxis(plate, axis, 0)[place] = True
            yield f"plate{axis}{place}", plate
    for width in [(a, b) for a in range(1, 7) for b in range(a, 7)]:
        rod = np.zeros((24, 16, 16), bool)
        rod[3:20, 5 : 5 + width[0], 4 : 4 + width[1]] = True
        yield f"rod{width}", rod
        yield f"rod{width}border", rod[3:20, 5:12, 4:11]
    two = np.zeros((20, 20, 20), bool)
    two[2:18, 2:4, 2:4] = two[2:18, 10:13, 10:13] = True
    yield "even_and_odd", two


MASKS = {name: mask for name, mask in _masks() if mask.any()}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_with_itself_is_perfect(name):
    mask = MASKS[name]
    scores = segmentation.segmentation_scores(mask.astype(np.uint8), mask.astype(np.uint8))
    assert {key: scores[key] for key in PERFECT} == dict.fromkeys(PERFECT, 1.0)
    assert scores["hausdorff_95_voxels"] == scores["false_positives"] == scores["false_negatives"] == 0.0
    assert scores["true_positives"] >= 1
    annotated = np.zeros(mask.shape, bool)
    annotated[: max(1, len(mask) // 2)] = True
    partly = segmentation.segmentation_scores(mask.astype(np.uint8), mask.astype(np.uint8), annotated=annotated)
    assert {key: partly[key] for key in PERFECT} == dict.fromkeys(PERFECT, 1.0)


@pytest.mark.parametrize("name", MASKS)
def test_a_label_image_with_itself_is_perfect(name):
    mask = MASKS[name]
    rng = np.random.default_rng(len(name))
    blocks = rng.integers(1, 40, [-(-side // 3) for side in mask.shape])
    for axis, side in enumerate(mask.shape):
        blocks = np.take(blocks.repeat(3, axis), np.arange(side), axis)
    labels = np.where(mask, blocks, 0)
    scores = segmentation.segmentation_scores(labels, labels, prediction_is_labels=True, truth_is_labels=True)
    assert {key: scores[key] for key in PERFECT} == dict.fromkeys(PERFECT, 1.0)
    assert scores["true_positives"] == len(np.unique(labels[labels > 0]))


@pytest.mark.parametrize("name", MASKS)
def test_every_component_keeps_a_line_inside_itself(name):
    mask = MASKS[name]
    line = topology.skeleton(mask)
    assert not (line & ~mask).any()
    numbers, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert len(np.unique(numbers[line])) == count


@pytest.mark.parametrize("width", [(1, 2), (2, 2), (3, 4), (4, 4), (2, 5), (6, 6), (5, 8), (8, 8)])
def test_the_line_of_an_even_rod_is_as_long_as_the_rod(width):
    rod = np.zeros((50, 20, 20), bool)
    rod[5:45, 4 : 4 + width[0], 6 : 6 + width[1]] = True
    line = topology.skeleton(rod)
    planes = line.any(axis=(1, 2))
    assert planes.sum() >= 40 - max(width) and line.sum() <= 2 * 40
    # So a rod of which half is missing has lost half of its centre line, not nothing or all of it.
    half = rod.copy()
    half[25:] = False
    assert topology.cl_dice(half, rod) == pytest.approx(2 / 3, abs=0.08)


def test_soft_cl_dice_of_a_mask_with_itself_loses_next_to_nothing():
    for name, mask in MASKS.items():
        if mask.shape not in ((9, 10, 11), (12, 12, 12), (24, 16, 16), (4, 4, 4)):  # each shape is compiled anew
            continue
        target = jnp.asarray(mask, jnp.float32)[None, ..., None]
        loss = float(losses.cl_dice(200.0 * target - 100.0, target)[0])
        assert loss < 1e-4, name
        assert float(losses.dice(200.0 * target - 100.0, target)[0]) < 1e-4, name


def test_the_other_metrics_are_perfect_on_identity():
    rng = np.random.default_rng(0)
    for seed in range(5):
        volume = np.random.default_rng(seed).integers(0, 4000, (11, 12, 13 + seed)).astype(np.uint16)
        assert image.psnr(volume, volume) == np.inf and image.ssim(volume, volume) == pytest.approx(1.0)
    for classes in (1, 2, 7):
        truth = rng.integers(0, classes, 20)
        scores = classification_scores(confusion_matrix(truth, truth, classes=classes))
        assert scores == {"accuracy": 1.0, "macro_f1": 1.0}
    vectors = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    found = retrieval_accuracy(vectors, vectors, np.arange(8))
    assert found["image_to_text_top1"] == found["text_to_image_top1"] == 1.0
    labels = instances.components(rng.uniform(size=(9, 9, 9)) > 0.7)
    assert instances.instance_scores(labels, labels, match_dice=1.0)["panoptic_quality"] == 1.0
