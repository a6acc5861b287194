"""Scale raw volumes to [0, 1] and augment them on the device, each sample by its own key."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from lsmfm_jax.errors import InputError
from lsmfm_jax.resample import Order, affine_warp, gaussian_smooth


@dataclass(frozen=True)
class AugmentSettings:
    """Chances and strengths of the seven augmentations of the released configurations, in their order."""

    flip_prob: float = 0.2  # all three axes together
    independent_flips: bool = False  # each axis by its own chance instead: 8 orientations where the joint flip has 2
    rotate90_prob: float = 0.2  # 1 to 3 quarter turns in the ZY plane
    affine_prob: float = 0.2
    affine_rotation_rad: float = 0.1  # about each axis, up to ±
    affine_scale_frac: float = 0.1  # along each axis, up to ±
    noise_prob: float = 0.2
    noise_std: float = 0.02
    smooth_prob: float = 0.2
    smooth_sigma_voxels: tuple[float, float] = (0.25, 1.5)  # drawn between these for each axis
    scale_prob: float = 0.2
    scale_frac: float = 0.2  # times 1 ± up to this
    shift_prob: float = 0.2
    shift: float = 0.2  # plus or minus up to this

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name.endswith("_prob") and not 0 <= value <= 1:
                raise InputError(f"augmentation {entry.name} = {value} is not a chance between 0 and 1")
        low, high = self.smooth_sigma_voxels
        if not 0 <= low <= high:
            raise InputError(
                f"augmentation smooth_sigma_voxels = {self.smooth_sigma_voxels} is not (low, high) with "
                "0 <= low <= high"
            )


class IntensityDraw(NamedTuple):
    """What the intensities of each sample go through; 0 is no change."""

    noise_std: Float[Array, "b"]
    sigma_voxels: Float[Array, "b 3"]
    scale: Float[Array, "b"]
    shift: Float[Array, "b"]


def scale_intensity(
    images: Shaped[Array, "b *grid"], low: Float[Array, "b"], high: Float[Array, "b"], *, clip: bool = True
) -> Float[Array, "b *grid"]:
    """Map `low` to 0 and `high` to 1 for each sample, in float32, and clip to [0, 1].

    `low` and `high` are in the units of `images` (usually the 1st and 99th percentile). Without `clip` the
    values beyond them are kept, as a deblurring target needs. Where `high <= low` (constant) the span is 1.
    """
    shape = (-1,) + (1,) * (images.ndim - 1)
    low, high = low.astype(jnp.float32), high.astype(jnp.float32)
    span = jnp.where(high > low, high - low, 1.0)
    scaled = (images.astype(jnp.float32) - low.reshape(shape)) / span.reshape(shape)
    return jnp.clip(scaled, 0, 1) if clip else scaled


# Where a voxel comes from after k quarter turns in the ZY plane, as np.rot90(volume, k, axes=(0, 1)) has it.
_QUARTER_TURN = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], np.float32)
_TURNS = np.stack([np.linalg.matrix_power(_QUARTER_TURN, k) for k in range(4)])


def _rotation(angles: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Rotations about X, then Y, then Z, in ZYX coordinates."""
    (cos_z, cos_y, cos_x), (sin_z, sin_y, sin_x) = jnp.cos(angles), jnp.sin(angles)
    about_z = jnp.array([[1, 0, 0], [0, cos_z, -sin_z], [0, sin_z, cos_z]])
    about_y = jnp.array([[cos_y, 0, -sin_y], [0, 1, 0], [sin_y, 0, cos_y]])
    about_x = jnp.array([[cos_x, -sin_x, 0], [sin_x, cos_x, 0], [0, 0, 1]])
    return _product(about_z, about_y, about_x)


