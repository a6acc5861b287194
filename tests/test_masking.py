"""Block masks: exact counts, whole blocks, keyed per sample, one compilation for any ratio."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsmfm_jax import masking
from lsmfm_jax.masking import apply_mask

# Compiled as a whole: faster here than operation by operation.
block_mask = jax.jit(masking.block_mask, static_argnames=("grid", "block_sizes", "ratio", "rounding"))
fixed_masks = jax.jit(masking.fixed_masks, static_argnames=("seed", "grid", "block_sizes", "ratio"))

GRID = (16, 8, 24)


def keys(count: int, seed: int = 0):
    return jax.random.split(jax.random.key(seed), count)


def blocks_of(mask: np.ndarray, size: int) -> np.ndarray:
    """Masked fraction of each block, by plain slicing."""
    shape = tuple(side // size for side in mask.shape)
    found = np.zeros(shape)
    for at in np.ndindex(*shape):
        found[at] = mask[tuple(slice(i * size, (i + 1) * size) for i in at)].mean()
    return found


@pytest.mark.parametrize("ratio", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("size", [2, 8])
def test_exact_number_of_whole_blocks(size, ratio):
    masks = np.asarray(block_mask(keys(5), grid=GRID, block_sizes=(size,), ratio=ratio))
    assert masks.shape == (5, *GRID) and masks.dtype == bool
    for mask in masks:
        found = blocks_of(mask, size)
        assert set(np.unique(found)) <= {0.0, 1.0}
        assert found.sum() == max(round(ratio * found.size), 1)


@pytest.mark.parametrize(("size", "nearest", "down"), [(8, 154, 153), (16, 19, 19), (32, 2, 2)])
def test_the_released_code_rounds_down(size, nearest, down):
    """0.3 of 512 blocks are 153.6; theirs is `int(ratio * blocks)`."""
    for rounding, wanted in (("nearest", nearest), ("down", down)):
        settings = {"grid": (64, 64, 64), "block_sizes": (size,), "ratio": 0.3, "rounding": rounding}
        assert np.asarray(block_mask(keys(1), **settings)).sum() == wanted * size**3
    assert down == int(0.3 * (64 // size) ** 3)


@pytest.mark.parametrize("name", ["unet", "swin_unetr"])
def test_the_faithful_recipe_masks_as_many_blocks_as_the_released_code(name):
    """In training, with its traced ratio, after and in the warm-up, and in validation."""
    from lsmfm_jax.config.load import load_config
    from lsmfm_jax.tasks.pretrain import pretraining_task

    config = load_config(f"configs/pretrain_{name}.py:faithful")
    config.augment.probability = 0.0
    config.mask.block_sizes = (8,)
    task = pretraining_task(config, None, warmup_steps=5)
    image = jnp.zeros((1, 64, 64, 64), jnp.uint16)
    number = jnp.zeros(1, jnp.int32)
    batch = {"image": image, "low": jnp.zeros(1), "high": jnp.ones(1), "sample": number}
    batch |= {"caption_key": number, "volume": number}
    prepare = jax.jit(lambda step: task.prepare(batch, jax.random.key(0), step)["mask"].sum())
    assert [int(prepare(step)) / 512 for step in (0, 5)] == [int(0.05 * 512), int(0.3 * 512)]
    assert int(jax.jit(task.prepare_validation)(batch)["mask"].sum()) / 512 == 153


def test_both_sizes_come_with_equal_chance_and_every_block_is_as_likely():
    masks = np.asarray(block_mask(keys(400), grid=(16, 16, 16), block_sizes=(4, 8), ratio=0.3))
    # 64 blocks of 4 give 19 masked, 8 blocks of 8 give 2.
    counts = masks.sum(axis=(1, 2, 3))
    assert set(counts) == {19 * 64, 2 * 512}
    assert abs((counts == 2 * 512).mean() - 0.5) < 4 * 0.5 / 20
    share = masks.mean(axis=0)
    expected = 0.5 * (19 / 64 + 2 / 8)
    assert np.all(np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 400))


def test_a_mask_depends_on_its_own_key_alone():
    drawn = keys(4)
    settings = {"grid": GRID, "block_sizes": (2, 4), "ratio": 0.3}
    whole = np.asarray(block_mask(drawn, **settings))
    order = [2, 0, 3, 1]
    np.testing.assert_array_equal(np.asarray(block_mask(drawn[np.array(order)], **settings)), whole[order])
    np.testing.assert_array_equal(np.asarray(block_mask(drawn[1:2], **settings)), whole[1:2])
    assert len({mask.tobytes() for mask in whole}) == 4


def test_the_ratio_changes_without_compiling_again():
    traces = []

    @jax.jit
    def draw(drawn, ratio):
        traces.append(1)
        return masking.block_mask(drawn, grid=(16, 16, 16), block_sizes=(4,), ratio=ratio)

    for ratio, wanted in [(0.05, 3), (0.3, 19)]:
        mask = np.asarray(draw(keys(2), jnp.float32(ratio)))
        assert mask.sum() == 2 * wanted * 64
    assert len(traces) == 1


def test_fixed_masks_follow_the_patch_and_the_seed():
    settings = {"grid": GRID, "block_sizes": (2, 4), "ratio": 0.3}
    first = np.asarray(fixed_masks(3, jnp.array([7, 1, 5]), **settings))
    again = np.asarray(fixed_masks(3, jnp.array([5, 9, 7]), **settings))
    np.testing.assert_array_equal(first[2], again[0])
    np.testing.assert_array_equal(first[0], again[2])
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, np.asarray(fixed_masks(4, jnp.array([7, 1, 5]), **settings)))


def test_apply_mask_zeroes_masked_voxels_only():
    images = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, (2, *GRID, 2)).astype(np.float32))
    mask = block_mask(keys(2), grid=GRID, ratio=0.3)
    found = np.asarray(apply_mask(images, mask))
    assert np.all(found[np.asarray(mask)] == 0)
    np.testing.assert_array_equal(found[~np.asarray(mask)], np.asarray(images)[~np.asarray(mask)])


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"block size 8 does not divide the grid \(16, 12, 24\)"):
        block_mask(keys(1), grid=(16, 12, 24), block_sizes=(4, 8), ratio=0.3)
    with pytest.raises(ValueError, match=r"ratio 1\.5 is outside"):
        block_mask(keys(1), grid=GRID, ratio=1.5)
    with pytest.raises(ValueError, match=r"rounding 'up' is unknown; allowed: nearest, down"):
        block_mask(keys(1), grid=GRID, ratio=0.3, rounding="up")
    with pytest.raises(ValueError, match="empty"):
        block_mask(keys(1), grid=GRID, block_sizes=(), ratio=0.3)
