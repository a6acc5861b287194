"""Resizing, warping and smoothing against scipy and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage as ndimage
from scipy.spatial.transform import Rotation

from lsmfm_jax.resample import affine_warp, gaussian_smooth, resize_nearest, resize_trilinear


def volumes(shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)


def affine(volume, matrix, **options):
    """The same map by scipy, about the middle of the volume."""
    middle = (np.array(volume.shape) - 1) / 2
    return ndimage.affine_transform(volume, matrix, middle - matrix @ middle, mode="reflect", **options)


@pytest.mark.parametrize("size", [(8, 6, 4), (15, 14, 10), (12, 9, 7)])
def test_resize_trilinear_interpolates_at_voxel_centres(size):
    given = volumes((2, 12, 9, 7, 2))
    where = [
        np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1) for old, new in zip((12, 9, 7), size, strict=True)
    ]
    grid = np.stack(np.meshgrid(*where, indexing="ij"))
    wanted = np.stack(
        [
            np.stack([ndimage.map_coordinates(sample[..., c], grid, order=1) for c in range(2)], axis=-1)
            for sample in given
        ]
    )
    found = resize_trilinear(jnp.asarray(given), size)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-6)


def test_resize_nearest_keeps_values_and_stays_in_register():
    # Blocks of 3 voxels hold one label each: halving and doubling around their centres must not move them.
    labels = np.kron(np.arange(8).reshape(2, 2, 2), np.ones((3, 3, 3))).astype(np.int32)[None, ..., None]
    small = np.asarray(resize_nearest(jnp.asarray(labels), (2, 2, 2)))
    assert small.dtype == np.int32
    np.testing.assert_array_equal(small[0, ..., 0], np.arange(8).reshape(2, 2, 2))
    np.testing.assert_array_equal(np.asarray(resize_nearest(jnp.asarray(small), (6, 6, 6))), labels)


@pytest.mark.parametrize("order", ["linear", "nearest"])
def test_affine_warp_equals_scipy(order):
    shape = (10, 12, 9)
    given = volumes((3, *shape, 2))
    matrices = np.stack(
        [
            Rotation.from_euler("xyz", [0.1, -0.2, 0.3]).as_matrix() * [1.1, 0.9, 1.05],
            np.diag([2.51, 0.43, -1.0]),
            np.eye(3),
        ]
    ).astype(np.float32)
    found = np.asarray(affine_warp(jnp.asarray(given), jnp.asarray(matrices), order=order))
    for sample, matrix, result in zip(given, matrices, found, strict=True):
        for channel in range(2):
            wanted = affine(sample[..., channel], matrix.astype(float), order=1 if order == "linear" else 0)
            if order == "linear":
                np.testing.assert_allclose(result[..., channel], wanted, atol=2e-5)
            else:
                # A position within rounding of the middle between two voxels may fall either way.
                assert np.mean(result[..., channel] != wanted) < 0.005
    np.testing.assert_array_equal(found[2], given[2])


def test_affine_warp_keeps_the_type_of_masks():
    mask = volumes((1, 6, 6, 6, 1)) > 0.5
    turn = jnp.asarray([[[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]])
    found = affine_warp(jnp.asarray(mask), turn, order="nearest")
    assert found.dtype == bool
    np.testing.assert_array_equal(np.asarray(found)[0], np.rot90(mask[0], 1, axes=(0, 1)))


def test_gaussian_smooth_equals_scipy_sample_by_sample():
    given = volumes((4, 12, 9, 16, 2))
    sigmas = np.array([[0.25, 1.5, 0.8], [2.5, 2.5, 2.5], [0, 0, 0], [0, 1.0, 0.3]], np.float32)
    found = np.asarray(gaussian_smooth(jnp.asarray(given), jnp.asarray(sigmas)))
    for sample, sigma, result in zip(given, sigmas, found, strict=True):
        for channel in range(2):
            wanted = ndimage.gaussian_filter(sample[..., channel], sigma, mode="reflect", truncate=4)
            np.testing.assert_allclose(result[..., channel], wanted, atol=2e-6)
    np.testing.assert_array_equal(found[2], given[2])


@pytest.mark.skipif(
    jax.device_count() < 2, reason="needs two devices: XLA_FLAGS=--xla_force_host_platform_device_count=2"
)
def test_a_sharded_batch_stays_sharded():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def both(images, matrices, sigmas):
        return gaussian_smooth(affine_warp(resize_trilinear(images, (8, 8, 8)), matrices, order="linear"), sigmas)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 12, 12, 12, 1), (4, 3, 3), (4, 3))]
    text = jax.jit(both, in_shardings=split, out_shardings=split).lower(*shapes).compile().as_text()
    assert "all-gather" not in text and "all-to-all" not in text and "collective-permute" not in text
