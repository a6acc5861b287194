"""3D convolution and transposed convolution with PyTorch's padding, as functions and as Flax modules."""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lsmfm_jax.models import conv_kernels
from lsmfm_jax.precision import add_bias

Triple = tuple[int, int, int]
DIMENSIONS = ("NDHWC", "DHWIO", "NDHWC")


def triple(value: int | tuple[int, ...]) -> Triple:
    """Spell a spatial size out as Z, Y, X; one number stands for all three axes."""
    if isinstance(value, int):
        return (value, value, value)
    if len(value) != 3:
        raise ValueError(f"a spatial size is one number or three (Z, Y, X), got {value!r}")
    return (value[0], value[1], value[2])


def conv3d(
    x: Float[Array, "b z y x c"],
    kernel: Float[Array, "kz ky kx c f"],
    *,
    strides: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
) -> Float[Array, "b z2 y2 x2 f"]:
    """Convolve with zero padding on both sides of each axis, as `torch.nn.functional.conv3d` does.

    No tensor may pass 2**31 elements: at 64^3 that is a batch of 64 with 128 channels, or 16 with 512.

    Args:
        x: input, channel last.
        kernel: weights, not flipped (a correlation, as in every deep-learning library).
        strides: steps along Z, Y, X.
        padding: zeros added before and after each axis.
    """
    return _conv(triple(strides), triple(padding), x, kernel)


def _conv(strides: Triple, padding: Triple, x: Array, kernel: Array) -> Array:
    if kernel.shape[:3] == (1, 1, 1) and padding == (0, 0, 0):
        return x[:, :: strides[0], :: strides[1], :: strides[2]] @ kernel[0, 0, 0]
    return _windowed(strides, padding, x, kernel)


def _library(strides: Triple, padding: Triple, x: Array, kernel: Array) -> Array:
    pads = [(p, p) for p in padding]
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=DIMENSIONS)


def _library_input_gradient(
    strides: Triple, padding: Triple, shape: tuple[int, ...], gradient: Array, kernel: Array
) -> Array:
    x = jax.ShapeDtypeStruct(shape, gradient.dtype)
    return jax.linear_transpose(lambda x: _library(strides, padding, x, kernel), x)(gradient)[0]


def _library_weight_gradient(strides: Triple, padding: Triple, sizes: Triple, x: Array, gradient: Array) -> Array:
    kernel = jax.ShapeDtypeStruct((*sizes, x.shape[-1], gradient.shape[-1]), gradient.dtype)
    return jax.linear_transpose(lambda k: _library(strides, padding, x, k), kernel)(gradient)[0]


def _by_platform(
    on_cpu: Callable[..., Array], elsewhere: Callable[..., Array], *arrays: Array, worthwhile: bool
) -> Array:
    """Pick the form when the program is lowered, not when it is traced.

    So a program compiled ahead of time for a GPU on a machine without one holds the GPU's form only.
    """
    if not worthwhile:
        return elsewhere(*arrays)
    return lax.platform_dependent(*arrays, cpu=on_cpu, default=elsewhere)


def _input_gradient(strides: Triple, padding: Triple, shape: tuple[int, ...], gradient: Array, kernel: Array) -> Array:
    """Adjoint of the convolution in its input; `shape` is the input's."""
    return _by_platform(
        partial(conv_kernels.input_gradient, strides, padding, shape),
        partial(_library_input_gradient, strides, padding, shape),
        gradient,
        kernel,
        worthwhile=conv_kernels.is_worthwhile(math.prod(gradient.shape[:4]), kernel.shape),
    )


