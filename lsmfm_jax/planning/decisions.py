"""What follows for a segmentation recipe from what its patches measure: one rule for each key, each a pure function.

A value of the recipe stays unless the patches disagree with it by more than a factor of two, since the recipe's values
are those that were measured on several structures. Augmentation is not planned, for the same reason.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsmfm_jax.planning.fingerprint import Fingerprint, sides_in_voxels

# Beyond this the patches overrule the recipe.
FACTOR = 2.0
# The background is a mean over a Gaussian of this many objects, and a crop is this many of them wide.
BACKGROUND_OBJECTS, CROP_OBJECTS = 2.0, 4.0
# Mean voxels; with 3 a threshold on axons of 1 to 4 voxels carried over far worse than with 6 to 18.
LEAST_SIGMA = 6.0
# Below this level, counts, a logarithm of counts is cut off: the file is no longer in counts.
LEAST_COUNTS = 4.0
# The recipes were measured with this many patches to train on.
USUAL_PATCHES = 4
# At least this share of the crops should show foreground.
CROPS_WITH_FOREGROUND = 0.5
# What soft clDice gets of the loss for tubes: half of what the variant `vessels` gives it.
TUBES_CL_DICE = 0.25
# Its skeleton takes three erosions, so thicker tubes have none; and it needs whole tubes, not slices of them.
THICKEST_TUBE, WHOLLY_ANNOTATED = 7.0, 0.9
# Voxel sides that differ by this factor need a background in micrometres.
UNEVEN = 1.5


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is said of one key.

    Attributes:
        key: dotted path, such as `data.patch_size`.
        value: that it gets, or keeps.
        why: in one sentence, with what was measured.
        changed: whether the value is another than the recipe's.
    """

    key: str
    value: Any
    why: str
    changed: bool


def decide_scale(found: Fingerprint, *, scale: str) -> Decision:
    """`data.scale`: local, which carries over to the next brain best; z_score where a file is not in counts.

    The local scale takes the logarithm of counts, of one count at least: of images that were scaled to [0, 1] nothing
    would be left.
    """
    if found.background_counts < LEAST_COUNTS:
        why = f"the background is at {found.background_counts:.2g}, too little for the logarithm of the local scale"
        return Decision("data.scale", "z_score", why, scale != "z_score")
    why = f"foreground lies {found.contrast_octaves:.1f} octaves above the background around it"
    return Decision("data.scale", "local", why, scale != "local")


def decide_background(found: Fingerprint, *, sigma_voxels: float, sigma_um: float) -> list[Decision]:
    """`data.background_sigma_voxels` or, where all files have a voxel size, `data.background_sigma_um`.

    About twice an object, at least `LEAST_SIGMA`, at most half of a patch's shortest side. What the recipe has stays
    if it is within a factor of two of that, and if voxels are about as deep as wide and alike in all files; else the
    sigma in micrometres makes the Gaussian round. With a sigma in micrometres comes the same in voxels, for files
    without a voxel size.
    """
    if not found.objects:
        return []
    unit, mean = "voxels", 1.0
    if found.mean_voxel_um is not None:
        unit, mean = "µm", found.mean_voxel_um
    sides = np.array(found.voxel_sizes_um or ((1.0, 1.0, 1.0),)) / mean
    widest = float(min(np.min(np.array(found.shape) * sides, axis=1))) / 2
    target = min(max(BACKGROUND_OBJECTS * found.size, LEAST_SIGMA), widest)
    now = sigma_um / mean if sigma_um and unit == "µm" else sigma_voxels
    uneven = float(sides.max() / sides.min()) >= UNEVEN and not sigma_um
    measured = f"objects are {_across(found)} across; a background wants about twice that, at least {LEAST_SIGMA:g}"
    key = "data.background_sigma_um" if sigma_um and unit == "µm" else "data.background_sigma_voxels"
    if _agree(now, target) and not uneven:
        return [Decision(key, sigma_um if key.endswith("um") else sigma_voxels, measured, False)]
    voxels = round(max(target, 1.0), 1)
    decided = [Decision("data.background_sigma_voxels", voxels, measured, voxels != sigma_voxels)]
    if unit == "µm":
        uneven_why = f"{measured}; in µm, as voxels are not as deep as wide or differ between files"
        why = uneven_why if uneven else measured
        decided.insert(0, Decision("data.background_sigma_um", round(max(target, 1.0) * mean, 1), why, True))
        fallback = "the same in mean voxels, for files without a voxel size"
        decided[1] = dataclasses.replace(decided[1], why=fallback)
    return decided


