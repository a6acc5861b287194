"""Labelled patches in memory, and batches of them: random crops to train on, windows that cover a patch to judge.

Labelled sets are small, so all of them are read once. As in `loader`, order and crops depend on (seed, step, row
of the global batch) alone, and process p of P holds the p-th block of rows.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from jaxtyping import Float, Shaped
from scipy import ndimage

from lsmfm_jax.data.label_checks import check_labels, check_share
from lsmfm_jax.data.label_grid import on_grid_of
from lsmfm_jax.data.labelled import LabelledDataError, LabelledFile
from lsmfm_jax.data.labels import IGNORED, LabelValues, target_of
from lsmfm_jax.data.patches import fit
from lsmfm_jax.scale import Scale, measure
from lsmfm_jax.volumes.read import read_single

Batch = dict[str, np.ndarray]
Size = tuple[int, int, int]
# More than any run: without a number grain's length overflows at a batch size of 1.
_EPOCHS = 2**32
_DEVICE_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32")


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
    labels, label_info = read_single(file.companions["_label"], allow_constant=True)
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
    levels = measure(image, scale, voxel_size_um)
    if scale.name in ("percentile", "z_score"):
        # Two numbers say it all: the device scales, and crops travel in the type they came in.
        shown, low, high = image, levels.low, levels.high
    else:
        shown, low, high = levels.apply(image), 0.0, 1.0
    return LabelledPatch(
        file.name, shown, low, high, target, volume=file.volume, counts=image, voxel_size_um=voxel_size_um
    )


def _common_dtype(arrays: Sequence[np.ndarray]) -> np.dtype:
    names = {array.dtype.name for array in arrays}
    return np.dtype(names.pop() if len(names) == 1 and names <= set(_DEVICE_INTEGERS) else "float32")


class LabelledSource:
    """Patches of one side, cut to one size; what both kinds of batches are made of.

    Attributes:
        patches: in their order; `sample` in a batch is a place in it, plus `first_sample`.
        patch_size: Z, Y, X of every crop; smaller patches are mirrored at their edges.
    """

    def __init__(self, patches: Sequence[LabelledPatch], *, patch_size: Size, first_sample: int = 0) -> None:
        self.patches, self.patch_size, self.first_sample = tuple(patches), patch_size, first_sample
        self._image_dtype = _common_dtype([patch.image for patch in patches])
        targets = [patch.target for patch in patches if patch.target is not None]
        self._target_dtype = _common_dtype(targets) if targets else None
        self._found: dict[tuple[int, str], np.ndarray] = {}

    def corner(self, index: int, rng: np.random.Generator, *, foreground_frac: float) -> tuple[float, float, float]:
        """Where to crop: anywhere or, in `foreground_frac` of the draws, with a voxel of the mask in the middle.

        Near an edge of the patch that voxel lies off the middle; an empty mask is cropped anywhere. Where only some
        voxels of a patch are annotated, "anywhere" is around one of them, drawn at random: it lies in the inner half
        of the crop along each axis if the patch's edges allow it, so that augmentation does not lose it.
        """
        anywhere = rng.random(3)
        centred = rng.random() < foreground_frac
        if centred and len(self._voxels(index, "foreground")):
            return self._around(index, self._voxels(index, "foreground"), rng)
        if len(self._voxels(index, "annotated")):
            return self._around(index, self._voxels(index, "annotated"), rng, shift=(anywhere - 0.5).tolist())
        return tuple(float(u) for u in anywhere)

    def _around(
        self, index: int, voxels: np.ndarray, rng: np.random.Generator, *, shift: Sequence[float] = (0.0, 0.0, 0.0)
    ) -> tuple[float, float, float]:
        """A crop around one of the voxels, which lies off its middle by up to half a `shift` of its side."""
        shape = self.patches[index].image.shape
        middle = np.unravel_index(voxels[rng.integers(len(voxels))], shape)
        return tuple(
            _corner_share(int(at) + round(float(by) * side / 2), have, side)
            for at, have, side, by in zip(middle, shape, self.patch_size, shift, strict=True)
        )

    def _voxels(self, index: int, kind: str) -> np.ndarray:
        """Flat places of a patch's `foreground` or, where not all are, of its `annotated` voxels; found once."""
        if (index, kind) not in self._found:
            patch = self.patches[index]
            target, wanted = patch.target, np.zeros(0, bool)
            if target is not None and patch.target_is_mask:
                wanted = target == 1 if kind == "foreground" else target != IGNORED
            partly = kind == "foreground" or not wanted.all()
            self._found[index, kind] = np.flatnonzero(wanted) if partly else np.zeros(0, np.int64)
        return self._found[index, kind]

    def crop(self, index: int, corner: tuple[float, float, float]) -> Batch:
        """The crop of a patch whose corner is at the given share (0 to 1) of the room there is for it."""
        return self._row(index, lambda array: fit(array, self.patch_size, corner))

    def window(self, index: int, start: Size) -> Batch:
        """The window of a patch that begins at a voxel, and in `valid` the voxels that no earlier one has."""
        patch, size = self.patches[index], self.patch_size

        def cut(array: np.ndarray) -> np.ndarray:
            padded = fit(array, tuple(max(a, b) for a, b in zip(array.shape, size, strict=True)), (0, 0, 0))
            return padded[tuple(slice(at, at + side) for at, side in zip(start, size, strict=True))]

        axes = [_new_voxels(have, side, at) for have, side, at in zip(patch.image.shape, size, start, strict=True)]
        valid = axes[0][:, None, None] & axes[1][:, None] & axes[2]
        return {**self._row(index, cut), "valid": valid}

    def _row(self, index: int, cut: "object") -> Batch:
        patch = self.patches[index]
        row = {
            "image": cut(patch.image).astype(self._image_dtype, copy=False),
            "low": np.float32(patch.low),
            "high": np.float32(patch.high),
            "sample": np.int32(self.first_sample + index),
        }
        if patch.target is not None:
            row["target"] = cut(patch.target).astype(self._target_dtype, copy=False)
        if patch.label >= 0:
            row["label"] = np.int32(patch.label)
        return row

    def windows(self) -> list[tuple[int, Size]]:
        """Patch and start of every window, patch after patch."""
        return [
            (index, start)
            for index, patch in enumerate(self.patches)
            for start in itertools.product(
                *(_starts(have, side) for have, side in zip(patch.image.shape, self.patch_size, strict=True))
            )
        ]


