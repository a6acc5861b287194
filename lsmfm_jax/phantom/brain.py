"""A generated brain of any size, written block by block: cells in an ellipsoid of tissue, nothing outside it.

Everything is a function of the seed and of the voxel's place, so a block can be made without its neighbours, in any
order, and cells that cross a border between blocks are whole. The outside is 0 and is not stored.

    BRAIN.ome.zarr/0, 1, 2      the image, OME-Zarr 0.5, each level half as large
    BRAIN.ome.zarr/labels/cells the cells as 0 and 1, for training and for measuring overlap
    BRAIN_cells.csv             the cells' centres (voxels and um) and radii, for counting
"""

import csv
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import tensorstore
from jaxtyping import Bool, Float, UInt8, UInt16

from lsmfm_jax.errors import LsmfmError

Voxels = tuple[int, int, int]

VOXEL_UM = 1.0
BLOCK = 128
CHUNK = 64
# Cells stand on a jittered grid, so that no two touch: centres are at least PITCH - 2 JITTER apart along one axis.
PITCH = 22
JITTER = 4.0
RADII = (3.5, 5.5)
SOFT_EDGE = 0.8
TISSUE = 200.0
SIGNAL = (350.0, 900.0)
NOISE = 3.0
NOISE_SIDE = 192
LEVELS = 3
LABELS = "labels/cells"
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class BrainError(LsmfmError, ValueError):
    """A brain cannot be generated as asked."""


