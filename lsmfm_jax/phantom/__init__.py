"""Generated light-sheet volumes: patches with masks and captions, written in layouts that can be ingested."""

import dataclasses
import gzip
import itertools
import json
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import UInt8, UInt16
from scipy.ndimage import gaussian_filter

from lsmfm_jax.errors import InputError
from lsmfm_jax.files import replace_file, replace_text, replacing
from lsmfm_jax.phantom.captions import CAPTIONS, volume_captions
from lsmfm_jax.phantom.optics import Optics, draw_optics, expose
from lsmfm_jax.phantom.structures import KINDS
from lsmfm_jax.phantom.tissue import surroundings

LAYOUTS = ("flat", "selma", "wu")
# Few patches a volume, so that even a small set has enough volumes to split by.
PATCHES_PER_VOLUME = 3


def make_phantom(
    kind: str,
    size: tuple[int, int, int],
    rng: np.random.Generator,
    *,
    optics: Optics | None = None,
) -> tuple[UInt16[np.ndarray, "z y x"], UInt8[np.ndarray, "z y x"], dict]:
    """One generated patch: its image in camera counts, its 0/1 mask, and the parameters behind it.

    Args:
        kind: One of `KINDS`: nuclei, plaques, vessels, neurons, glia.
        size: Voxels, Z Y X.
        rng: Source of every draw.
        optics: The specimen's imaging parameters; drawn from `rng` when None.

    Raises:
        ValueError: If the kind is unknown or an axis has fewer than 8 voxels.
    """
    if kind not in KINDS:
        raise InputError(f"phantom kind {kind!r} is unknown; allowed: {', '.join(KINDS)}")
    check_phantoms(count=1, size=size)
    optics = draw_optics(kind, rng) if optics is None else optics
    voxel_um = np.array(optics.voxel_um)
    structure = KINDS[kind](size, voxel_um, rng)
    tissue, inside = surroundings(size, voxel_um, texture=optics.texture, kind=kind, rng=rng)
    image = expose(structure.label * inside, tissue, optics=optics, rng=rng)
    mask = (structure.mask & (inside > 0.5)).astype(np.uint8)
    params = {"kind": kind, "objects": structure.objects, **dataclasses.asdict(optics)}
    return image, mask, params


def blur_counts(image: UInt16[np.ndarray, "z y x"], rng: np.random.Generator) -> UInt16[np.ndarray, "z y x"]:
    """The blurred companion of a patch: a Gaussian of sigma 2.5 voxels, then N(0, 2.5) counts."""
    soft = gaussian_filter(image.astype(np.float32), sigma=2.5)
    noisy = soft + 2.5 * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(noisy), 0, np.iinfo(np.uint16).max).astype(np.uint16)


def check_phantoms(*, count: int, size: tuple[int, int, int]) -> None:
    """Refuse what cannot be generated, before a file is written.

    Raises:
        InputError: the count is not positive, or an axis has fewer than 8 voxels.
    """
    if count < 1:
        raise InputError(f"phantom count {count} must be at least 1")
    if len(size) != 3 or min(size) < 8:
        raise InputError(f"phantom size {size} must be three axes (Z, Y, X) of at least 8 voxels each")


