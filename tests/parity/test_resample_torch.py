"""Resizing against torch's interpolate."""

import jax.numpy as jnp
import numpy as np
import pytest

from lsmfm_jax.resample import resize_nearest, resize_trilinear

torch = pytest.importorskip("torch")

SIZES = [
    ((96, 96, 96), (64, 64, 64)),
    ((9, 12, 7), (6, 20, 7)),
    ((100, 20, 30), (96, 13, 31)),
    ((1, 4, 5), (3, 2, 1)),
]


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_trilinear_equals_torch(before, after):
    given = np.random.default_rng(0).uniform(0, 1, (1, *before, 1)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(given).permute(0, 4, 1, 2, 3), size=after, mode="trilinear", align_corners=False
    )
    found = np.asarray(resize_trilinear(jnp.asarray(given), after))
    np.testing.assert_allclose(found, wanted.permute(0, 2, 3, 4, 1).numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_nearest_equals_torch(before, after):
    given = np.random.default_rng(0).integers(0, 255, (2, *before, 1)).astype(np.uint8)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(given).permute(0, 4, 1, 2, 3), size=after, mode="nearest-exact"
    )
    found = np.asarray(resize_nearest(jnp.asarray(given), after))
    np.testing.assert_array_equal(found, wanted.permute(0, 2, 3, 4, 1).numpy())
