"""Labelled patches in memory: image and target of each, and the intensities that become 0 and 1.

Labelled sets are small, so all of them are read once.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped
from scipy import ndimage

from lsmfm_jax.data.label_checks import check_labels, check_share
from lsmfm_jax.data.label_grid import on_grid_of
from lsmfm_jax.data.labelled import LabelledDataError, LabelledFile
from lsmfm_jax.data.labels import IGNORED, LabelValues, target_of
from lsmfm_jax.scale import Scale, check_seen, measure, naming
from lsmfm_jax.volumes.read import read_single


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledPatch:
    """A patch in memory.

    Attributes:
        name: as on disk.
        image: what the network is to see, once `low` and `high` are at 0 and 1.
        low: intensity that becomes 0.
        high: intensity that becomes 1.
        target: mask (uint8: 0, 1, or `IGNORED` where nothing is annotated), sharp volume, or None.
        label: number of its class, or -1.
        volume: that it is from.
        label_counts: values of the label file and their numbers of voxels; of a mask alone.
        counts: the image as it was read, for baselines on other scales.
        voxel_size_um: ZYX, where it is known.
        voxel_size_source: where that is from, of a file with a mask; "unverified" in it says that it is doubtful.
        target_is_mask: the target is a mask, whose values decide on crops, and no sharp volume.
    """

    name: str
    image: Shaped[np.ndarray, "z y x"]
    low: float
    high: float
    target: Shaped[np.ndarray, "z y x"] | None = None
    label: int = -1
    volume: str = ""
    label_counts: tuple[tuple[float, int], ...] = ()
    counts: Shaped[np.ndarray, "z y x"] | None = None
    voxel_size_um: tuple[float, float, float] | None = None
    voxel_size_source: str = ""
    target_is_mask: bool = True

    def scaled(self) -> Float[np.ndarray, "z y x"]:
        """What a network sees of the patch: `low` and `high` at 0 and 1, cut to between them."""
        span = self.high - self.low if self.high > self.low else 1.0
        return np.clip((self.image.astype(np.float32) - self.low) / np.float32(span), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Blur:
    """A blur to be made: standard deviations ZYX in voxels or, where not 0, in micrometres; noise in counts."""

    sigma_voxels: tuple[float, float, float]
    sigma_um: tuple[float, float, float]
    noise_counts: float
    seed: int


def read_segmentation(file: LabelledFile, *, scale: Scale, values: LabelValues | None = None) -> LabelledPatch:
    """A patch and its mask.

    Args:
        file: with its `_label`.
        scale: of its intensities.
        values: what the values of the label file mean; None: whatever is above 0.5 is foreground.

    Raises:
        LabelledDataError: image and mask differ in shape, or no voxel is annotated.
        LabelError: label values without a meaning, or what is no label: intensities, or nearly all foreground.
        LabelGridError: by their affines, the label does not lie on its image.
        VolumeError: a file cannot be read as one 3D volume.
    """
    image, image_info = read_single(file.path)
    labels, label_info = read_single(file.companions["_label"], mask=True)
    labels = on_grid_of(labels, label_info, like=image_info, like_shape=image.shape)
    _same_shape(file, image, labels, "_label")
    values, source = values or LabelValues(), str(file.companions["_label"])
    check_labels(labels, values, source=source, image=image)
    target = target_of(labels, values, source=source)
    if (target == IGNORED).all():
        raise LabelledDataError(
            f"{source}: every voxel has a value of {values.names.ignore} {values.ignore}, so "
            "nothing in it is annotated; move the patch away, or change the values to ignore"
        )
    found, counts = np.unique(labels, return_counts=True)
    check_share(target, values, source=source, found=[int(value) for value in found])
    patch = _patch(file, image, target, scale=scale, voxel_size_um=image_info.voxel_size_um)
    counted = tuple((float(value), int(count)) for value, count in zip(found, counts, strict=True))
    return dataclasses.replace(patch, label_counts=counted, voxel_size_source=image_info.voxel_size_source)


def read_classification(file: LabelledFile, *, classes: Sequence[str], scale: Scale) -> LabelledPatch:
    """A patch and the number of its class in `classes`."""
    return dataclasses.replace(read_unlabelled(file, scale=scale), label=list(classes).index(file.class_name))


def read_unlabelled(file: LabelledFile, *, scale: Scale) -> LabelledPatch:
    """A patch alone, for a task that makes its target of the image itself."""
    image, voxel_size_um = read_image(file)
    return _patch(file, image, None, scale=scale, voxel_size_um=voxel_size_um)


def read_deblurring(file: LabelledFile, *, blur: Blur | None, scale: Scale) -> LabelledPatch:
    """A blurred patch, from its `_blurred` file or made from the sharp one, with the sharp one as target.

    The scale is that of the blurred patch, which is all that prediction has.

    Raises:
        LabelledDataError: the two differ in shape, or the voxel size that the blur needs is unknown.
    """
    sharp, voxel_size_um = read_image(file)
    if blur is None:
        blurred, _ = read_single(file.companions["_blurred"])
        _same_shape(file, sharp, blurred, "_blurred")
    else:
        if any(blur.sigma_um) and voxel_size_um is None:
            raise LabelledDataError(
                f"blur.sigma_um: {blur.sigma_um}, but {file.path} does not say its voxel size; use blur.sigma_voxels"
            )
        blurred = _blurred(sharp, blur, name=file.name, voxel_size_um=voxel_size_um)
    patch = _patch(file, blurred, sharp, scale=scale, voxel_size_um=voxel_size_um)
    return dataclasses.replace(patch, target_is_mask=False)


def read_image(file: LabelledFile) -> tuple[Shaped[np.ndarray, "z y x"], tuple[float, float, float] | None]:
    """The image of a patch in raw counts, and its voxel size (Z, Y, X) in micrometres where that is known.

    Raises:
        VolumeError: the file cannot be read as one 3D volume.
        DamagedPatch: the pixels in the store cannot be trusted.
    """
    if file.stored:
        store, index = file.stored
        return store.read(index), store.rows[index].voxel_size_um
    image, info = read_single(file.path)
    return image, info.voxel_size_um


def _blurred(
    sharp: Shaped[np.ndarray, "z y x"], blur: Blur, *, name: str, voxel_size_um: tuple[float, float, float] | None
) -> Float[np.ndarray, "z y x"]:
    sigma = blur.sigma_voxels
    if any(blur.sigma_um):
        sigma = tuple(um / size for um, size in zip(blur.sigma_um, voxel_size_um or (), strict=True))
    smooth = ndimage.gaussian_filter(sharp.astype(np.float32), sigma)
    # By name, so that a patch has the same noise whichever others are there.
    digest = hashlib.sha256(f"{blur.seed}\0{name}".encode()).digest()
    noise = np.random.default_rng(int.from_bytes(digest[:8], "little")).standard_normal(sharp.shape, np.float32)
    return smooth + np.float32(blur.noise_counts) * noise


def _same_shape(file: LabelledFile, image: np.ndarray, other: np.ndarray, ending: str) -> None:
    if image.shape != other.shape:
        raise LabelledDataError(
            f"{file.companions[ending]} has the shape {other.shape}, its image {file.path} {image.shape} (ZYX); "
            "export them on one grid"
        )


def _patch(
    file: LabelledFile,
    image: np.ndarray,
    target: np.ndarray | None,
    *,
    scale: Scale,
    voxel_size_um: tuple[float, float, float] | None,
) -> LabelledPatch:
    with naming(file.path):
        levels = check_seen(measure(image, scale, voxel_size_um))
    if scale.name in ("percentile", "z_score"):
        # Two numbers say it all: the device scales, and crops travel in the type they came in.
        shown, low, high = image, levels.low, levels.high
    else:
        shown, low, high = levels.apply(image), 0.0, 1.0
    return LabelledPatch(
        file.name, shown, low, high, target, volume=file.volume, counts=image, voxel_size_um=voxel_size_um
    )