def write_phantoms(
    out: Path,
    *,
    count: int,
    size: tuple[int, int, int] = (96, 96, 96),
    seed: int,
    layout: str = "flat",
    blurred: bool = False,
) -> list[Path]:
    """Write `count` patches, spread evenly over the kinds, with masks and `captions.json`; return the files.

    The patches of one volume share their imaging parameters. The same arguments give the same bytes.

    Raises:
        ValueError: If the layout is unknown or the count is not positive.
    """
    if layout not in LAYOUTS:
        raise InputError(f"phantom layout {layout!r} is unknown; allowed: {', '.join(LAYOUTS)}")
    check_phantoms(count=count, size=tuple(size))
    out = Path(out)
    files: list[Path] = []
    captions: dict[str, list[str]] = {}
    for kind_index, kind in enumerate(KINDS):
        patches = count // len(KINDS) + (kind_index < count % len(KINDS))
        volumes = max(min(2, patches), -(-patches // PATCHES_PER_VOLUME))
        for patch in range(patches):
            volume = patch % volumes
            optics = draw_optics(kind, np.random.default_rng([seed, kind_index, volume]))
            rng = np.random.default_rng([seed, kind_index, volume, patch])
            image, mask, params = make_phantom(kind, tuple(size), rng, optics=optics)
            stem = _stem(out, layout=layout, kind=kind, volume=volume, patch=patch)
            arrays = {"": image, "_label": mask}
            if blurred:
                arrays["_blurred"] = blur_counts(image, rng)
            for suffix, array in arrays.items():
                files.append(_write_nifti(stem.with_name(f"{stem.name}{suffix}.nii.gz"), array, optics.voxel_um))
            key = stem.parent.parent.name if layout == "wu" else kind
            captions[key] = list(CAPTIONS[kind])
            if layout == "wu":
                captions[key] = volume_captions(kind, params, volume=volume)
    return [*files, _write_captions(out / "captions.json", captions)]


def _stem(out: Path, *, layout: str, kind: str, volume: int, patch: int) -> Path:
    """The path of a patch without its ending."""
    if layout == "flat":
        return out / f"{kind}_patch_{patch:03d}_vol{volume:03d}_ch0"
    if layout == "selma":
        return out / kind / f"patchvolume_{volume:03d}_{patch}"
    return out / f"{kind}_{volume:02d}" / "input" / f"patch_{patch:03d}"


def _write_nifti(path: Path, array: np.ndarray, voxel_um: tuple[float, float, float]) -> Path:
    """Write a Z Y X array as NIfTI, which is X Y Z on disk; without a time stamp, so that bytes repeat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.ascontiguousarray(array.T), np.diag([*voxel_um[::-1], 1.0]))
    image.header.set_xyzt_units("micron")
    replace_file(path, gzip.compress(image.to_bytes(), compresslevel=3, mtime=0))
    return path


def _write_captions(path: Path, captions: dict[str, list[str]]) -> Path:
    """Write captions as {key: {"orig": first, "rewrites": the rest}}."""
    content = {key: {"orig": texts[0], "rewrites": texts[1:]} for key, texts in sorted(captions.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(content, indent=2) + "\n")
    return path


def gallery(path: Path, *, size: tuple[int, int, int] = (96, 96, 96), seed: int = 11) -> Path:
    """Draw one PNG row per kind: a slice, two maximum projections, and the mask over a thin slab."""
    from matplotlib.figure import Figure

    columns = ("slice", "projection along Z", "projection along Y", "mask over a thin slab")
    figure = Figure(figsize=(2.0 * len(columns), 2.06 * len(KINDS)), layout="constrained")
    axes = figure.subplots(len(KINDS), len(columns), squeeze=False)
    for row, kind in enumerate(KINDS):
        image, mask, _ = make_phantom(kind, size, np.random.default_rng([seed, row]))
        middle, thin = size[0] // 2, max(1, size[0] // 16)
        slab = slice(middle - thin, middle + thin)
        views = (image[middle], image.max(axis=0), image.max(axis=1), image[slab].max(axis=0))
        for axis, view in zip(axes[row], views, strict=True):
            low, high = np.percentile(view, [1, 99.6])
            axis.imshow(view, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        flat = mask[slab].max(axis=0)
        colour = np.zeros((*flat.shape, 4), np.float32)
        colour[flat > 0] = (1.0, 0.35, 0.1, 0.45)
        axes[row, -1].imshow(colour, interpolation="nearest")
        axes[row, 0].set_ylabel(kind)
    for axis, title in itertools.zip_longest(axes[0], columns):
        axis.set_title(title, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=70, format="png")
    return Path(path)
