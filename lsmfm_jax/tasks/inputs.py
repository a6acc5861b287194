"""What all tasks do with a batch before the network sees it."""

import dataclasses

import jax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from lsmfm_jax.appearance import Appearance, vary_appearance
from lsmfm_jax.augment import AugmentSettings
from lsmfm_jax.scale import OCTAVES, Scale

# Folded into a sample's key.
_APPEARANCE = 20


def geometry_settings(config: ConfigDict) -> AugmentSettings:
    """Flips, turns and affine maps of a configuration's `augment`, one chance for each; no change of intensities."""
    chance = config.probability
    return AugmentSettings(
        flip_prob=chance,
        independent_flips=config.independent_flips,
        rotate90_prob=chance,
        affine_prob=chance,
        affine_rotation_rad=config.rotation_rad,
        affine_scale_frac=config.scale_frac,
        noise_prob=0.0,
        smooth_prob=0.0,
        scale_prob=0.0,
        shift_prob=0.0,
    )


def augment_settings(config: ConfigDict) -> AugmentSettings:
    """The augmentation that a configuration's `augment` describes: one chance for each of the seven."""
    chance = config.probability
    return dataclasses.replace(
        geometry_settings(config),
        noise_prob=chance,
        noise_std=config.noise_std,
        smooth_prob=chance,
        smooth_sigma_voxels=tuple(config.smooth_sigma),
        scale_prob=chance,
        scale_frac=config.intensity_scale_frac,
        shift_prob=chance,
        shift=config.intensity_shift,
    )


def configured_scale(config: ConfigDict) -> Scale:
    """The intensity scale that a configuration's `data` names."""
    data = config.data
    return Scale(
        name=data.scale,
        percentiles=(float(data.lower_percentile), float(data.upper_percentile)),
        sigma_voxels=data.background_sigma_voxels,
        sigma_um=data.background_sigma_um,
        offset_counts=data.camera_offset,
    )


def appearance_settings(config: ConfigDict) -> Appearance:
    """How samples vary in looks by a configuration: its `augment.appearance`, about its scale's background."""
    wanted = config.augment.appearance
    low, high = OCTAVES
    return Appearance(
        background=-low / (high - low) if config.data.scale in ("log_ratio", "local") else 0.0,
        contrast=wanted.contrast,
        gamma=wanted.gamma,
        shift=wanted.level_shift,
        bias_field=wanted.bias_field,
        noise_std=wanted.noise_std,
        z_blur_prob=wanted.z_blur_prob,
        z_blur_sigma=wanted.z_blur_sigma,
        stripe_prob=wanted.stripe_prob,
        stripe_std=wanted.stripe_std,
    )


def varied(images: Float[Array, "b z y x 1"], keys: Array, config: ConfigDict) -> Float[Array, "b z y x 1"]:
    """Scaled images in another appearance for each sample; see `lsmfm_jax.appearance`."""
    # A part of the key of its own, so that the draws of the other augmentations stay what they are.
    own = jax.vmap(lambda key: jax.random.fold_in(key, _APPEARANCE))(keys)
    return vary_appearance(images, own, settings=appearance_settings(config))