def _corner_share(middle: int, have: int, side: int) -> float:
    """Along one axis: the share of the room at which `fit` begins a crop with `middle` in its middle, or near it."""
    room = max(have - side, 0)
    start = min(max(middle - side // 2, 0), room)
    # Half a voxel more, so that rounding down always gives this start.
    return (start + 0.5) / (room + 1)


def _starts(have: int, side: int) -> list[int]:
    """Starts of windows that cover an axis: side by side, the last one moved back to the end."""
    last = max(have - side, 0)
    return sorted({*range(0, last + 1, side), last})


def _new_voxels(have: int, side: int, start: int) -> np.ndarray:
    """Along one axis of a window: voxels of the patch, not of its padding, that no earlier window has."""
    if have <= side:
        before = (side - have) // 2
        place = np.arange(side)
        return (place >= before) & (place < before + have)
    earlier = [other + side for other in _starts(have, side) if other < start]
    return np.arange(start, start + side) >= max(earlier, default=0)


def training_batches(
    source: LabelledSource,
    *,
    batch_size: int,
    seed: int,
    foreground_frac: float = 0.0,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """This process's rows of each global batch from a step on, without end: random crops in a new order each epoch.

    `foreground_frac` of the crops have a voxel of the mask in their middle (see `LabelledSource.corner`).

    A batch holds image (B, Z, Y, X), low, high (B,) float32, sample (B,) int32, and where the patches have them
    target (B, Z, Y, X) and label (B,) int32.
    """
    block = _block(batch_size, process_index, process_count)

    def draw(index: int, rng: np.random.Generator) -> tuple[int, tuple[float, ...]]:
        return int(index), source.corner(int(index), rng, foreground_frac=foreground_frac)

    def assemble(plan: Sequence[tuple[int, tuple[float, float, float]]]) -> Batch:
        return _stack([source.crop(index, corner) for index, corner in plan[block]])

    plans = grain.MapDataset.range(len(source.patches)).seed(seed).shuffle().repeat(_EPOCHS).random_map(draw)
    batches = plans.batch(batch_size, batch_fn=list).slice(slice(start_step, None)).map(assemble)
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)))


class WindowBatches:
    """The windows of all patches in a fixed order, this process's rows; can be gone through again and again.

    Beside the keys of training batches: `weight` (B,) float32, 0 where the last window stands in to fill up the
    last batch, and `valid` (B, Z, Y, X) bool, True once for every voxel of every patch.
    """

    def __init__(
        self, source: LabelledSource, *, batch_size: int, process_index: int = 0, process_count: int = 1
    ) -> None:
        self._source, self._windows = source, source.windows()
        self._batch_size, self._block = batch_size, _block(batch_size, process_index, process_count)

    def __len__(self) -> int:
        return -(-len(self._windows) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self._windows), self._batch_size):
            rows = np.arange(first, first + self._batch_size)[self._block]
            places = np.minimum(rows, len(self._windows) - 1)
            batch = _stack([self._source.window(*self._windows[place]) for place in places])
            yield {**batch, "weight": (rows < len(self._windows)).astype(np.float32)}


def _stack(rows: Sequence[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _block(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size % process_count:
        raise LabelledDataError(
            f"train.batch_size: {batch_size} cannot be shared by {process_count} processes; use a multiple"
        )
    local = batch_size // process_count
    return slice(process_index * local, (process_index + 1) * local)
