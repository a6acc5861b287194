"""One sample from the stores of a run: read, replaced where damaged, cropped or padded, with its caption."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from lsmfm_jax.data.tokens import TokenTable
from lsmfm_jax.errors import InputError
from lsmfm_jax.scale import Levels, Scale, measure
from lsmfm_jax.store.manifest import PatchRow
from lsmfm_jax.store.reader import DamagedPatch, PatchStore

# A damaged patch is replaced by the first whole one among this many that follow it in the list.
REPLACEMENTS_TRIED = 16
# Types that arrays on a device have too; anything else is handed on as float32.
_DEVICE_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32")


class Draw(NamedTuple):
    """What chance decides of one sample, in [0, 1): the Z, Y, X corner of the crop, and the wording."""

    crop: tuple[float, float, float]
    wording: float


# Validation: the crop in the middle and the first wording.
CENTRE = Draw((0.5, 0.5, 0.5), 0.0)


class PatchReader:
    """Reads the samples of one side of a run's split; cheap to pickle, so that worker processes can have it.

    Attributes:
        stores: the run's stores; their rows, one store after another, are the run's list of patches.
        chosen: places in that list that this reader serves.
        patch_size: Z, Y, X of every image that comes out.
        dtype: type of every image: the integer type of all patches of the stores, or float32.
        scale: of intensities.
        token_table: wordings of the captions; None for images alone.

    Raises:
        ValueError: nothing is chosen, a place does not exist, or a percentile or a caption is missing.
    """

    def __init__(
        self,
        stores: Sequence[PatchStore],
        chosen: Sequence[int],
        *,
        patch_size: tuple[int, int, int],
        token_table: TokenTable | None,
        scale: Scale,
    ) -> None:
        self.stores, self.chosen = tuple(stores), tuple(chosen)
        self.patch_size, self.token_table = patch_size, token_table
        self.scale = scale
        self._percentiles = tuple(f"{percentile:g}" for percentile in scale.percentiles)
        # Of each patch once: a map of its background is small, and the same at every step.
        self._levels: dict[int, Levels] = {}
        self._rows = [row for store in self.stores for row in store.rows]
        self._store_and_index = [
            (at, index) for at, store in enumerate(self.stores) for index in range(len(store.rows))
        ]
        self._volumes = {name: number for number, name in enumerate(sorted({row.volume for row in self._rows}))}
        self._keys = {key: number for number, key in enumerate(caption_keys(self.stores))}
        self.dtype = common_dtype(self._rows) if scale.name == "percentile" else np.dtype("float32")
        self._check()

    def _check(self) -> None:
        if not self.chosen:
            raise InputError("no patches to read: the list of chosen patches is empty")
        wrong = [place for place in self.chosen if not 0 <= place < len(self._rows)]
        if wrong:
            raise InputError(f"places {wrong[:5]} are not among the {len(self._rows)} patches of the stores")
        rows = [self._rows[place] for place in self.chosen]
        for name in self._percentiles if self.scale.name == "percentile" else ():
            lacking = [row for row in rows if name not in row.percentiles]
            if lacking:
                known = ", ".join(lacking[0].percentiles)
                raise InputError(
                    f"data.lower_percentile, data.upper_percentile: {name!r} is not recorded for "
                    f"{lacking[0].id}; recorded: {known}"
                )
        if self.token_table is not None:
            captioned = (place for place in self.chosen if self._captioned(place))
            self.token_table.require(self._rows[place].caption_key for place in captioned)

    def _captioned(self, place: int) -> bool:
        """Whether the patch's store was ingested with captions; an image-only store trains image losses only."""
        return bool(self.stores[self._store_and_index[place][0]].captions)

    @property
    def padded(self) -> list[int]:
        """Chosen places whose patch is smaller than `patch_size` along an axis, so is mirrored there."""
        return [
            place
            for place in self.chosen
            if any(have < want for have, want in zip(self._rows[place].shape, self.patch_size, strict=True))
        ]

    def describe(self, place: int) -> str:
        """Which patch a place is, and why it cannot be read, for a message."""
        store, index = self._store_and_index[place]
        row = self._rows[place]
        try:
            self.stores[store].read(index)
            reason = "it could not be read before, and now can"
        except DamagedPatch as error:
            reason = error.reason
        return f"{row.id} (patch {row.index} of part {row.part} in {self.stores[store].path}): {reason}"

    def sample(self, number: int, draw: Draw) -> dict[str, np.ndarray]:
        """The sample at `chosen[number]`: image, low, high, caption_key, volume, sample, tokens, and `damaged`.

        `volume` counts the volumes of all stores in the order of their names. `caption_key` is -1 and `token_mask` all
        False for a patch of a store without captions.

        `damaged` is the place of the patch that was asked for where another stands in for it, else -1.

        Raises:
            DamagedPatch: neither it nor any of those that could stand in for it can be read.
        """
        asked = self.chosen[number]
        place, pixels = self._read_whole(number)
        row = self._rows[place]
        pixels, low, high = self._scaled(place, pixels)
        made = {
            "image": fit(pixels, self.patch_size, draw.crop).astype(self.dtype, copy=False),
            "low": np.float32(low),
            "high": np.float32(high),
            "caption_key": np.int32(self._keys[row.caption_key] if self._captioned(place) else -1),
            "volume": np.int32(self._volumes[row.volume]),
            "sample": np.int32(place),
            "damaged": np.int32(-1 if place == asked else asked),
        }
        if self.token_table is not None:
            wordings = self.token_table.rows[row.caption_key] if self._captioned(place) else [0]
            wording = wordings[int(draw.wording * len(wordings))]
            made["tokens"] = self.token_table.tokens[wording]
            made["token_mask"] = self.token_table.mask[wording] & self._captioned(place)
        return made

    def _scaled(self, place: int, pixels: np.ndarray) -> tuple[np.ndarray, float, float]:
        """What the device gets of a patch, and what becomes 0 and 1 there: percentiles are left to the device."""
        row = self._rows[place]
        if self.scale.name == "percentile":
            low, high = (row.percentiles[name] for name in self._percentiles)
            return pixels, low, high
        if place not in self._levels:
            self._levels[place] = measure(pixels, self.scale, row.voxel_size_um)
        return self._levels[place].apply(pixels), 0.0, 1.0

    def _read_whole(self, number: int) -> tuple[int, np.ndarray]:
        """The place and pixels of the first patch that can be read, from `number` on."""
        first_error: DamagedPatch | None = None
        for ahead in range(min(REPLACEMENTS_TRIED, len(self.chosen))):
            place = self.chosen[(number + ahead) % len(self.chosen)]
            store, index = self._store_and_index[place]
            try:
                return place, self.stores[store].read(index)
            except DamagedPatch as error:
                first_error = first_error or error
        assert first_error is not None
        raise first_error


