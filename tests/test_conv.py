"""Convolutions: the CPU forms against XLA's and SciPy's, the transposed one, no giant windows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lsmfm_jax.models import conv_kernels
from lsmfm_jax.models.conv import Conv, ConvTranspose, conv3d, conv_transpose3d, triple

# input channels, window, strides, padding, spatial size
CASES = {
    "3 same": (6, (3, 3, 3), (1, 1, 1), (1, 1, 1), (4, 5, 6)),
    "3 strided, odd sizes": (6, (3, 3, 3), (2, 2, 2), (1, 1, 1), (7, 6, 5)),
    "one input channel": (1, (3, 3, 3), (2, 2, 2), (1, 1, 1), (8, 6, 4)),
    "7 stem": (1, (7, 7, 7), (1, 1, 1), (3, 3, 3), (5, 6, 4)),
    "patches": (5, (2, 2, 2), (2, 2, 2), (0, 0, 0), (7, 6, 8)),
    "anisotropic": (5, (3, 2, 3), (1, 2, 3), (0, 1, 2), (6, 5, 7)),
    "steps beyond the window": (5, (2, 2, 2), (3, 3, 3), (0, 0, 0), (7, 6, 8)),
    "padding beyond the window": (5, (3, 3, 3), (1, 1, 1), (3, 3, 3), (3, 4, 2)),
}


def library(x, kernel, strides, padding):
    pads = [(p, p) for p in padding]
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@pytest.fixture
def always_quick(monkeypatch):
    """Take the CPU forms at any size."""
    monkeypatch.setattr(conv_kernels, "WORTHWHILE", 0)


@pytest.mark.parametrize("case", CASES)
def test_quick_forms_equal_the_library(case, always_quick):
    channels, window, strides, padding, size = CASES[case]
    x, kernel = draw(0, 2, *size, channels), draw(1, *window, channels, 4)
    expected, pull = jax.vjp(lambda x, k: library(x, k, strides, padding), x, kernel)
    gradient = draw(2, *expected.shape)

    @jax.jit
    def run(x, kernel, gradient):
        y, pull = jax.vjp(lambda x, k: conv3d(x, k, strides=strides, padding=padding), x, kernel)
        return y, *pull(gradient)

    for ours, theirs in zip(run(x, kernel, gradient), (expected, *pull(gradient)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_weight_gradient_over_several_slabs(always_quick, monkeypatch):
    """Slabs that do not divide the depth, against a sum in double precision."""
    monkeypatch.setattr(conv_kernels, "SLAB_VOXELS", 60)
    x, gradient = draw(0, 1, 7, 5, 6, 5), draw(1, 1, 7, 5, 6, 3)
    ours = conv_kernels.weight_gradient((1, 1, 1), (1, 1, 1), (3, 3, 3), x, gradient)
    for tap in np.ndindex(3, 3, 3):
        near = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))
        near = near[:, tap[0] : tap[0] + 7, tap[1] : tap[1] + 5, tap[2] : tap[2] + 6]
        np.testing.assert_allclose(
            ours[tap],
            np.einsum("bzyxc,bzyxf->cf", near, np.asarray(gradient, np.float64)),
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize("quick", [False, True])
def test_forward_equals_scipy(quick, monkeypatch):
    monkeypatch.setattr(conv_kernels, "WORTHWHILE", 0 if quick else 2**60)
    x, kernel = draw(0, 1, 5, 6, 7, 2), draw(1, 3, 3, 3, 2, 3)
    ours = conv3d(x, kernel, strides=2, padding=1)
    padded = np.pad(x[0], ((1, 1), (1, 1), (1, 1), (0, 0)))
    for feature in range(3):
        theirs = scipy.signal.correlate(padded, kernel[..., feature], mode="valid")[::2, ::2, ::2, 0]
        np.testing.assert_allclose(ours[0, ..., feature], theirs, atol=1e-5)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(("window", "padding", "extra"), [(3, 1, 1), (2, 0, 0), (3, 1, 0)])
def test_transposed_spreads_each_voxel_by_the_kernel(window, padding, extra, quick, monkeypatch):
    """One bright voxel leaves the kernel at `stride * position - padding`; many leave their sum."""
    monkeypatch.setattr(conv_kernels, "WORTHWHILE", 0 if quick else 2**60)
    x, kernel = draw(0, 1, 3, 4, 2, 3), draw(1, window, window, window, 3, 2)
    spread = np.zeros((1, 12, 14, 10, 2), np.float32)
    for z, y, i in np.ndindex(3, 4, 2):
        stamp = np.einsum("c,zyxcf->zyxf", x[0, z, y, i], kernel)
        spread[0, 2 * z : 2 * z + window, 2 * y : 2 * y + window, 2 * i : 2 * i + window] += stamp
    size = [(n - 1) * 2 - 2 * padding + window + extra for n in (3, 4, 2)]
    expected = spread[:, padding:, padding:, padding:][:, : size[0], : size[1], : size[2]]

    def transposed(x, kernel):
        return conv_transpose3d(x, kernel, strides=2, padding=padding, output_padding=extra)

    y, pull = jax.vjp(transposed, x, kernel)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    gradient = draw(3, *y.shape)
    gradient_x, gradient_kernel = pull(gradient)
    # It is linear in each argument, so its gradient in one is read off by moving that argument alone.
    for seed in range(3):
        other_x, other_kernel = draw(10 + seed, *x.shape), draw(20 + seed, *kernel.shape)
        along_x = np.vdot(gradient, transposed(other_x, kernel))
        along_kernel = np.vdot(gradient, transposed(x, other_kernel))
        np.testing.assert_allclose(np.vdot(gradient_x, other_x), along_x, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(np.vdot(gradient_kernel, other_kernel), along_kernel, rtol=1e-4, atol=1e-3)


def gradients_of_up_block(x, kernel):
    def loss(x, kernel):
        y = conv_transpose3d(x, kernel, strides=2, padding=1, output_padding=1)
        return jnp.sum(jnp.square(y))

    return jax.grad(loss, (0, 1))(x, kernel)


UP_BLOCK = (
    jax.ShapeDtypeStruct((1, 12, 12, 12, 8), jnp.float32),
    jax.ShapeDtypeStruct((3, 3, 3, 8, 8), jnp.float32),
)


def test_no_window_as_large_as_the_volume(always_quick):
    program = jax.jit(gradients_of_up_block).lower(*UP_BLOCK).compile().as_text()
    windows = re.findall(r"convolution\(.*window=\{size=([\dx]+)", program)
    assert windows, "the program holds no convolution to look at"
    assert max(int(n) for window in windows for n in window.split("x")) < 10, windows


def test_transposed_weight_gradient_is_canonical_on_a_gpu(always_quick):
    """Lowered for a GPU, no window as large as the volume slides over a dilated input: slow there."""
    lowered = jax.jit(gradients_of_up_block).trace(*UP_BLOCK).lower(lowering_platforms=("cuda",)).as_text()
    convolutions = re.findall(r"stablehlo\.convolution.*", lowered)
    assert len(convolutions) == 3
    for line in convolutions:
        assert re.search(r"\[b, 0, 1, 2, f\]|\[f, 0, 1, 2, b\]", line), "a 2D form was lowered for the GPU"
        operand, kernel = re.findall(r"tensor<([\dx]+)xf32>", line)[:2]
        dilated = re.search(r"lhs_dilate = \[([^\]]*)\]", line)
        if dilated and "2" in dilated[1]:
            assert max(int(n) for n in kernel.split("x")) < 10, (operand, kernel)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs more than one device (forced CPU devices will do)")
def test_sharded_depth_gives_the_same(always_quick):
    mesh = jax.make_mesh((2,), ("depth",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec(None, "depth"))
    x, kernel, back = draw(0, 1, 8, 6, 4, 5), draw(1, 3, 3, 3, 5, 6), draw(2, 3, 3, 3, 6, 3)

    def loss(x, kernel, back):
        y = conv3d(x, kernel, strides=2, padding=1)
        return jnp.sum(jnp.sin(conv_transpose3d(y, back, strides=2, padding=1, output_padding=1)))

    value_and_gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    alone = value_and_gradients(x, kernel, back)
    shared = value_and_gradients(jax.device_put(x, split), kernel, back)
    for one, two in zip(jax.tree.leaves(alone), jax.tree.leaves(shared), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs more than one device (forced CPU devices will do)")
def test_sharded_samples_are_summed_over_devices_once_not_in_the_loop_over_slabs(always_quick):
    """What XLA's CPU runtime sends inside a loop can meet, in another process, what is sent outside of it."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    x, gradient = draw(0, 4, 8, 16, 16, 5), draw(1, 4, 8, 16, 16, 6)

    @jax.jit
    def weight_gradient(x, gradient):
        return conv_kernels.weight_gradient((1, 1, 1), (1, 1, 1), (3, 3, 3), x, gradient)

    shared = jax.device_put(x, split), jax.device_put(gradient, split)
    program = weight_gradient.lower(*shared).compile().as_text()
    computations = re.split(r"\n(?=%|ENTRY)", program)
    (loop,) = set(re.findall(r"body=(%[\w.\-]+)", program))
    (body,) = [text for text in computations if text.startswith(loop + " ")]
    assert "all-reduce" not in body
    assert len(re.findall(r" all-reduce\(", program)) == 1
    np.testing.assert_allclose(weight_gradient(*shared), weight_gradient(x, gradient), rtol=1e-5, atol=1e-4)


