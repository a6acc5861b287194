"""What is in a patch store: counts, sizes, intensities and problems as text, and patches as a picture."""

import pathlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lsmfm_jax.files import replacing
from lsmfm_jax.store.manifest import PatchRow
from lsmfm_jax.store.reader import PARTS, DamagedPatch, PatchStore

# In the head of each contact sheet, so that one may be drawn over another and over no other picture.
SHEET_MARK = "lsmfm data info"

# Below this many grey values between the 1st and 99th percentile, scaling shows steps and noise.
FEWEST_GREYS = 16
LISTED = 3
LONGEST_TABLE = 60
SLAB_PLANES = 16
BACKGROUND, INK, FAINT = "#101418", "#e8ecf0", "#8a949e"


def info(store: PatchStore) -> str:
    """Describe a store: counts by source, volume and caption, sizes, intensity statistics and problems."""
    rows = store.rows
    if not rows:
        return f"{store.path}: no patches"
    stored = sum(file.stat().st_size for file in (store.path / PARTS).rglob("*") if file.is_file())
    raw = sum(int(np.prod(row.shape)) * np.dtype(row.dtype).itemsize for row in rows)
    sections = [
        f"{store.path}: {len(rows)} patches of {len({row.volume for row in rows})} volumes, "
        f"{stored / 2**20:.1f} MiB on disk ({raw / 2**20:.1f} MiB of voxels) in {len(store.parts)} parts",
        _table("source (layout)", _counts(f"{row.source} ({row.layout})" for row in rows)),
        _table("volume", _counts(row.volume for row in rows)),
        _table("caption key", _caption_counts(store), ("patches", "texts")),
        _table("shape (Z, Y, X), type", _counts(f"{row.shape}, {row.dtype}" for row in rows)),
        _table("voxel size (Z, Y, X) in um, from", _counts(map(_voxel_size, rows))),
        _intensities(rows),
    ]
    found = problems(store)
    heading = f"problems: {len(found)}" if found else "problems: none found"
    return "\n\n".join([*sections, "\n".join([heading, *(f"  {line}" for line in found)])])


def problems(store: PatchStore) -> list[str]:
    """Name what may spoil a training, a line each; from the manifest alone, no pixels are read."""
    checks: list[tuple[str, Callable[[PatchRow], bool]]] = [
        ("saturated: at least 0.1 % of the voxels hold the maximum", _saturated),
        ("nearly empty: at least 95 % of the voxels hold the minimum", _nearly_empty),
        (f"flat: fewer than {FEWEST_GREYS} grey values from the 1st to the 99th percentile", _flat),
        ("no caption", lambda row: bool(store.captions) and row.caption_key not in store.captions),
        ("voxel size unknown", lambda row: row.voxel_size_um is None),
        ("voxel size unverified, see above", lambda row: "unverified" in row.voxel_size_source),
    ]
    found = []
    for what, check in checks:
        ids = [row.id for row in store.rows if check(row)]
        if ids:
            found.append(f"{what}: {len(ids)} patches ({_some(ids)})")
    found += _same_place(store.rows)
    if len({row.volume for row in store.rows}) == 1:
        found.append("one volume only: this store alone cannot be split by volume")
    return found