@dataclasses.dataclass(frozen=True)
class Brain:
    """A generated brain: its shape in voxels (Z, Y, X) and the seed of everything in it."""

    shape: Voxels
    seed: int
    _cube: np.ndarray | None = dataclasses.field(default=None, init=False, repr=False, compare=False)

    def cells(self, box: tuple[slice, slice, slice]) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
        """Centres (Z, Y, X in voxels) and radii of the cells of the grid places of a box, in a fixed order.

        All cells of the box are among them along Y and X, and those of its rows of places along Z.
        """
        z, y, x = (np.arange(one.start // PITCH, -(-one.stop // PITCH)) for one in box)
        # Layers are shifted along Y and rows along X, by up to one place: nothing lines up, and nothing comes closer.
        y, x = (np.concatenate([[along[0] - 1], along]) for along in (y, x))
        places = np.stack(np.meshgrid(z, y, x, indexing="ij"), axis=-1).reshape(-1, 3)
        draws = _draws(self.seed, places, 5)
        shifts = np.zeros((len(places), 3))
        shifts[:, 1] = _draws(self.seed + 1, places * [1, 0, 0], 1)[:, 0]
        shifts[:, 2] = _draws(self.seed + 2, places * [1, 1, 0], 1)[:, 0]
        centres = (places + 0.5 + shifts) * PITCH + JITTER * (2 * draws[:, :3] - 1)
        # Layers of more and of fewer cells, as in a cortex.
        density = 0.5 + 0.35 * np.sin(2 * np.pi * centres @ np.array([1 / 190, 1 / 310, 1 / 430]))
        # Whole cells only: none is cut by the tissue's surface.
        deepest = 1 - (RADII[1] + 4 * SOFT_EDGE) / (0.92 * min(self.shape) / 2)
        kept = (draws[:, 3] < density) & (self._depth(centres) < deepest)
        return centres[kept], RADII[0] + (RADII[1] - RADII[0]) * draws[kept, 4]

    def block(self, start: Voxels, shape: Voxels) -> tuple[UInt16[np.ndarray, "z y x"], UInt8[np.ndarray, "z y x"]]:
        """The image in camera counts and the 0/1 mask of its cells, of a box that begins at `start`."""
        inside = self._inside(start, shape)
        label = np.zeros(shape, np.uint8)
        if not inside.any():
            return np.zeros(shape, np.uint16), label
        image = TISSUE * self._texture(start, shape)
        reach = round(RADII[1] + 4 * SOFT_EDGE) + PITCH
        around = tuple(slice(begin - reach, begin + size + reach) for begin, size in zip(start, shape, strict=True))
        for centre, radius in zip(*self.cells((around[0], around[1], around[2])), strict=True):
            self._stamp(image, label, centre - np.array(start), float(radius))
        image += self._noise(start, shape)
        counts = np.maximum(image + 0.5, 1, out=image).astype(np.uint16)
        if not inside.all():
            counts[~inside] = 0
        return counts, label

    def _stamp(self, image: np.ndarray, label: np.ndarray, centre: np.ndarray, radius: float) -> None:
        reach = radius + 4 * SOFT_EDGE
        low = np.maximum(np.floor(centre - reach).astype(int), 0)
        high = np.minimum(np.ceil(centre + reach).astype(int) + 1, image.shape)
        if (low >= high).any():
            return
        axes = [np.arange(a, b) - c for a, b, c in zip(low, high, centre, strict=True)]
        away = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2).astype(np.float32)
        where = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        # A brightness of the cell's own, from its radius, which is drawn already.
        share = (radius - RADII[0]) / (RADII[1] - RADII[0])
        amplitude = SIGNAL[0] + (SIGNAL[1] - SIGNAL[0]) * ((share * 7.3) % 1)
        image[where] += amplitude / (1 + np.exp((away - radius) / (SOFT_EDGE / 2)))
        label[where] |= away <= radius

    def _depth(self, points: np.ndarray) -> np.ndarray:
        """Distance from the middle, 1 at the tissue's surface."""
        half = np.array(self.shape) / 2
        return np.sqrt((((points - half + 0.5) / (0.92 * half)) ** 2).sum(axis=-1))

    def _inside(self, start: Voxels, shape: Voxels) -> Bool[np.ndarray, "z y x"]:
        squares = []
        for begin, length, size in zip(start, shape, self.shape, strict=True):
            squares.append(((np.arange(begin, begin + length) - size / 2 + 0.5) / (0.92 * size / 2)) ** 2)
        return squares[0][:, None, None] + squares[1][:, None] + squares[2] < 1

    def _texture(self, start: Voxels, shape: Voxels) -> Float[np.ndarray, "z y x"]:
        # Products of waves along the axes: smooth, the same on both sides of a border, and cheap.
        rng = np.random.default_rng([self.seed, 1])
        total = np.ones(shape, np.float32)
        for _ in range(2):
            lengths, phases = rng.uniform(90, 400, 3), rng.uniform(0, 2 * np.pi, 3)
            waves = [
                np.sin(2 * np.pi * np.arange(begin, begin + size) / length + phase).astype(np.float32)
                for begin, size, length, phase in zip(start, shape, lengths, phases, strict=True)
            ]
            total += 0.12 * waves[0][:, None, None] * waves[1][:, None] * waves[2]
        return total

    def _noise(self, start: Voxels, shape: Voxels) -> Float[np.ndarray, "z y x"]:
        # One cube repeated: to draw anew for each voxel would take longer than all the rest.
        if self._cube is None:
            rng = np.random.default_rng([self.seed, 2])
            object.__setattr__(self, "_cube", NOISE * rng.standard_normal([NOISE_SIDE] * 3, dtype=np.float32))
        along = (np.arange(begin, begin + size) % NOISE_SIDE for begin, size in zip(start, shape, strict=True))
        return self._cube[np.ix_(*along)]


def write_brain(
    out: str | pathlib.Path,
    *,
    shape: Voxels,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a brain as OME-Zarr 0.5 with its mask, and a CSV of its cells beside it; gives their number.

    Memory is bounded by a few blocks whatever the shape. The same shape and seed give the same bytes.

    Raises:
        BrainError: `out` exists, does not end in .zarr, or an axis has fewer than 64 voxels.
    """
    out = pathlib.Path(out)
    if min(shape) < CHUNK:
        raise BrainError(f"--shape {shape}: at least {CHUNK} voxels along each axis are needed")
    if out.suffix != ".zarr":
        raise BrainError(f"--out {out}: the name must end in .zarr, such as brain.ome.zarr")
    if out.exists():
        raise BrainError(f"--out {out}: it exists; name a new folder, or remove it first")
    brain = Brain(shape, seed)
    # Complete under its own name or not there at all.
    unfinished = out.with_name(out.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    count = _write_cells(cells_table(out), brain)
    images = [_create(unfinished / str(number), _halved(shape, number), "uint16") for number in range(LEVELS)]
    label = _create(unfinished / LABELS / "0", shape, "uint8")
    starts = [range(0, size, BLOCK) for size in shape]
    corners = [(z, y, x) for z in starts[0] for y in starts[1] for x in starts[2]]
    writing: list[tensorstore.WriteFutures] = []
    for number, corner in enumerate(corners):
        size = tuple(min(BLOCK, end - begin) for begin, end in zip(corner, shape, strict=True))
        image, mask = brain.block(corner, size)
        if image.any():
            # The block before is compressed and written while this one is made, and no more wait than that.
            for future in writing:
                future.result()
            writing = [_write(label, corner, mask)] if mask.any() else []
            for level, array in enumerate(images):
                if level:
                    image = _mean_of_eight(image)
                writing.append(_write(array, tuple(begin >> level for begin in corner), image))
        if progress is not None:
            progress(number + 1, len(corners))
    for future in writing:
        future.result()
    _describe(unfinished, levels=LEVELS, name=out.name, label=False)
    _describe(unfinished / LABELS, levels=1, name="cells", label=True)
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", "labels": ["cells"]}}}
    (unfinished / "labels" / "zarr.json").write_text(json.dumps(group, indent=1))
    unfinished.rename(out)
    return count


def cells_table(out: str | pathlib.Path) -> pathlib.Path:
    """Where `write_brain` puts the table of cells."""
    out = pathlib.Path(out)
    return out.with_name(out.name.removesuffix(".zarr").removesuffix(".ome") + "_cells.csv")


def _write_cells(path: pathlib.Path, brain: Brain) -> int:
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "z", "y", "x", "z_um", "y_um", "x_um", "radius_um"])
        for start in range(0, brain.shape[0], PITCH):
            rows = (slice(start, start + PITCH), slice(0, brain.shape[1]), slice(0, brain.shape[2]))
            for centre, radius in zip(*brain.cells(rows), strict=True):
                count += 1
                place = [f"{value:.2f}" for value in centre]
                writer.writerow([count, *place, *(f"{value * VOXEL_UM:.2f}" for value in centre), f"{radius:.2f}"])
    return count


def _create(folder: pathlib.Path, shape: Voxels, dtype: str) -> tensorstore.TensorStore:
    size = np.dtype(dtype).itemsize
    blosc = {"cname": "zstd", "clevel": 1, "shuffle": "bitshuffle", "typesize": size, "blocksize": 0}
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "blosc", "configuration": blosc}]
    metadata = {
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [CHUNK] * 3}},
        "codecs": codecs,
        "fill_value": 0,
        "dimension_names": ["z", "y", "x"],
    }
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}, "metadata": metadata}
    return tensorstore.open(spec, create=True).result()


def _write(array: tensorstore.TensorStore, corner: tuple[int, ...], voxels: np.ndarray) -> tensorstore.WriteFutures:
    ends = [begin + length for begin, length in zip(corner, voxels.shape, strict=True)]
    return array[tuple(slice(begin, end) for begin, end in zip(corner, ends, strict=True))].write(voxels)


def _halved(shape: Voxels, times: int) -> Voxels:
    z, y, x = (max(1, -(-size // 2**times)) for size in shape)
    return z, y, x


def _mean_of_eight(image: np.ndarray) -> np.ndarray:
    odd = [(0, size % 2) for size in image.shape]
    total = (np.pad(image, odd, mode="edge") if any(after for _, after in odd) else image).astype(np.uint32)
    for axis in range(3):
        pairs = np.moveaxis(total, axis, 0)
        total = np.moveaxis(pairs[::2] + pairs[1::2], 0, axis)
    return ((total + 4) // 8).astype(image.dtype)


def _describe(folder: pathlib.Path, *, levels: int, name: str, label: bool) -> None:
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    datasets = [
        {
            "path": str(number),
            "coordinateTransformations": [
                {"type": "scale", "scale": [VOXEL_UM * 2**number] * 3},
                # The middle of a coarse voxel lies between those of its fine ones.
                {"type": "translation", "translation": [VOXEL_UM * (2**number - 1) / 2] * 3},
            ],
        }
        for number in range(levels)
    ]
    ome = {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": datasets, "type": "mean"}]}
    if label:
        ome["image-label"] = {"source": {"image": "../../"}}
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
    (folder / "zarr.json").write_text(json.dumps(group, indent=1))


def _draws(seed: int, places: np.ndarray, count: int) -> Float[np.ndarray, "n k"]:
    """Numbers in [0, 1) that depend on the seed and a place alone, by the mixing of splitmix64."""
    with np.errstate(over="ignore"):
        state = np.full(len(places), np.uint64(seed & (2**63 - 1)), np.uint64)
        for axis in range(3):
            state = _mixed(state ^ (places[:, axis].astype(np.uint64) + GOLDEN * np.uint64(axis + 1)))
        columns = [_mixed(state + GOLDEN * np.uint64(k + 1)) for k in range(count)]
    return np.stack([(column >> np.uint64(11)).astype(np.float64) * 2.0**-53 for column in columns], axis=1)


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