def test_pointwise_is_a_matrix_product():
    x, kernel = draw(0, 1, 3, 4, 5, 6), draw(1, 1, 1, 1, 6, 2)
    np.testing.assert_allclose(conv3d(x, kernel), np.einsum("bzyxc,cf->bzyxf", x, kernel[0, 0, 0]), atol=1e-5)
    assert "convolution" not in jax.jit(conv3d).lower(x, kernel).as_text()


def test_modules_compute_in_their_dtype_and_keep_float32_parameters():
    x = draw(0, 1, 4, 4, 4, 3)
    for module in (
        Conv(5, 3, dtype=jnp.bfloat16),
        ConvTranspose(5, 3, 2, padding=1, output_padding=1, dtype=jnp.bfloat16),
    ):
        variables = module.init(jax.random.key(0), x)
        y, pull = jax.vjp(lambda p, m=module: m.apply(p, x), variables)
        assert y.dtype == jnp.bfloat16
        gradients = pull(jnp.ones_like(y))[0]
        for leaf in jax.tree.leaves((variables, gradients)):
            assert leaf.dtype == jnp.float32
        # Counted in bfloat16 the voxels would stop at 256.
        voxels = y.size // 5
        np.testing.assert_array_equal(gradients["params"]["bias"], np.full(5, voxels, np.float32))


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match=r"three \(Z, Y, X\), got \(1, 2\)"):
        triple((1, 2))
    with pytest.raises(ValueError, match="output_padding"):
        conv_transpose3d(draw(0, 1, 2, 2, 2, 1), draw(1, 3, 3, 3, 1, 1), strides=2, output_padding=2)
