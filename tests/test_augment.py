"""Augmentation: what each step does, how often, keyed per sample, images and masks together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage as ndimage

from lsmfm_jax.augment import (
    AugmentSettings,
    augment,
    augment_intensity,
    augment_pair,
    draw_geometry,
    draw_intensity,
    scale_intensity,
)

PROBS = [field.name for field in dataclasses.fields(AugmentSettings) if field.name.endswith("_prob")]
NEVER = AugmentSettings(**dict.fromkeys(PROBS, 0.0))
SHAPE = (12, 12, 10)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def images(count, shape=SHAPE, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(0.3, 0.7, (count, *shape, 1)).astype(np.float32))


# Compiled as a whole: faster here than operation by operation.
apply = jax.jit(augment, static_argnames="settings")
apply_pair = jax.jit(augment_pair, static_argnames="settings")
apply_intensity = jax.jit(augment_intensity, static_argnames="settings")
draw_intensities = jax.jit(draw_intensity, static_argnames="settings")
draw_matrices = jax.jit(draw_geometry, static_argnames=("settings", "shape"))


def only(**changes):
    return dataclasses.replace(NEVER, **changes)


def test_scale_intensity_maps_percentiles_to_the_unit_interval():
    given = np.arange(2 * 4 * 4 * 4, dtype=np.uint16).reshape(2, 4, 4, 4) * 500
    low, high = np.array([100, 40_000.0], np.float32), np.array([20_000, 60_000.0], np.float32)
    wanted = (given - low[:, None, None, None].astype(float)) / (high - low)[:, None, None, None]
    found = scale_intensity(jnp.asarray(given), jnp.asarray(low), jnp.asarray(high))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(found), wanted.clip(0, 1), atol=1e-6)
    free = np.asarray(scale_intensity(jnp.asarray(given), jnp.asarray(low), jnp.asarray(high), clip=False))
    np.testing.assert_allclose(free, wanted, rtol=1e-5, atol=1e-6)
    assert free.max() > 1 and free.min() < 0


def test_scale_intensity_of_a_constant_volume_is_finite():
    given = jnp.full((2, 3, 3, 3), 7, jnp.uint8)
    found = scale_intensity(given, jnp.array([7.0, 9.0]), jnp.array([7.0, 3.0]))
    np.testing.assert_array_equal(np.asarray(found), 0)


def test_nothing_happens_at_probability_zero():
    given = images(2)
    np.testing.assert_array_equal(np.asarray(apply(given, keys(2), settings=NEVER)), np.asarray(given))


def test_the_flip_is_of_all_three_axes_together():
    given = images(1)
    found = np.asarray(apply(given, keys(1), settings=only(flip_prob=1.0)))
    np.testing.assert_array_equal(found, np.asarray(given)[:, ::-1, ::-1, ::-1])


def test_independent_flips_reach_all_eight_orientations():
    given = np.asarray(images(1))
    settings = only(flip_prob=0.5, independent_flips=True)
    found = np.asarray(apply(jnp.repeat(jnp.asarray(given), 60, axis=0), keys(2000)[:60], settings=settings))
    wanted = {
        np.ascontiguousarray(given[0, ::z, ::y, ::x]).tobytes() for z in (1, -1) for y in (1, -1) for x in (1, -1)
    }
    assert {sample.tobytes() for sample in found} == wanted


def test_quarter_turns_are_those_of_numpy_in_one_plane():
    given = np.asarray(images(1))
    found = np.asarray(
        augment(jnp.repeat(jnp.asarray(given), 60, axis=0), keys(2000)[:60], settings=only(rotate90_prob=1.0))
    )
    wanted = {np.ascontiguousarray(np.rot90(given[0], k, axes=(0, 1))).tobytes() for k in (1, 2, 3)}
    assert {sample.tobytes() for sample in found} == wanted


def test_unequal_sides_get_the_half_turn_only():
    given = images(4, (6, 10, 8))
    found = np.asarray(apply(given, keys(4), settings=only(rotate90_prob=1.0)))
    np.testing.assert_array_equal(found, np.rot90(np.asarray(given), 2, axes=(1, 2)))


def orientations(matrices):
    """Split each matrix into its flip of all axes (±1), its quarter turns and whether there is an affine map.

    The affine map is near the identity, so that rounding leaves the signed permutation.
    """
    first = np.round(matrices).astype(int)
    flips = first[:, 2, 2]
    names = {(1, 0): 0, (0, 1): 1, (-1, 0): 2, (0, -1): 3}
    turns = np.array([names[tuple(m[0, :2] * sign)] for m, sign in zip(first, flips, strict=True)])
    return flips, turns, np.any(matrices != first, axis=(1, 2))


def test_geometry_is_flip_then_turn_then_affine():
    """The one resampling equals numpy's flip and turn followed by scipy's affine map."""
    settings = only(flip_prob=0.5, rotate90_prob=0.7, affine_prob=1.0)
    given, drawn = images(8), keys(8)
    found = np.asarray(apply(given, drawn, settings=settings))
    geometry_keys = jax.vmap(jax.random.split)(drawn)[:, 0]
    matrices = np.asarray(draw_matrices(geometry_keys, settings=settings, shape=SHAPE))
    flips, turns, _ = orientations(matrices)
    assert len(set(flips)) == 2 and len(set(turns)) > 2
    middle = (np.array(SHAPE) - 1) / 2
    for i in range(8):
        whole = matrices[i].astype(float)
        last = np.linalg.inv(np.round(whole)) @ whole
        flipped = np.asarray(given)[i, ..., 0]
        flipped = np.flip(flipped) if flips[i] < 0 else flipped
        turned = np.rot90(flipped, turns[i], axes=(0, 1))
        wanted = ndimage.affine_transform(turned, last, middle - last @ middle, order=1, mode="reflect")
        np.testing.assert_allclose(found[i, ..., 0], wanted, atol=2e-5)


def test_the_affine_map_stays_within_its_ranges():
    matrices = np.asarray(draw_matrices(keys(2000), settings=only(affine_prob=1.0), shape=SHAPE)).astype(float)
    stretch = np.linalg.norm(matrices, axis=1)  # of each column: the scale along that axis
    assert stretch.min() > 0.9 - 1e-5 and stretch.max() < 1.1 + 1e-5
    assert stretch.min() < 0.91 and stretch.max() > 1.09
    rotation = matrices / stretch[:, None]
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (2000, 3, 3)), atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
    turned = np.arccos(((np.trace(rotation, axis1=1, axis2=2) - 1) / 2).clip(-1, 1))
    assert 0.15 < turned.max() < 0.1 * np.sqrt(3) + 0.01


def test_how_often_each_is_drawn():
    count = 2000
    settings = AugmentSettings()
    draw = draw_intensities(keys(count), settings=settings)
    chances = {
        name: float(np.mean(np.asarray(value) != 0)) for name, value in draw._asdict().items() if value.ndim == 1
    }
    chances["smooth"] = float(np.mean(np.any(np.asarray(draw.sigma_voxels) != 0, axis=1)))
    flips, turns, affine = orientations(np.asarray(draw_matrices(keys(count), settings=settings, shape=SHAPE)))
    chances |= {"flip": np.mean(flips < 0), "turn": np.mean(turns > 0), "affine": np.mean(affine)}
    assert set(turns) == {0, 1, 2, 3}
    assert len(chances) == 7
    for name, chance in chances.items():
        assert abs(chance - 0.2) < 4 * np.sqrt(0.2 * 0.8 / count), name
    happened = np.stack([np.asarray(v) != 0 for v in (draw.noise_std, draw.scale, draw.shift)])
    assert np.abs(np.corrcoef(happened) - np.eye(3)).max() < 0.1
    sigma = np.asarray(draw.sigma_voxels)[np.asarray(draw.sigma_voxels) != 0]
    assert 0.25 <= sigma.min() < 0.3 and 1.45 < sigma.max() <= 1.5
    assert 0.19 < np.abs(np.asarray(draw.scale)).max() <= 0.2 and 0.19 < np.abs(np.asarray(draw.shift)).max() <= 0.2
    assert set(np.unique(np.asarray(draw.noise_std))) == {0.0, np.float32(0.02)}


def test_noise_has_its_spread():
    found = np.asarray(apply(jnp.full((1, 20, 20, 20, 1), 0.5), keys(1), settings=only(noise_prob=1.0)))
    assert abs(found.std() - 0.02) < 0.001 and abs(found.mean() - 0.5) < 0.001


def test_smoothing_scale_and_shift_follow_their_draws():
    settings = only(smooth_prob=1.0, scale_prob=1.0, shift_prob=1.0)
    given = images(3)
    found = np.asarray(apply_intensity(given, keys(3), settings=settings))
    draw = draw_intensities(jax.vmap(jax.random.split)(keys(3))[:, 0], settings=settings)
    for i in range(3):
        smooth = ndimage.gaussian_filter(np.asarray(given)[i, ..., 0], np.asarray(draw.sigma_voxels)[i], mode="reflect")
        wanted = smooth * (1 + float(draw.scale[i])) + float(draw.shift[i])
        np.testing.assert_allclose(found[i, ..., 0], wanted.clip(0, 1), atol=5e-6)


def test_the_result_stays_in_the_unit_interval():
    extremes = jnp.asarray(np.random.default_rng(0).integers(0, 2, (8, *SHAPE, 1)).astype(np.float32))
    settings = AugmentSettings(**dict.fromkeys(PROBS, 0.8))
    found = np.asarray(apply(extremes, keys(8), settings=settings))
    assert found.dtype == np.float32 and found.shape == extremes.shape
    assert np.isfinite(found).all() and found.min() == 0 and found.max() == 1


def test_a_sample_depends_on_its_own_key_alone():
    given, drawn = images(4), keys(4)
    settings = AugmentSettings(**dict.fromkeys(PROBS, 0.6))
    whole = np.asarray(apply(given, drawn, settings=settings))
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(
        np.asarray(apply(given[order], drawn[order], settings=settings)), whole[order], atol=1e-6
    )
    for i in range(4):
        alone = np.asarray(apply(given[i : i + 1], drawn[i : i + 1], settings=settings))
        np.testing.assert_allclose(alone, whole[i : i + 1], atol=1e-6)
    same = np.asarray(apply(jnp.repeat(given[:1], 4, axis=0), drawn, settings=settings))
    assert len({sample.tobytes() for sample in same}) == 4


def test_image_and_mask_move_together():
    """Image and labels both equal scipy's map by one matrix, linear and nearest."""
    settings = only(flip_prob=0.5, rotate90_prob=0.5, affine_prob=1.0)
    given, drawn = images(8), keys(8)
    labels = jnp.asarray(np.random.default_rng(1).integers(0, 5, (8, *SHAPE, 1)), jnp.int32)
    moved, masks = apply_pair(given, labels, drawn, settings=settings)
    assert masks.dtype == jnp.int32
    matrices = np.asarray(draw_matrices(jax.vmap(jax.random.split)(drawn)[:, 0], settings=settings, shape=SHAPE), float)
    middle = (np.array(SHAPE) - 1) / 2
    for i, matrix in enumerate(matrices):
        place = {"matrix": matrix, "offset": middle - matrix @ middle, "mode": "reflect"}
        image = ndimage.affine_transform(np.asarray(given)[i, ..., 0], order=1, **place)
        np.testing.assert_allclose(np.asarray(moved)[i, ..., 0], image, atol=2e-5)
        mask = ndimage.affine_transform(np.asarray(labels)[i, ..., 0], order=0, **place)
        # A position within rounding of the middle between two voxels may fall either way.
        assert np.mean(np.asarray(masks)[i, ..., 0] != mask) < 0.005


def test_masks_keep_their_values_through_intensity_changes():
    settings = only(noise_prob=1.0, smooth_prob=1.0, scale_prob=1.0, shift_prob=1.0)
    masks = images(2) > 0.5
    moved, same = apply_pair(images(2), masks, keys(2), settings=settings)
    np.testing.assert_array_equal(np.asarray(same), np.asarray(masks))
    assert not np.allclose(np.asarray(moved), np.asarray(images(2)), atol=0.01)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"flip_prob = 1\.2"):
        AugmentSettings(flip_prob=1.2)
    with pytest.raises(ValueError, match="smooth_sigma_voxels"):
        AugmentSettings(smooth_sigma_voxels=(1.5, 0.25))