def decide_patch_size(found: Fingerprint, *, patch_size: Sequence[int], divisor: int) -> Decision:
    """`data.patch_size`: a few objects wide, no larger than the patches, a multiple of the network's divisor.

    Along each axis the recipe's side stays if it is two objects wide or more; else it becomes four objects, at most
    twice the recipe's side. No side is longer than those that three quarters of the patches have.
    """
    across = sides_in_voxels(found, found.size)
    sides = tuple(
        crop_side(side, have=have, across=float(one), divisor=divisor)
        for side, have, one in zip(patch_size, found.shape, across, strict=True)
    )
    small = [want > have for want, have in zip(patch_size, found.shape, strict=True)]
    why = f"objects are {_across(found)} across"
    why += f", and patches {' × '.join(map(str, found.shape))} voxels" if any(small) else ""
    if any(side < FACTOR * one for side, one in zip(sides, across, strict=True)):
        why += "; a crop shows less than two objects, so take a recipe for larger crops or bin the images"
    return Decision("data.patch_size", sides, why, sides != tuple(patch_size))


def crop_side(side: int, *, have: int, across: float, divisor: int) -> int:
    """One side of a crop, voxels: see `decide_patch_size`.

    Args:
        side: of the recipe.
        have: of the patches.
        across: of an object along this axis.
        divisor: of the network.
    """
    wanted = float(side)
    if side < CROP_OBJECTS / FACTOR * across:
        wanted = min(CROP_OBJECTS * across, 2.0 * side)
    least = math.ceil(8 / divisor) * divisor
    largest = max(have // divisor * divisor, least)
    return min(math.ceil(wanted / divisor) * divisor, largest)


def decide_foreground(shown: float, *, foreground_frac: float) -> Decision:
    """`data.foreground_frac`: so many that half of the crops show foreground, and no fewer than the recipe has.

    Args:
        shown: share of crops drawn anywhere that show foreground.
        foreground_frac: of the recipe.
    """
    needed = (CROPS_WITH_FOREGROUND - shown) / (1.0 - shown) if shown < CROPS_WITH_FOREGROUND else 0.0
    share = max(foreground_frac, math.ceil(20 * needed - 1e-9) / 20)
    why = f"{100 * shown:.0f} % of crops drawn anywhere show foreground"
    return Decision("data.foreground_frac", share, why, share != foreground_frac)


def decide_crops(patches: int, *, crops_per_patch: int) -> Decision:
    """`data.crops_per_patch`: more where there are fewer than four patches to train on, so that an epoch stays as long.

    The recipes were measured with four. More patches make an epoch longer, as they should.
    """
    crops = math.ceil(crops_per_patch * USUAL_PATCHES / patches) if patches < USUAL_PATCHES else crops_per_patch
    why = f"{patches} patch{'' if patches == 1 else 'es'} to train on, and the recipe was measured with {USUAL_PATCHES}"
    return Decision("data.crops_per_patch", crops, why, crops != crops_per_patch)


def decide_batch(sides: Sequence[int], *, patch_size: Sequence[int], batch_size: int) -> Decision:
    """`train.batch_size`: smaller where crops became more than twice as large as the recipe's, for the memory's sake.

    Args:
        sides: of the planned crops, voxels.
        patch_size: of the recipe.
        batch_size: of the recipe.
    """
    growth = math.prod(sides) / math.prod(patch_size)
    batch = max(1, math.floor(batch_size / growth)) if growth > FACTOR else batch_size
    why = f"a crop has {growth:.3g} times the voxels of the recipe's"
    return Decision("train.batch_size", batch, why, batch != batch_size)


def decide_loss(found: Fingerprint, *, cl_dice_frac: float) -> Decision:
    """`loss.cl_dice_frac`: a quarter for thin tubes that are annotated throughout; else as the recipe has it."""
    key = "loss.cl_dice_frac"
    why = f"{100 * found.tube_frac:.0f} % of the foreground is in tubes and networks"
    if not found.tubes or cl_dice_frac:
        return Decision(key, cl_dice_frac, why, False)
    if found.annotated_frac < WHOLLY_ANNOTATED:
        return Decision(key, cl_dice_frac, f"{why}, but only slices are annotated, which have no centre line", False)
    if found.width > THICKEST_TUBE:
        return Decision(key, cl_dice_frac, f"{why}, {found.width:.1f} voxels wide, too thick for its skeleton", False)
    return Decision(key, TUBES_CL_DICE, f"{why}, {found.width:.1f} voxels wide; soft clDice keeps them whole", True)


def decide_sides(patches: int, volumes: int, *, validation_frac: float, split_by: str) -> Decision | None:
    """What validates where the recipe's draw by volume is impossible: none of one patch; files of one volume.

    Args:
        patches: that there are.
        volumes: that they are from.
        validation_frac: of the recipe.
        split_by: of the recipe.
    """
    if not validation_frac or (volumes > 1 and patches > 1):
        return None
    if patches == 1:
        return Decision("data.validation_frac", 0.0, "there is one patch, and it is needed to train", True)
    if split_by == "file":
        return None
    why = "all patches are of one volume: the validation says nothing about the next brain"
    return Decision("data.split_by", "file", why, True)


def _agree(one: float, other: float) -> bool:
    return 1.0 / FACTOR <= one / max(other, 1e-9) <= FACTOR


def _across(found: Fingerprint) -> str:
    um = found.um(found.size)
    kind = "tubes, " if found.tubes else ""
    return f"{kind}{found.size:.1f} voxels" + ("" if um is None else f" ({um:.1f} µm)")
