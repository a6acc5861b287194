"""Batches of labelled patches: random crops to train on, windows that cover a patch to judge.

As in `loader`, order and crops depend on (seed, step, row of the global batch) alone, and process p of P holds the
p-th block of rows.
"""

import itertools
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from lsmfm_jax.data.labelled import LabelledDataError
from lsmfm_jax.data.labelled_patches import LabelledPatch
from lsmfm_jax.data.labels import IGNORED
from lsmfm_jax.data.patches import fit

Batch = dict[str, np.ndarray]
Size = tuple[int, int, int]
# More than any run: without a number grain's length overflows at a batch size of 1.
_EPOCHS = 2**32
_DEVICE_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32")


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