def _product(*matrices: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """The matrix product in full float32, so that flips and turns stay exact on every device."""
    return jnp.linalg.multi_dot(matrices, precision=jax.lax.Precision.HIGHEST)


def _draw_matrix(key: Key[Array, ""], settings: AugmentSettings, turns: tuple[int, ...]) -> Float[Array, "3 3"]:
    # One call draws all numbers of a sample: many small draws would dominate the time to compile.
    drawn = jax.random.uniform(key, (12,))
    flipped, turned, which, moved, angles, stretches = jnp.split(drawn, (3, 4, 5, 6, 9))
    flipped = flipped if settings.independent_flips else flipped[:1]
    flip = jnp.diag(jnp.broadcast_to(jnp.where(flipped < settings.flip_prob, -1.0, 1.0), (3,)))

    number = jnp.asarray(turns)[(which[0] * len(turns)).astype(jnp.int32)]
    turn = jnp.asarray(_TURNS)[jnp.where(turned[0] < settings.rotate90_prob, number, 0)]

    rotation = _rotation(settings.affine_rotation_rad * (2 * angles - 1))
    stretches = 1 + settings.affine_scale_frac * (2 * stretches - 1)
    affine = jnp.where(moved[0] < settings.affine_prob, rotation * stretches, jnp.eye(3))
    return _product(flip, turn, affine)


def draw_geometry(keys: Key[Array, "b"], *, settings: AugmentSettings, shape: tuple[int, ...]) -> Float[Array, "b 3 3"]:
    """Draw each sample's flip, quarter turns and affine map as one matrix for `affine_warp`.

    `shape` is (Z, Y, X) in voxels: where Z and Y differ, a quarter turn would change the shape, so only the
    half turn is drawn.
    """
    turns = (1, 2, 3) if shape[0] == shape[1] else (2,)
    return jax.vmap(lambda key: _draw_matrix(key, settings, turns))(keys)


def augment_geometry(
    volumes: Sequence[Shaped[Array, "b z y x _"]],
    orders: Sequence[Order],
    keys: Key[Array, "b"],
    *,
    settings: AugmentSettings,
) -> list[Shaped[Array, "b z y x _"]]:
    """Flip, turn and warp several volumes of each sample together: image and mask, or blurred and sharp.

    `orders` says for each how it is interpolated: "linear" (floating point images) or "nearest" (masks). The
    three steps are one resampling, so an image is interpolated once.
    """
    if not (settings.flip_prob or settings.rotate90_prob or settings.affine_prob):
        return list(volumes)
    matrices = draw_geometry(keys, settings=settings, shape=volumes[0].shape[1:4])
    return [affine_warp(volume, matrices, order=order) for volume, order in zip(volumes, orders, strict=True)]


def draw_intensity(keys: Key[Array, "b"], *, settings: AugmentSettings) -> IntensityDraw:
    """Draw each sample's noise, smoothing, scale and shift."""
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (9,)))(keys)
    noisy, smoothed, scaled, shifted = drawn[:, :4].T
    low, high = settings.smooth_sigma_voxels
    sigma_voxels = low + (high - low) * drawn[:, 4:7]
    scale, shift = (2 * drawn[:, 7] - 1) * settings.scale_frac, (2 * drawn[:, 8] - 1) * settings.shift
    return IntensityDraw(
        noise_std=jnp.where(noisy < settings.noise_prob, settings.noise_std, 0.0),
        sigma_voxels=jnp.where(smoothed[:, None] < settings.smooth_prob, sigma_voxels, 0.0),
        scale=jnp.where(scaled < settings.scale_prob, scale, 0.0),
        shift=jnp.where(shifted < settings.shift_prob, shift, 0.0),
    )


def augment_intensity(
    images: Float[Array, "b z y x c"], keys: Key[Array, "b"], *, settings: AugmentSettings
) -> Float[Array, "b z y x c"]:
    """Add noise, smooth, scale and shift each sample, then clip to [0, 1]."""
    halves = jax.vmap(jax.random.split)(keys)
    draw = draw_intensity(halves[:, 0], settings=settings)

    def spread(values: Float[Array, "b"]) -> Float[Array, "b 1 1 1 1"]:
        return values[:, None, None, None, None]

    if settings.noise_prob:
        noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(halves[:, 1])
        images = images + spread(draw.noise_std) * noise
    if settings.smooth_prob:
        images = gaussian_smooth(images, draw.sigma_voxels)
    return jnp.clip(images * (1 + spread(draw.scale)) + spread(draw.shift), 0, 1)


def augment(
    images: Float[Array, "b z y x c"], keys: Key[Array, "b"], *, settings: AugmentSettings
) -> Float[Array, "b z y x c"]:
    """Augment images in [0, 1] by the seven steps of the released configurations; the result is in [0, 1].

    A sample's result depends on its own key alone, not on its place or company in the batch.
    """
    halves = jax.vmap(jax.random.split)(keys)
    (images,) = augment_geometry([images], ["linear"], halves[:, 0], settings=settings)
    return augment_intensity(images, halves[:, 1], settings=settings)


def augment_pair(
    images: Float[Array, "b z y x c"],
    masks: Shaped[Array, "b z y x m"],
    keys: Key[Array, "b"],
    *,
    settings: AugmentSettings,
) -> tuple[Float[Array, "b z y x c"], Shaped[Array, "b z y x m"]]:
    """Augment images, and move their masks with them (nearest, dtype and values kept, intensities untouched).

    The images come out as from `augment` with the same keys.
    """
    halves = jax.vmap(jax.random.split)(keys)
    moved = augment_geometry([images, masks], ["linear", "nearest"], halves[:, 0], settings=settings)
    return augment_intensity(moved[0], halves[:, 1], settings=settings), moved[1]
