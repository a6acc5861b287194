"""The plan of a recipe: what its patches measure, and what each rule makes of it."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lsmfm_jax.data.labelled import side_folders
from lsmfm_jax.data.labelled_batches import LabelledSource, Size
from lsmfm_jax.data.labelled_patches import LabelledPatch
from lsmfm_jax.data.patches import fit
from lsmfm_jax.models import BACKBONES, configured_architecture
from lsmfm_jax.planning.decisions import (
    Decision,
    decide_background,
    decide_batch,
    decide_crops,
    decide_foreground,
    decide_loss,
    decide_patch_size,
    decide_scale,
    decide_sides,
)
from lsmfm_jax.planning.fingerprint import Fingerprint, by_volume, fingerprint, measure_patch

# Crops drawn in all to see how many show foreground.
_CROPS = 400
# Before a run starts only so many patches are measured, of each so many voxels along an axis.
_PATCHES_GLANCED_AT, _LARGEST_GLANCED_AT = 4, 160


class Plan(NamedTuple):
    """What was measured and decided.

    Attributes:
        overall: fingerprint of all patches.
        volumes: of each volume.
        decisions: one for each key that was thought about, in the order of the recipe.
    """

    overall: Fingerprint
    volumes: list[Fingerprint]
    decisions: list[Decision]


def make_plan(
    config: ConfigDict,
    train: Sequence[LabelledPatch],
    validation: Sequence[LabelledPatch] = (),
    *,
    given: Sequence[str] = (),
) -> Plan:
    """Measures patches and decides on each key that a plan knows.

    Args:
        config: of a segmentation recipe.
        train: patches to train on or, where none are named for validation, all that a run draws its sides from.
        validation: patches that folders or names give to the validation; measured too.
        given: keys that a person has set; nothing is decided about them.
    """
    measured = [measure_patch(patch) for patch in (*train, *validation)]
    overall, data = fingerprint(measured), config.data
    divisor, _ = BACKBONES[config.model.name].divisor(configured_architecture(config.model.to_dict()))
    crop = decide_patch_size(overall, patch_size=data.patch_size, divisor=divisor)
    sides = tuple(data.patch_size) if crop.key in given else crop.value
    decisions = [decide_scale(overall, scale=data.scale)]
    if not {"data.background_sigma_voxels", "data.background_sigma_um"} & set(given):
        sigmas = {"sigma_voxels": data.background_sigma_voxels, "sigma_um": data.background_sigma_um}
        decisions += decide_background(overall, **sigmas)
    decisions += [
        crop,
        decide_batch(sides, patch_size=data.patch_size, batch_size=config.train.batch_size),
        decide_crops(_training_patches(config, train, validation), crops_per_patch=data.crops_per_patch),
        decide_foreground(crops_with_foreground(train, sides), foreground_frac=data.foreground_frac),
        decide_loss(overall, cl_dice_frac=config.loss.cl_dice_frac),
    ]
    if not validation and _sides_are_drawn(config):
        volumes = len({patch.volume for patch in train})
        drawn = {"validation_frac": data.validation_frac, "split_by": data.split_by}
        decisions += [one for one in [decide_sides(len(train), volumes, **drawn)] if one]
    return Plan(overall, by_volume(measured), [one for one in decisions if one.key not in given])


def _sides_are_drawn(config: ConfigDict) -> bool:
    """Whether neither names nor a folder `train/` say which patches train."""
    return not config.data.train_names and side_folders(pathlib.Path(config.data.folder)) is None


def _training_patches(config: ConfigDict, train: Sequence[LabelledPatch], validation: Sequence[LabelledPatch]) -> int:
    """How many patches a run will train on, about: by the validation's share where its patches are drawn."""
    if validation or not config.data.validation_frac or not _sides_are_drawn(config):
        return len(train)
    # One at least validates.
    return max(1, min(len(train) - 1, round(len(train) * (1.0 - config.data.validation_frac))))


def crops_with_foreground(patches: Sequence[LabelledPatch], size: Size) -> float:
    """Share of training crops drawn anywhere, as training draws them, that show a voxel of foreground.

    Args:
        patches: with masks.
        size: Z, Y, X of a crop, voxels.
    """
    source, rng = LabelledSource(patches, patch_size=size), np.random.default_rng(0)
    shown = []
    for index in np.resize(np.arange(len(patches)), max(_CROPS, len(patches))):
        target = patches[index].target
        assert target is not None
        corner = source.corner(int(index), rng, foreground_frac=0.0)
        shown.append(bool((fit(target, size, corner) == 1).any()))
    return float(np.mean(shown))


def _middle(patch: LabelledPatch) -> LabelledPatch:
    """The middle of a patch, small enough to be measured in seconds."""
    assert patch.target is not None and patch.counts is not None
    size = tuple(min(side, _LARGEST_GLANCED_AT) for side in patch.counts.shape)
    parts = {name: fit(getattr(patch, name), size, (0.5, 0.5, 0.5)) for name in ("target", "counts")}
    return dataclasses.replace(patch, **parts)


def disagreement(config: ConfigDict, patches: Sequence[LabelledPatch]) -> str | None:
    """One line where the objects of some patches do not fit a run's background or crops; None where they do.

    Args:
        config: of a segmentation run.
        patches: of its training side; the middles of a few of them are measured.
    """
    step = max(1, math.ceil(len(patches) / _PATCHES_GLANCED_AT))
    measured = [measure_patch(_middle(patch)) for patch in patches[::step]]
    if not any(patch.foreground for patch in measured):
        return None
    found, data = fingerprint(measured), config.data
    wrong = []
    if data.scale == "local":
        sigmas = {"sigma_voxels": data.background_sigma_voxels, "sigma_um": data.background_sigma_um}
        wrong += [f"{one.key} {one.value:g}" for one in decide_background(found, **sigmas)[:1] if one.changed]
    crop = decide_patch_size(found, patch_size=data.patch_size, divisor=1)
    if any(now < wanted for now, wanted in zip(data.patch_size, crop.value, strict=True)):
        wrong.append(f"{crop.key} {crop.value}")
    if not wrong:
        return None
    kind = "wide (tubes)" if found.tubes else "across"
    return (
        f"the objects are about {found.size:.1f} voxels {kind}, for which {' and '.join(wrong)} would fit better than "
        f"this run's; `lsmfm plan {data.folder}` writes a recipe with it"
    )
