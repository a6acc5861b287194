"""What all tasks do with a batch before the network sees it."""

import dataclasses

from ml_collections import ConfigDict

from lsmfm_jax.augment import AugmentSettings


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
