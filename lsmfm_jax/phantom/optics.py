"""How a light-sheet microscope turns tissue into counts: illumination, blur, background, noise, camera."""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt16
from scipy.ndimage import gaussian_filter1d

from lsmfm_jax.phantom.shapes import smooth_noise

SATURATION_COUNTS = 65535


@dataclasses.dataclass(frozen=True)
class Optics:
    """The imaging parameters that all patches of one specimen share; spatial tuples are Z Y X."""

    voxel_um: tuple[float, float, float]
    channel_nm: int
    background_counts: float  # autofluorescence above the camera's offset, before illumination
    contrast: float  # brightness of a fully labelled voxel, in units of the background
    texture: float  # relative strength of the tissue's autofluorescent texture
    lateral_sigma_um: float
    axial_sigma_um: float  # set by the sheet's thickness at its waist: wider than the lateral blur
    rayleigh_um: float  # distance from the waist at which the sheet is 1.4 times as thick
    haze: float  # share of the light that scatters into a wide halo
    attenuation_um: float  # depth at which illumination has fallen to 1/e, along X
    detection_um: float  # the same for emitted light, along Z
    stripes: float  # relative depth of the shadows that absorbers throw along X
    from_left: bool  # the side that the sheet enters from
    offset_counts: float
    gain_counts: float  # counts per detected photon
    read_noise_counts: float


# Ranges of (background counts, contrast, counts per photon, texture, stripes) and voxel sizes by kind. Two
# acquisitions where the field knows two: fine, dim and grainy; or coarse in Z, bright and clean.
_ACQUISITIONS = {
    "nuclei": [
        {"voxels": [(2.0, 1.8, 1.8), (2.0, 1.866, 1.866)], "background": (60, 380), "contrast": (4, 7),
         "gain": (4, 7), "texture": (0.10, 0.2), "stripes": (0.02, 0.08)},
        {"voxels": [(3.0, 1.0, 1.0), (4.0, 1.2, 1.2)], "background": (700, 1700), "contrast": (14, 45),
         "gain": (1.5, 4), "texture": (0.2, 0.4), "stripes": (0.02, 0.08), "lateral": (0.9, 1.3)},
    ],
    "plaques": [
        {"voxels": [(4.0, 4.0, 4.0), (3.0, 3.0, 3.0)], "background": (1200, 2300), "contrast": (0.5, 1.6),
         "gain": (0.4, 1.2), "texture": (0.05, 0.10), "stripes": (0.04, 0.12)},
    ],
    "vessels": [
        {"voxels": [(2.0, 2.0, 2.0), (1.62, 1.62, 1.62), (3.0, 1.62, 1.62)], "background": (250, 900),
         "contrast": (6, 18), "axial": (3.5, 7.0), "gain": (0.15, 1.5), "texture": (0.08, 0.2),
         "stripes": (0.02, 0.08)},
    ],
    "neurons": [
        {"voxels": [(2.0, 1.8, 1.8), (2.0, 1.866, 1.866)], "background": (60, 300), "contrast": (14, 35),
         "gain": (3, 6), "texture": (0.10, 0.2), "stripes": (0.02, 0.08)},
    ],
    "glia": [
        {"voxels": [(6.0, 1.62, 1.62)], "background": (1900, 2900), "contrast": (12, 30),
         "gain": (1.5, 3.5), "texture": (0.12, 0.22), "stripes": (0.03, 0.1), "lateral": (1.2, 2.0)},
        {"voxels": [(2.0, 1.8, 1.8)], "background": (150, 400), "contrast": (10, 22),
         "gain": (3, 6), "texture": (0.10, 0.2), "stripes": (0.02, 0.08)},
    ],
}  # fmt: skip


def draw_optics(kind: str, rng: np.random.Generator) -> Optics:
    """Draw one specimen's imaging parameters, within the ranges seen in real data of this kind."""
    options = _ACQUISITIONS[kind]
    chosen = options[rng.integers(len(options))]
    voxel = chosen["voxels"][rng.integers(len(chosen["voxels"]))]
    log_uniform = lambda low, high: float(np.exp(rng.uniform(np.log(low), np.log(high))))  # noqa: E731
    return Optics(
        voxel_um=voxel,
        channel_nm=int(rng.choice([488, 561, 639, 785])),
        background_counts=log_uniform(*chosen["background"]),
        contrast=log_uniform(*chosen["contrast"]),
        texture=float(rng.uniform(*chosen["texture"])),
        lateral_sigma_um=float(rng.uniform(*chosen.get("lateral", (0.45, 0.75))) * voxel[2] + 0.4),
        axial_sigma_um=float(rng.uniform(*chosen.get("axial", (2.0, 3.4))) + 0.25 * voxel[0]),
        rayleigh_um=float(rng.uniform(120, 400)),
        haze=float(rng.uniform(0.05, 0.18)),
        attenuation_um=log_uniform(250, 2500),
        detection_um=log_uniform(400, 3000),
        stripes=float(rng.uniform(*chosen["stripes"])),
        from_left=bool(rng.integers(2)),
        offset_counts=float(rng.uniform(20, 110)),
        gain_counts=log_uniform(*chosen["gain"]),
        read_noise_counts=float(rng.uniform(1.5, 6)),
    )


