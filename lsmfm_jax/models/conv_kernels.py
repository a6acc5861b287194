"""3D convolutions in the forms that run fast on a CPU.

XLA's 3D convolution is slow on CPUs, its 2D one and its matrix product are not. So a 3D convolution becomes 2D
convolutions, over slabs of planes with the taps along depth side by side in the channels, or one for each tap; and
its weight gradient becomes matrix products, each over one slab of voxels.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lsmfm_jax.precision import wide_type

Triple = tuple[int, int, int]
# Multiplications below which XLA's own form is quick enough, and compiles faster.
WORTHWHILE = 2**22
# Voxels of one slab of a weight gradient: its shifted copies then stay in the cache between writing and reading.
SLAB_VOXELS = 1024
# The same of a convolution; a map of fewer voxels is convolved whole.
CONVOLVED_SLAB_VOXELS = 8192


def is_worthwhile(voxels: int, kernel_shape: tuple[int, ...]) -> bool:
    """Whether a convolution with this many output voxels (over the batch) is faster in the forms below."""
    return voxels * math.prod(kernel_shape) >= WORTHWHILE


def convolve(
    strides: Triple,
    padding: Triple,
    x: Float[Array, "b z y x c"],
    kernel: Float[Array, "kz ky kx c f"],
) -> Float[Array, "b z2 y2 x2 f"]:
    """Convolve as 2D convolutions: slab by slab along depth or, where it has steps or is small, tap by tap."""
    batch, depth, height, width, channels = x.shape
    depth_out = (depth + 2 * padding[0] - kernel.shape[0]) // strides[0] + 1
    padded = jnp.pad(x, ((0, 0), (padding[0], padding[0]), (0, 0), (0, 0), (0, 0)))
    planes_each = max(1, CONVOLVED_SLAB_VOXELS // (batch * height * width))
    if strides == (1, 1, 1) and planes_each < depth_out:
        slab = next(n for n in range(planes_each, 0, -1) if depth_out % n == 0)
        return _convolve_by_slabs(padding, padded, kernel, slab=slab)
    total: Array | None = None
    for tap in range(kernel.shape[0]):
        last = tap + strides[0] * (depth_out - 1) + 1
        planes = padded[:, tap : last : strides[0]].reshape(batch * depth_out, height, width, channels)
        term = _in_plane(strides, padding, planes, kernel[tap])
        total = term if total is None else total + term
    return total.reshape(batch, depth_out, *total.shape[1:])


def _in_plane(strides: Triple, padding: Triple, planes: Array, kernel: Array) -> Array:
    pads = [(p, p) for p in padding[1:]]
    return lax.conv_general_dilated(planes, kernel, strides[1:], pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _convolve_by_slabs(padding: Triple, padded: Array, kernel: Array, *, slab: int) -> Array:
    """Convolve `slab` planes at a time, the depth taps side by side in the channels; depth is padded already.

    Copies stay in the cache, and the loop makes the result one array. A sum of terms, one for each tap, XLA adds up
    anew in whatever reads it, and keeps every term for the backward pass.
    """
    taps = kernel.shape[0]
    batch, depth = padded.shape[0], padded.shape[1] - taps + 1
    beside = jnp.concatenate([kernel[tap] for tap in range(taps)], 2)

    def convolved(start: Array | int) -> Array:
        near = lax.dynamic_slice_in_dim(padded, start, slab + taps - 1, 1)
        wide = jnp.concatenate([near[:, tap : tap + slab] for tap in range(taps)], -1)
        planes = _in_plane((1, 1, 1), padding, wide.reshape(batch * slab, *wide.shape[2:]), beside)
        return planes.reshape(batch, slab, *planes.shape[1:])

    def step(index: Array, out: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(out, convolved(index * slab), index * slab, 1)

    # Begun with the first slab: an array of zeros depends on nothing, and would be made and held from the start.
    begun = jnp.pad(convolved(0), ((0, 0), (0, depth - slab), (0, 0), (0, 0), (0, 0)))
    return lax.fori_loop(1, depth // slab, step, begun)


def input_gradient(
    strides: Triple,
    padding: Triple,
    shape: tuple[int, ...],
    gradient: Float[Array, "b z2 y2 x2 f"],
    kernel: Float[Array, "kz ky kx c f"],
) -> Float[Array, "b z y x c"]:
    """Carry a gradient of the output of `convolve` back to its input of the given shape."""
    reach = tuple(k - 1 - p for k, p in zip(kernel.shape[:3], padding, strict=True))
    if strides == (1, 1, 1) and min(reach) >= 0:
        mirrored = jnp.swapaxes(jnp.flip(kernel, (0, 1, 2)), 3, 4)
        return convolve(strides, reach, gradient, mirrored)
    x = jax.ShapeDtypeStruct(shape, gradient.dtype)
    (result,) = jax.linear_transpose(lambda x: convolve(strides, padding, x, kernel), x)(gradient)
    return result


def weight_gradient(
    strides: Triple,
    padding: Triple,
    sizes: Triple,
    x: Float[Array, "b z y x c"],
    gradient: Float[Array, "b z2 y2 x2 f"],
) -> Float[Array, "kz ky kx c f"]:
    """Carry a gradient of the output of `convolve` back to its kernel of the given window.

    With steps along depth and height, voxels fall into phases, and each tap meets those of one phase only.
    Sums are taken slab by slab, which also rounds ten times less than one long sum.
    """
    if x.shape[:4] == gradient.shape[:4]:
        # What is made of the input alone, padded copies, would else be made and held since the forward pass; a barrier
        # does not help, XLA drops it on CPUs. Voxel by voxel, so that nothing is sent where volumes are split.
        x = x + 0 * gradient[..., :1]
    if x.shape[-1] <= 4:
        return _weight_gradient_few_inputs(strides, padding, sizes, x, gradient)
    padded = jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    rows = []
    for z in range(min(strides[0], sizes[0])):
        columns = []
        for y in range(min(strides[1], sizes[1])):
            taps = (-(-(sizes[0] - z) // strides[0]), -(-(sizes[1] - y) // strides[1]), sizes[2])
            phase = padded[:, z :: strides[0], y :: strides[1]]
            columns.append(_phase_gradient(taps, strides[2], phase, gradient))
        rows.append(_interleave(columns, axis=1, size=sizes[1]))
    return _interleave(rows, axis=0, size=sizes[0]).astype(x.dtype)


def _interleave(parts: list[Array], *, axis: int, size: int) -> Array:
    """Put the taps of the phases back into their order: phase r holds the taps r, r + s, r + 2s, ..."""
    if len(parts) == 1:
        return parts[0]
    taps = [lax.index_in_dim(parts[k % len(parts)], k // len(parts), axis) for k in range(size)]
    return jnp.concatenate(taps, axis)


def _phase_gradient(taps: Triple, stride: int, x: Array, gradient: Array) -> Array:
    """Weight gradient where depth and height have steps of one; `stride` is the one along the width.

    Shifts along the width are put side by side on the input's side, those along depth and height on the
    gradient's. So one product serves all taps, and (kz ky F + kx C) channels are copied, not (kz ky kx C).
    """
    batch, depth_out, height_out, width_out, features = gradient.shape
    channels, (tz, ty, tx) = x.shape[-1], taps
    total_type = wide_type(x, gradient)
    height = height_out + ty - 1
    depth = depth_out + tz - 1
    x = _fit(x, depth, height)
    slab = max(1, min(depth, SLAB_VOXELS // (batch * height * width_out)))
    slabs = -(-depth // slab)
    x = jnp.pad(x, ((0, 0), (0, slabs * slab - depth), (0, 0), (0, 0), (0, 0)))
    behind = slabs * slab - depth_out
    margins = ((0, 0), (tz - 1, behind), (ty - 1, ty - 1), (0, 0), (0, 0))
    turned = jnp.transpose(jnp.pad(gradient, margins), (0, 4, 1, 2, 3))  # B F z y x

    def factors(index: Array | int) -> tuple[Array, Array]:
        voxels = lax.dynamic_slice_in_dim(x, index * slab, slab, 1)
        last = stride * (width_out - 1) + 1
        wide = jnp.concatenate([voxels[:, :, :, k : k + last : stride] for k in range(tx)], -1)
        wide = wide.reshape(batch, -1, tx * channels)
        near = lax.dynamic_slice_in_dim(turned, index * slab, slab + tz - 1, 2)
        shifted = [
            near[:, :, tz - 1 - kz : tz - 1 - kz + slab, ty - 1 - ky : ty - 1 - ky + height]
            for kz in range(tz)
            for ky in range(ty)
        ]
        tall = jnp.stack(shifted, 1).reshape(batch, tz * ty * features, -1)
        # The barrier makes both be written once; fused into the product they would be gathered many times.
        return lax.optimization_barrier((tall, wide))

    def step(sums: Array, index: Array) -> tuple[Array, None]:
        return sums + jnp.matmul(*factors(index), preferred_element_type=total_type), None

    if slabs == 1:
        total = jnp.einsum("bmv,bvn->mn", *factors(0), preferred_element_type=total_type)
    else:
        # A sum for each sample, added up at the end: one for all would, where samples are on several devices, be summed
        # over these once a slab, and XLA does not keep what is sent inside a loop in one order with the rest.
        sums = jnp.zeros((batch, tz * ty * features, tx * channels), total_type)
        total = lax.scan(step, sums, jnp.arange(slabs))[0].sum(0)
    return total.reshape(tz, ty, features, tx, channels).transpose(0, 1, 3, 4, 2)


def _fit(x: Array, depth: int, height: int) -> Array:
    """Cut or zero-pad depth and height to the voxels that any output voxel can see."""
    x = x[:, :depth, :height]
    return jnp.pad(x, ((0, 0), (0, depth - x.shape[1]), (0, height - x.shape[2]), (0, 0), (0, 0)))


def _weight_gradient_few_inputs(strides: Triple, padding: Triple, sizes: Triple, x: Array, gradient: Array) -> Array:
    """Weight gradient for a handful of input channels: all taps side by side, one product."""
    padded = jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    spans = [s * (n - 1) + 1 for s, n in zip(strides, gradient.shape[1:4], strict=True)]
    for axis, (taps, span, stride) in enumerate(zip(sizes, spans, strides, strict=True), start=1):
        slices = [lax.slice_in_dim(padded, k, k + span, stride, axis) for k in range(taps)]
        padded = lax.optimization_barrier(jnp.concatenate(slices, -1))
    # Appended last, the taps along the width are now the slowest: x, y, z read backwards.
    columns = padded.reshape(-1, math.prod(sizes) * x.shape[-1])
    flat = gradient.reshape(-1, gradient.shape[-1])
    product = jnp.matmul(columns.T, flat, preferred_element_type=wide_type(x, gradient))
    turned = product.reshape(sizes[2], sizes[1], sizes[0], x.shape[-1], -1)
    return jnp.transpose(turned, (2, 1, 0, 3, 4)).astype(x.dtype)