def _weight_gradient(strides: Triple, padding: Triple, sizes: Triple, x: Array, gradient: Array) -> Array:
    """Adjoint of the convolution in its weights; `sizes` is the kernel's window."""
    shape = (*sizes, x.shape[-1], gradient.shape[-1])
    return _by_platform(
        partial(conv_kernels.weight_gradient, strides, padding, sizes),
        partial(_library_weight_gradient, strides, padding, sizes),
        x,
        gradient,
        worthwhile=conv_kernels.is_worthwhile(math.prod(gradient.shape[:4]), shape),
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _windowed(strides: Triple, padding: Triple, x: Array, kernel: Array) -> Array:
    voxels = x.shape[0]
    for n, p, k, s in zip(x.shape[1:4], padding, kernel.shape[:3], strides, strict=True):
        voxels *= (n + 2 * p - k) // s + 1
    return _by_platform(
        partial(conv_kernels.convolve, strides, padding),
        partial(_library, strides, padding),
        x,
        kernel,
        worthwhile=conv_kernels.is_worthwhile(voxels, kernel.shape),
    )


def _windowed_forward(strides: Triple, padding: Triple, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _windowed(strides, padding, x, kernel), (x, kernel)


def _windowed_backward(
    strides: Triple, padding: Triple, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    return (
        _input_gradient(strides, padding, x.shape, gradient, kernel),
        _weight_gradient(strides, padding, kernel.shape[:3], x, gradient),
    )


_windowed.defvjp(_windowed_forward, _windowed_backward)


def conv_transpose3d(
    x: Float[Array, "b z y x c"],
    kernel: Float[Array, "kz ky kx c f"],
    *,
    strides: int | tuple[int, ...],
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
) -> Float[Array, "b z2 y2 x2 f"]:
    """Convolve transposed, as `torch.nn.functional.conv_transpose3d`: voxel i, tap k land on `s*i + k - p`.

    Each output axis is `(n - 1) * stride - 2 * padding + kernel + output_padding` long. It is the adjoint of
    a strided convolution and is differentiated as such: XLA's own weight gradient would be a convolution with
    a window as large as the volume, some 30 times slower on a GPU.

    Args:
        x: input, channel last.
        kernel: weights, not flipped; torch's `c f kz ky kx` with its axes moved.
        strides: spacing of the input voxels in the output.
        padding: voxels cut from both ends of each output axis.
        output_padding: voxels added at the far end of each output axis; less than the stride.

    Raises:
        ValueError: `output_padding` is not below `strides`, so that no convolution has this adjoint.
    """
    strides, padding, output_padding = triple(strides), triple(padding), triple(output_padding)
    if any(o >= s for o, s in zip(output_padding, strides, strict=True)):
        raise ValueError(f"output_padding {output_padding} must be below strides {strides} on every axis")
    return _transposed(strides, padding, output_padding, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _transposed(strides: Triple, padding: Triple, output_padding: Triple, x: Array, kernel: Array) -> Array:
    sizes = kernel.shape[:3]
    axes = zip(x.shape[1:4], strides, padding, sizes, output_padding, strict=True)
    spatial = tuple((n - 1) * s - 2 * p + k + o for n, s, p, k, o in axes)
    shape = (x.shape[0], *spatial, kernel.shape[-1])
    return _input_gradient(strides, padding, shape, x, jnp.swapaxes(kernel, 3, 4))


def _transposed_forward(
    strides: Triple, padding: Triple, output_padding: Triple, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _transposed(strides, padding, output_padding, x, kernel), (x, kernel)


def _transposed_backward(
    strides: Triple, padding: Triple, output_padding: Triple, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    """Input gradient: the strided convolution. Weight gradient: that convolution's, in its weights."""
    x, kernel = saved
    adjoint = jnp.swapaxes(kernel, 3, 4)
    gradient_kernel = _weight_gradient(strides, padding, adjoint.shape[:3], gradient, x)
    return _windowed(strides, padding, gradient, adjoint), jnp.swapaxes(gradient_kernel, 3, 4)


_transposed.defvjp(_transposed_forward, _transposed_backward)


def uniform_fan_in(fan_in: int) -> Callable[..., Array]:
    """PyTorch's default for convolutions, weights and biases alike: uniform in +-1/sqrt(fan_in)."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """3D convolution, channel last, with PyTorch's default initialisation.

    Parameters: `kernel` (kz, ky, kx, Cin, Cout) and `bias` (Cout), float32.

    Attributes:
        features: output channels.
        kernel_size: window along Z, Y, X; one number stands for all.
        strides: steps along Z, Y, X.
        padding: zeros on both sides of each axis; None means `kernel_size // 2`.
        use_bias: whether a bias is added.
        kernel_init: initialiser of the weights; None means PyTorch's default.
        dtype: compute and output dtype.
    """

    features: int
    kernel_size: int | tuple[int, ...]
    strides: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] | None = None
    use_bias: bool = True
    kernel_init: Callable[..., Array] | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"]) -> Float[Array, "b z2 y2 x2 f"]:
        """Convolve."""
        window = triple(self.kernel_size)
        padding = tuple(k // 2 for k in window) if self.padding is None else self.padding
        init = uniform_fan_in(math.prod(window) * x.shape[-1])
        kernel = self.param("kernel", self.kernel_init or init, (*window, x.shape[-1], self.features), jnp.float32)
        y = conv3d(x.astype(self.dtype), kernel.astype(self.dtype), strides=self.strides, padding=padding)
        if not self.use_bias:
            return y
        return add_bias(y, self.param("bias", init, (self.features,), jnp.float32))


class ConvTranspose(nn.Module):
    """3D transposed convolution, channel last, with PyTorch's meaning and default initialisation.

    Parameters: `kernel` (kz, ky, kx, Cin, Cout) and `bias` (Cout), float32.

    Attributes:
        features: output channels.
        kernel_size: window along Z, Y, X; one number stands for all.
        strides: spacing of the input voxels in the output.
        padding: voxels cut from both ends of each output axis.
        output_padding: voxels added at the far end of each output axis.
        use_bias: whether a bias is added.
        dtype: compute and output dtype.
    """

    features: int
    kernel_size: int | tuple[int, ...]
    strides: int | tuple[int, ...]
    padding: int | tuple[int, ...] = 0
    output_padding: int | tuple[int, ...] = 0
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b z y x c"]) -> Float[Array, "b z2 y2 x2 f"]:
        """Convolve."""
        window = triple(self.kernel_size)
        # PyTorch counts the fan-in of a transposed convolution on the output side; kept, to start alike.
        init = uniform_fan_in(math.prod(window) * self.features)
        kernel = self.param("kernel", init, (*window, x.shape[-1], self.features), jnp.float32)
        y = conv_transpose3d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=self.strides,
            padding=self.padding,
            output_padding=self.output_padding,
        )
        if not self.use_bias:
            return y
        return add_bias(y, self.param("bias", init, (self.features,), jnp.float32))