def expose(
    label: Float[np.ndarray, "z y x"],
    tissue: Float[np.ndarray, "z y x"],
    *,
    optics: Optics,
    rng: np.random.Generator,
) -> UInt16[np.ndarray, "z y x"]:
    """The camera's counts for a labelled structure in autofluorescent tissue.

    Args:
        label: Concentration of the dye, 0 to about 1.
        tissue: Relative autofluorescence, about 1 in tissue and 0 outside it.
        optics: The specimen's imaging parameters.
        rng: Source of this patch's illumination and noise.
    """
    emission = optics.background_counts * (tissue + optics.contrast * label)
    lit = emission.astype(np.float32) * _illumination(label.shape, optics=optics, rng=rng)
    counts = _blur(lit, optics=optics, rng=rng)
    photons = rng.poisson(np.clip(counts, 0, None) / optics.gain_counts)
    read = rng.standard_normal(label.shape, dtype=np.float32) * optics.read_noise_counts
    exposed = optics.offset_counts + optics.gain_counts * photons + read
    return np.clip(np.rint(exposed), 0, SATURATION_COUNTS).astype(np.uint16)


def _illumination(shape: tuple[int, int, int], *, optics: Optics, rng: np.random.Generator) -> np.ndarray:
    """Relative light at every voxel: decay along X and Z, a slow unevenness, and stripe shadows along X."""
    depth, height, width = shape
    travelled = np.arange(width) if optics.from_left else np.arange(width)[::-1]
    along_x = np.exp(-(travelled - width / 2) * optics.voxel_um[2] / optics.attenuation_um)
    along_z = np.exp(-(np.arange(depth) - depth / 2) * optics.voxel_um[0] / optics.detection_um)
    light = (along_z[:, None, None] * along_x[None, None, :]).astype(np.float32)
    light = light * (1 + 0.05 * smooth_noise(shape, np.array([40.0, 40.0, 60.0]), rng))
    # Each plane is lit on its own, so a shadow is thin in Y, spans few planes in Z, and runs on in X from the
    # absorber that throws it: three sets of shadows that begin before, within and late in the patch.
    for begins in (-0.5, rng.uniform(0.1, 0.5), rng.uniform(0.5, 0.9)):
        shadow = smooth_noise((depth, height, 1), np.array([2.0, 1.0, 1.0]), rng)
        coarse = smooth_noise((depth, height, 1), np.array([6.0, 6.0, 1.0]), rng)
        dark = np.clip(0.6 * shadow + 0.6 * coarse, 0, 3)
        onset = 1 / (1 + np.exp(-(travelled / width - begins) * 25))
        light = light * np.exp(-optics.stripes * dark * onset[None, None, :]).astype(np.float32)
    return light


def _blur(lit: np.ndarray, *, optics: Optics, rng: np.random.Generator) -> np.ndarray:
    """Blur by the point spread: Gaussian in plane, wider along Z and more so away from the sheet's waist."""
    lateral = [optics.lateral_sigma_um / optics.voxel_um[axis] for axis in (1, 2)]
    blurred = gaussian_filter1d(lit, lateral[0], axis=1, truncate=3)
    blurred = gaussian_filter1d(blurred, lateral[1], axis=2, truncate=3)
    width = lit.shape[2]
    waist = rng.uniform(-0.2, 1.2) * width
    stretch = np.sqrt(1 + ((np.arange(width) - waist) * optics.voxel_um[2] / optics.rayleigh_um) ** 2)
    sigma = optics.axial_sigma_um / optics.voxel_um[0]
    thin = gaussian_filter1d(blurred, sigma, axis=0, truncate=3)
    thick = gaussian_filter1d(thin, sigma * np.sqrt(max(stretch.max() ** 2 - 1, 0.01)), axis=0, truncate=3)
    mix = ((stretch - 1) / max(stretch.max() - 1, 1e-3)).astype(np.float32)
    sharp = thin + mix * (thick - thin)
    return (1 - optics.haze) * sharp + optics.haze * _halo(sharp, optics=optics)


def _halo(field: np.ndarray, *, optics: Optics) -> np.ndarray:
    """The field blurred by about 9 um, computed on every second voxel in plane for speed."""
    small = field[:, ::2, ::2]
    for axis, stride in ((0, 1), (1, 2), (2, 2)):
        small = gaussian_filter1d(small, 9.0 / (optics.voxel_um[axis] * stride), axis=axis, truncate=2)
    large = np.repeat(np.repeat(small, 2, axis=1), 2, axis=2)[:, : field.shape[1], : field.shape[2]]
    return gaussian_filter1d(gaussian_filter1d(large, 1.0, axis=1, truncate=2), 1.0, axis=2, truncate=2)