def contact_sheet(store: PatchStore, png_path: str | pathlib.Path, *, count: int = 24) -> None:
    """Draw up to `count` patches, taken from all volumes in turn, as a PNG.

    Each is the maximum over the 16 planes in the middle of Z, scaled to its own range.
    """
    chosen = _spread(store.rows, count)
    lines = max(1, -(-len(chosen) // 6))
    columns = max(2, -(-len(chosen) // lines))
    width, height = 1.9 * columns + 0.3, 2.3 * lines + 0.75
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND, dpi=130)
    FigureCanvasAgg(figure)
    figure.text(0.15 / width, 1 - 0.3 / height, store.path.name, color=INK, fontsize=12, weight="bold")
    figure.text(
        0.15 / width,
        1 - 0.53 / height,
        f"{len(chosen)} of {len(store.rows)} patches · brightest of {SLAB_PLANES} planes · each scaled alone",
        color=FAINT,
        fontsize=7.5,
    )
    for place, index in enumerate(chosen):
        line, column = divmod(place, columns)
        left, top = 0.15 + 1.9 * column, 0.75 + 2.3 * line
        axes = figure.add_axes((left / width, 1 - (top + 1.75) / height, 1.75 / width, 1.75 / height))
        axes.set_axis_off()
        row = store.rows[index]
        try:
            axes.imshow(projection(store, index), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        except DamagedPatch:
            axes.text(0.5, 0.5, "damaged", color="#ff6b6b", ha="center", transform=axes.transAxes)
        name, volume = _short(row.caption_key, 26), _short(row.volume.split("/", 1)[-1], 30)
        figure.text(left / width, 1 - (top + 1.89) / height, name, color=INK, fontsize=7)
        figure.text(left / width, 1 - (top + 2.02) / height, volume, color=FAINT, fontsize=6)
    with replacing(png_path) as temporary:
        figure.savefig(temporary, facecolor=BACKGROUND, format="png", metadata={"Software": SHEET_MARK})


def projection(store: PatchStore, i: int) -> Float[np.ndarray, "y x"]:
    """Give the maximum over the 16 middle planes of a patch, in [0, 1], scaled by its own percentiles."""
    pixels = store.read(i)
    start = max(0, (len(pixels) - SLAB_PLANES) // 2)
    seen = pixels[start : start + SLAB_PLANES].max(axis=0).astype(np.float32)
    # Not by the patch's percentiles: what is bright elsewhere in Z would leave this slab black.
    low, high = np.percentile(seen, (1, 99.7))
    return np.clip((seen - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def _spread(rows: Sequence[PatchRow], count: int) -> list[int]:
    # The first patch of every volume, then the second of every volume, and so on; then in the store's own
    # order.
    seen: Counter[str] = Counter()
    rank = []
    for i, row in enumerate(rows):
        rank.append((seen[row.volume], i))
        seen[row.volume] += 1
    chosen = [i for _, i in sorted(rank)[:count]]
    return sorted(chosen, key=lambda i: (rows[i].source, rows[i].caption_key, rows[i].volume, i))


def _saturated(row: PatchRow) -> bool:
    return row.percentiles["99.9"] >= row.maximum


def _nearly_empty(row: PatchRow) -> bool:
    return row.percentiles["95"] <= row.minimum


def _flat(row: PatchRow) -> bool:
    counts = row.percentiles["99"] - row.percentiles["1"]
    return np.dtype(row.dtype).kind in "iu" and counts < FEWEST_GREYS


def _same_place(rows: Sequence[PatchRow]) -> list[str]:
    # Channels of one brain are often saved as volumes of their own, which a split by volume then tears apart.
    places: dict[tuple[tuple[float, ...], ...], set[str]] = defaultdict(set)
    for row in rows:
        if row.affine is not None and any(line[3] for line in row.affine):
            places[row.affine].add(row.volume)
    return [
        f"volumes {_some(sorted(volumes))} have patches at the very same place by their headers: if they are "
        "channels of one brain, ingest them as one volume (volume pattern), or a split may tear it apart"
        for volumes in places.values()
        if len(volumes) > 1
    ]


def _voxel_size(row: PatchRow) -> str:
    if row.voxel_size_um is None:
        return "unknown"
    return f"{' x '.join(f'{size:g}' for size in row.voxel_size_um)}, {row.voxel_size_source}"


def _intensities(rows: Sequence[PatchRow]) -> str:
    names = ("1", "50", "99", "99.9")
    lines = [("intensity, median over patches", "min", *(f"p{name}" for name in names), "max")]
    for source in sorted({row.source for row in rows}):
        of_source = [row for row in rows if row.source == source]
        columns = [[row.minimum for row in of_source]]
        columns += [[row.percentiles[name] for row in of_source] for name in names]
        columns.append([row.maximum for row in of_source])
        lines.append((source, *(f"{np.median(column):.6g}" for column in columns)))
    return _aligned(lines)


def _counts(names: Iterable[str]) -> list[tuple[str, ...]]:
    return [(name, str(count)) for name, count in sorted(Counter(names).items())]


def _caption_counts(store: PatchStore) -> list[tuple[str, ...]]:
    counts = _counts(row.caption_key for row in store.rows)
    return [(key, count, str(len(store.captions.get(key, [])))) for key, count in counts]


def _table(title: str, lines: list[tuple[str, ...]], columns: tuple[str, ...] = ("patches",)) -> str:
    rest = len(lines) - LONGEST_TABLE
    table = _aligned([(title, *columns), *lines[:LONGEST_TABLE]])
    return f"{table}\n... and {rest} more" if rest > 0 else table


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(cell.rjust(size) for cell, size in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
