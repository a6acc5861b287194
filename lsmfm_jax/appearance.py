"""Augmentation of how a volume looks, as brains, stains and microscopes differ: on the device, each sample by its key.

A network that learns from five patches of one brain takes the contrast of that brain for granted. These steps draw
another contrast, brightness curve, illumination, blur in depth and noise for each sample and step, so that it cannot.
They act before the seven augmentations of the paper (`augment`) and change no mask. Chances and strengths of 0 leave
a step out of the program.
"""

from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lsmfm_jax.resample import gaussian_smooth, resize_trilinear

# Numbers that a drawn field has along each axis; it is linear between them.
FIELD_SIDE = 3


@dataclass(frozen=True)
class Appearance:
    """How strongly samples vary; intensities are those of a scale, in [0, 1].

    Attributes:
        background: the scaled intensity that is no signal: contrast is stretched about it (0.2 for ratios to a
            background, 0 for percentiles).
        contrast: signal is multiplied by e to the power of up to plus or minus this, in every sample.
        gamma: signal is bent by a power of e to up to plus or minus this, the value `bend` kept.
        shift: added, up to plus or minus.
        bias_field: standard deviation of a smooth field that is added, at most.
        noise_std: standard deviation of Gaussian noise, at most.
        z_blur_prob: chance of a blur in Z, as of a thicker light sheet or coarser steps.
        z_blur_sigma: its largest standard deviation, voxels.
        stripe_prob: chance of stripes along the light, in X, as of shadows.
        stripe_std: their largest standard deviation.
    """

    background: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    shift: float = 0.0
    bias_field: float = 0.0
    noise_std: float = 0.0
    z_blur_prob: float = 0.0
    z_blur_sigma: float = 1.5
    stripe_prob: float = 0.0
    stripe_std: float = 0.02

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"appearance {entry.name} = {value} is not a number from 0 on")

    @property
    def changes(self) -> bool:
        """Whether anything is changed at all."""
        strengths = (self.contrast, self.gamma, self.shift, self.bias_field, self.noise_std)
        return any((*strengths, self.z_blur_prob, self.stripe_prob))


# Where a bend of the curve leaves intensities as they are: half of what lies above the background.
_BEND = 0.5


def vary_appearance(
    images: Float[Array, "b z y x c"], keys: Key[Array, "b"], *, settings: Appearance
) -> Float[Array, "b z y x c"]:
    """Draw another appearance for each sample; the result is not clipped, `augment` does that.

    A sample's result depends on its own key alone, not on its place or company in the batch.
    """
    if not settings.changes:
        return images
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (8,)))(_part(keys, 0))

    def between(column: int, limit: float) -> Float[Array, "b 1 1 1 1"]:
        return (limit * (2 * drawn[:, column] - 1))[:, None, None, None, None]

    if settings.z_blur_prob:
        sigma = jnp.where(drawn[:, 0] < settings.z_blur_prob, settings.z_blur_sigma * drawn[:, 1], 0.0)
        images = gaussian_smooth(images, jnp.stack([sigma, jnp.zeros_like(sigma), jnp.zeros_like(sigma)], axis=1))
    signal = images - settings.background
    if settings.gamma:
        power = jnp.exp(between(2, settings.gamma))
        half = _BEND * (1 - settings.background)
        # What is darker than the background stays: a power of a negative number is none.
        positive = jnp.maximum(signal, 1e-6)
        signal = jnp.where(signal > 1e-6, half * (positive / half) ** power, signal)
    if settings.contrast:
        signal = signal * jnp.exp(between(3, settings.contrast))
    images = signal + settings.background
    if settings.shift:
        images = images + between(4, settings.shift)
    if settings.bias_field:
        images = images + settings.bias_field * drawn[:, 5, None, None, None, None] * _fields(_part(keys, 1), images)
    if settings.stripe_prob:
        strength = jnp.where(drawn[:, 6] < settings.stripe_prob, settings.stripe_std, 0.0)
        lines = jax.vmap(lambda key: jax.random.normal(key, (images.shape[1], images.shape[2])))(_part(keys, 2))
        images = images + strength[:, None, None, None, None] * lines[:, :, :, None, None]
    if settings.noise_std:
        noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(_part(keys, 3))
        images = images + settings.noise_std * drawn[:, 7, None, None, None, None] * noise
    return images


def _part(keys: Key[Array, "b"], number: int) -> Key[Array, "b"]:
    """Keys of one step, so that leaving a step out moves no draw of another."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _fields(keys: Key[Array, "b"], images: Float[Array, "b z y x c"]) -> Float[Array, "b z y x 1"]:
    """A smooth field for each sample, of standard deviation 1 at the points it is drawn at."""
    coarse = jax.vmap(lambda key: jax.random.normal(key, (FIELD_SIDE,) * 3))(keys)
    return resize_trilinear(coarse[..., None], images.shape[1:4])
