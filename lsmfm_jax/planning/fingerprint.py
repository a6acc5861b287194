"""What annotated patches measure: objects, background, contrast, and what is missing of them.

Each patch is measured once; a fingerprint puts those of a volume, or of all volumes, together.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Num

from lsmfm_jax.data.labelled_patches import LabelledPatch
from lsmfm_jax.data.labels import IGNORED
from lsmfm_jax.planning.objects import Objects, Size, joined, mean_voxel_um, measure_objects, typical
from lsmfm_jax.scale import OCTAVES, Scale, measure

ALL = "all volumes"
# An object is limited to this many widths across: what is larger is branched, flat, or several that touch.
WIDTHS_ACROSS = 1.5


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What one patch measures.

    Attributes:
        name: of the patch.
        volume: that it is from.
        shape: Z, Y, X in voxels.
        voxel_size_um: ZYX, or None where a file has none or only the default of 1, 1, 1.
        annotated: number of voxels that are not ignored.
        foreground: number of voxels.
        objects: see there.
        background_counts: median counts of what is annotated and no foreground, padding left out.
        contrast_octaves: how far the median foreground voxel lies above the background around it; 1 is twice as bright.
        saturated_frac: share of voxels at the largest value of the file's type, of integers.
        zero_frac: share of voxels that are exactly 0, as padding is.
    """

    name: str
    volume: str
    shape: tuple[int, int, int]
    voxel_size_um: Size | None
    annotated: int
    foreground: int
    objects: Objects
    background_counts: float
    contrast_octaves: float
    saturated_frac: float
    zero_frac: float


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What the patches of a volume, or all patches, measure together.

    Lengths in voxels are mean voxels (see `planning.objects`). Figures of objects are medians by voxels, those of the
    intensities medians over patches, shares of voxels are of all voxels together.

    Attributes:
        name: of the volume, or `ALL`.
        patches: how many.
        voxel_sizes_um: ZYX, each that occurs; None where one patch has none.
        shape: the sides Z, Y, X that three quarters of the patches have at least, voxels.
        annotated_frac: share of voxels that are not ignored.
        foreground_frac: share of the annotated voxels.
        objects: how many pieces of connected foreground.
        diameter: of the ball (in single slices: of the disc) of an object's volume, voxels.
        width: of an object where it is widest, voxels.
        tube_frac: share of the foreground in tubes and networks.
        mean_voxel_um: of the patches, their median; None where one has no voxel size.
        background_counts: see `Measured`, as are the next three.
        contrast_octaves: see there.
        saturated_frac: see there.
        zero_frac: see there.
    """

    name: str
    patches: int
    voxel_sizes_um: tuple[Size, ...] | None
    shape: tuple[int, int, int]
    annotated_frac: float
    foreground_frac: float
    objects: int
    diameter: float
    width: float
    tube_frac: float
    mean_voxel_um: float | None
    background_counts: float
    contrast_octaves: float
    saturated_frac: float
    zero_frac: float

    @property
    def tubes(self) -> bool:
        """Whether at least half of the foreground is in tubes and networks."""
        return self.tube_frac >= 0.5

    @property
    def size(self) -> float:
        """How large an object is, voxels: a tube's width; a blob's diameter, at most `WIDTHS_ACROSS` of its widths."""
        if self.tubes:
            return self.width
        return min(self.diameter, WIDTHS_ACROSS * self.width)

    def um(self, voxels: float) -> float | None:
        """A length in micrometres, or None where the voxel size is not known."""
        return None if self.mean_voxel_um is None else voxels * self.mean_voxel_um


def believed_voxel_size(patch: LabelledPatch) -> Size | None:
    """The voxel size ZYX of a patch in micrometres; None where its file has none, or the default of 1, 1, 1."""
    default = patch.voxel_size_um == (1.0, 1.0, 1.0) and "unverified" in patch.voxel_size_source
    return None if default else patch.voxel_size_um


def measure_patch(patch: LabelledPatch) -> Measured:
    """Measures a patch as `read_segmentation` gives it: with its counts and its mask."""
    counts, target, voxel_size_um = patch.counts, patch.target, believed_voxel_size(patch)
    assert counts is not None and target is not None
    objects = measure_objects(target, voxel_size_um)
    background = (target == 0) & (counts != 0)
    foreground = target == 1
    integer = np.issubdtype(counts.dtype, np.integer)
    top = np.iinfo(counts.dtype).max if integer else math.inf
    return Measured(
        name=patch.name,
        volume=patch.volume,
        shape=counts.shape,
        voxel_size_um=voxel_size_um,
        annotated=int((target != IGNORED).sum()),
        foreground=int(foreground.sum()),
        objects=objects,
        background_counts=float(np.median(counts[background])) if background.any() else 0.0,
        contrast_octaves=_contrast(counts, foreground, background, _around(objects, counts.shape, voxel_size_um)),
        saturated_frac=float((counts == top).mean()),
        zero_frac=float((counts == 0).mean()),
    )


def _around(objects: Objects, shape: tuple[int, int, int], voxel_size_um: Size | None) -> tuple[Scale, Size | None]:
    """The scale that compares with the tissue around: twice an object wide, and no wider than the patch can tell."""
    sigma = 2.0 * typical(objects.width, objects.voxels)
    sigma = min(max(sigma, 3.0), max(min(shape) / 2, 1.0))
    sigma_um = 0.0 if voxel_size_um is None else sigma * mean_voxel_um(voxel_size_um)
    return Scale("local", sigma_voxels=sigma, sigma_um=sigma_um), voxel_size_um


def _contrast(
    counts: Num[np.ndarray, "z y x"],
    foreground: Bool[np.ndarray, "z y x"],
    background: Bool[np.ndarray, "z y x"],
    around: tuple[Scale, Size | None],
) -> float:
    if not foreground.any() or not background.any():
        return 0.0
    low, high = OCTAVES
    octaves = low + (high - low) * measure(counts, *around).apply(counts, clip=False)
    return float(np.median(octaves[foreground]) - np.median(octaves[background]))


def fingerprint(patches: Sequence[Measured], name: str = ALL) -> Fingerprint:
    """Puts the measures of patches together; there must be one at least."""
    objects = joined([patch.objects for patch in patches])
    voxels = [math.prod(patch.shape) for patch in patches]
    annotated = sum(patch.annotated for patch in patches)
    sizes = [patch.voxel_size_um for patch in patches]
    known = None if None in sizes else sizes

    def middle(figures: Sequence[float]) -> float:
        return float(np.median(np.asarray(figures, np.float64)))

    def share(figures: Sequence[float]) -> float:
        return float(np.average(np.asarray(figures, np.float64), weights=voxels))

    tubes = float(objects.voxels[objects.tube].sum() / max(objects.voxels.sum(), 1))
    marked = [patch for patch in patches if patch.foreground]
    return Fingerprint(
        name=name,
        patches=len(patches),
        voxel_sizes_um=None if known is None else tuple(sorted(set(known))),
        shape=tuple(int(side) for side in np.quantile([p.shape for p in patches], 0.25, axis=0, method="lower")),
        annotated_frac=annotated / sum(voxels),
        foreground_frac=sum(patch.foreground for patch in patches) / max(annotated, 1),
        objects=len(objects.voxels),
        diameter=typical(objects.diameter, objects.voxels),
        width=typical(objects.width, objects.voxels),
        tube_frac=tubes,
        mean_voxel_um=None if known is None else middle([mean_voxel_um(size) for size in known]),
        background_counts=middle([patch.background_counts for patch in patches]),
        contrast_octaves=middle([patch.contrast_octaves for patch in marked]) if marked else 0.0,
        saturated_frac=share([patch.saturated_frac for patch in patches]),
        zero_frac=share([patch.zero_frac for patch in patches]),
    )


def by_volume(patches: Sequence[Measured]) -> list[Fingerprint]:
    """A fingerprint of each volume, in the order in which they come."""
    of_volume: dict[str, list[Measured]] = {}
    for patch in patches:
        of_volume.setdefault(patch.volume, []).append(patch)
    return [fingerprint(mine, name) for name, mine in of_volume.items()]


def facts(found: Fingerprint) -> dict[str, str]:
    """A fingerprint in words and figures, as the command and the page show it."""
    sizes = "unknown" if found.voxel_sizes_um is None else "; ".join(map(_sides, found.voxel_sizes_um))
    rows = {
        "patches": f"{found.patches}",
        "voxel size Z, Y, X (µm)": sizes,
        "patch shape Z, Y, X (voxels)": _sides(found.shape),
        "foreground": f"{100 * found.foreground_frac:.3g} %",
        "annotated": f"{100 * found.annotated_frac:.3g} %",
        "objects": f"{found.objects}",
        "diameter": _length(found, found.diameter),
        "width": _length(found, found.width),
        "in tubes": f"{100 * found.tube_frac:.0f} % of the foreground",
        "background (counts)": f"{found.background_counts:.4g}",
        "contrast (octaves)": f"{found.contrast_octaves:.2f}",
        "saturated": f"{100 * found.saturated_frac:.2g} %",
        "zeros": f"{100 * found.zero_frac:.2g} %",
    }
    return rows


def _sides(sides: Sequence[float]) -> str:
    return " × ".join(f"{side:g}" for side in sides)


def _length(found: Fingerprint, voxels: float) -> str:
    um = found.um(voxels)
    return f"{voxels:.1f} voxels" + ("" if um is None else f", {um:.1f} µm")


def sides_in_voxels(found: Fingerprint, voxels: float) -> Float[np.ndarray, "3"]:
    """A length in mean voxels as voxels along Z, Y, X; of the most finely sampled file along each axis."""
    if found.voxel_sizes_um is None:
        return np.full(3, float(voxels))
    finest = np.min(found.voxel_sizes_um, axis=0)
    return voxels * found.mean_voxel_um / finest