def common_dtype(rows: Iterable[PatchRow]) -> np.dtype:
    """The integer type that all patches share, or float32."""
    names = {row.dtype for row in rows}
    shared = names.pop() if len(names) == 1 else "float32"
    return np.dtype(shared if shared in _DEVICE_INTEGERS else "float32")


def caption_keys(stores: Sequence[PatchStore]) -> list[str]:
    """All caption keys of the stores, sorted: `caption_key` in a batch is a place in this list."""
    return sorted({row.caption_key for store in stores for row in store.rows})


def places(stores: Sequence[PatchStore], indices: Iterable[int | tuple[int, int]]) -> tuple[int, ...]:
    """Places in the list of all patches, from places or (store, row) pairs."""
    starts = np.cumsum([0, *(len(store.rows) for store in stores)])
    return tuple(int(starts[index[0]] + index[1]) if isinstance(index, tuple) else int(index) for index in indices)


def fit(
    pixels: Shaped[np.ndarray, "z y x"], size: tuple[int, int, int], corner: tuple[float, float, float]
) -> Shaped[np.ndarray, "a b c"]:
    """Crop an array to `size` at `corner` (0 to 1 of the slack), after mirroring it where it is too small."""
    lacking = [max(0, want - have) for have, want in zip(pixels.shape, size, strict=True)]
    if any(lacking):
        pixels = np.pad(pixels, [(n // 2, n - n // 2) for n in lacking], mode="reflect")
    starts = [int(u * (have - want + 1)) for have, want, u in zip(pixels.shape, size, corner, strict=True)]
    return pixels[tuple(slice(start, start + want) for start, want in zip(starts, size, strict=True))]
