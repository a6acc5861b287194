"""A page about the prediction of a whole volume, with its pictures inside: it opens from disk, anywhere."""

import dataclasses
import html
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lsmfm_jax.files import replace_file
from lsmfm_jax.html_page import drawn
from lsmfm_jax.predict.output import INSTANCES, MASK, Array, Image
from lsmfm_jax.predict.pictures import grey, overlay
from lsmfm_jax.predict.progress import duration
from lsmfm_jax.predict.shards import Record
from lsmfm_jax.predict.statistics import projection_side
from lsmfm_jax.volumes.lazy import LazyVolume

REPORT = "report.html"
# How many boxes are shown, and voxels of their planes.
BOXES, BOX_SIDE = 6, 192
SLABS = 24
# Levels of a pyramid with more voxels are not projected.
PROJECTED_VOXELS = 2**27

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } .muted { color: #5d6b7a; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
td + td { font-variant-numeric: tabular-nums; } img { max-width: 100%; height: auto; }
pre { background: #f5f7fa; padding: .8rem; overflow: auto; } details { margin: .6rem 0; }
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """What a report shows.

    Attributes:
        summary: figures, as in `summary.json`.
        marks: of the shards.
        images: of the result.
        objects: their facts, or None.
        volume: the input, or None where it cannot be read.
    """

    summary: dict[str, Any]
    marks: Mapping[tuple[int, int, int], dict[str, Any]]
    images: Sequence[Image]
    objects: Shaped[np.ndarray, " n"] | None
    volume: LazyVolume | None


def write_brain_report(root: pathlib.Path, record: Record, findings: Findings) -> pathlib.Path:
    """Writes `report.html` into a result and returns its path."""
    name = html.escape(pathlib.PurePath(record.source["path"]).name)
    parts = [
        f"<h1>{html.escape(record.settings['task'].capitalize())}: {name}</h1>",
        f'<p class="muted">{html.escape(record.source["path"])} into {html.escape(root.name)}</p>',
        _facts(record, findings),
        "<h2>Largest values along each axis</h2>",
        _projections(root, record, findings),
        "<h2>Where most was found</h2>" if record.settings["task"] == "segment" else "<h2>Planes</h2>",
        _boxes(root, record, findings),
    ]
    if findings.objects is not None:
        parts += ["<h2>Objects along Z</h2>", _slabs(record, findings.objects)]
    parts += ["<h2>Time</h2>", _times(findings.summary["process_seconds"])]
    settings = html.escape(json.dumps(record.settings, indent=2))
    parts.append(f"<details><summary>Settings</summary><pre>{settings}</pre></details>")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>"
    )
    replace_file(root / REPORT, page.encode())
    return root / REPORT


def _facts(record: Record, findings: Findings) -> str:
    summary, size = findings.summary, record.source["voxel_size_um"]
    rows = {
        "Voxels (Z, Y, X)": " × ".join(map(str, summary["shape"])),
        "Voxel size, µm": "unknown" if size is None else " × ".join(f"{side:g}" for side in size),
        "Scaled": f"{record.statistics.low:g} counts become 0, {record.statistics.high:g} become 1",
        "Left out": f"{summary['blank_shards']} of {summary['shards']} shards were blank or outside of the mask",
    }
    if record.settings["task"] == "segment":
        rows["Foreground"] = f"{summary['foreground_frac']:.4%}"
    if findings.objects is not None:
        merging = summary["merging"]
        smallest = f", of at least {merging['minimum_um3']:g} µm³" if merging["minimum_um3"] else ""
        how = ", touching ones cut apart" if merging["split_touching"] else ""
        rows["Objects"] = f"{summary['objects']} ({merging['connectivity']} neighbours{smallest}{how}); objects.csv"
    return _table(rows)


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{cells}</table>"


def _projections(root: pathlib.Path, record: Record, findings: Findings) -> str:
    projection = record.statistics.projection
    finite = np.where(np.isfinite(projection), projection, record.statistics.minimum)
    pixel = projection_side(tuple(record.settings["input_shape"]))
    seen = record.plan.in_volume(tuple(slice(0, size) for size in record.plan.shape))[1:]
    finite = finite[tuple(slice(one.start // pixel, -(-one.stop // pixel)) for one in seen)]
    along = "Z" if record.settings.get("box") is None else "all of Z"
    panels = [(f"input, along {along} (1 pixel: {pixel} voxel{'s' if pixel > 1 else ''})", grey(finite))]
    for image in findings.images:
        if image.group != "" and image is not MASK:
            continue
        array = _projected(root, image)
        maxima = [
            np.zeros([side for at, side in enumerate(array.shape) if at != axis], np.float32) for axis in range(3)
        ]
        for start in range(0, array.shape[0], array.shard[0]):
            stop = min(start + array.shard[0], array.shape[0])
            values = array.read((slice(start, stop), slice(None), slice(None)))
            np.maximum(maxima[0], values.max(axis=0), out=maxima[0])
            maxima[1][start:stop], maxima[2][start:stop] = values.max(axis=1), values.max(axis=2)
        top = {"probability": 255.0, "mask": 1.0}.get(image.name) or float(np.percentile(maxima[0], 99.7)) or 1.0
        panels += [
            (f"{image.name}, along {axis}", np.clip(one / top, 0, 1)) for axis, one in zip("ZYX", maxima, strict=True)
        ]
    return _figure(panels, columns=4)


def _projected(root: pathlib.Path, image: Image) -> Array:
    """The finest level that is small enough."""
    level = 0
    while np.prod((array := Array(root, image, level=level)).shape) > PROJECTED_VOXELS:
        level += 1
    return array


def _boxes(root: pathlib.Path, record: Record, findings: Findings) -> str:
    segmented = record.settings["task"] == "segment"
    shown = next((image for image in findings.images if image is MASK), None) or findings.images[0]
    array = Array(root, shown)
    if segmented:
        ranked = sorted((s for s in findings.marks if findings.marks[s]["foreground"]), key=_foreground(findings.marks))
        chosen = ranked[:BOXES]
    else:
        written = [shard for shard, mark in findings.marks.items() if not mark["blank"]]
        chosen = written[:: max(1, len(written) // BOXES)][:BOXES]
    if not chosen:
        return '<p class="muted">Nothing was found.</p>'
    panels = []
    for shard in chosen:
        box = record.plan.shard_box(shard)
        values = array.read(box)
        planes = np.count_nonzero(values, axis=(1, 2))
        z = int(np.argmax(planes)) if segmented else len(values) // 2
        plane = values[z, :BOX_SIDE, :BOX_SIDE]
        where = tuple(slice(one.start, one.start + side) for one, side in zip(box[1:], plane.shape, strict=True))
        title = f"z {box[0].start + z}, y {where[0].start}, x {where[1].start}"
        if findings.volume is None:
            panels.append((title, grey(plane) if plane.any() else np.zeros(plane.shape)))
            continue
        raw = findings.volume.read((slice(box[0].start + z, box[0].start + z + 1), *where))[0]
        panels.append((f"input, {title}", grey(raw)))
        if segmented:
            panels.append((_count(root, findings, box, z, where), overlay(grey(raw), plane > 0)))
        else:
            panels.append((shown.name, grey(plane, *np.percentile(raw, (1, 99.7)))))
    return _figure(panels, columns=4)


def _foreground(marks: Mapping[tuple[int, int, int], dict[str, Any]]) -> Any:
    return lambda shard: (-marks[shard]["foreground"], shard)


def _count(root: pathlib.Path, findings: Findings, box: Sequence[slice], z: int, where: Sequence[slice]) -> str:
    if INSTANCES not in findings.images:
        return "mask"
    plane = Array(root, INSTANCES).read((slice(box[0].start + z, box[0].start + z + 1), where[0], where[1]))
    return f"{len(np.unique(plane[plane > 0]))} objects in the plane"


def _slabs(record: Record, objects: Shaped[np.ndarray, " n"]) -> str:
    depth = record.plan.shape[0]
    edges = np.linspace(0, depth, min(SLABS, depth) + 1)
    counts = np.zeros(len(edges) - 1, np.int64)
    for start in range(0, len(objects), 2**18):
        some = objects[start : start + 2**18]
        counts += np.histogram(some["sums"][:, 0] / some["voxels"], edges)[0]
    figure = Figure(figsize=(9.0, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.bar(edges[:-1], counts, width=np.diff(edges) * 0.92, align="edge", color="#d9822b")
    axis.set_xlabel("z of the centroid, voxels")
    axis.set_ylabel("objects")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return drawn(figure, "objects along Z")


def _times(seconds: Mapping[str, float]) -> str:
    note = '<p class="muted">Of all processes together; reading and writing go on beside the network.</p>'
    return _table({name: duration(value) for name, value in seconds.items()}) + note


def _figure(panels: Sequence[tuple[str, np.ndarray]], *, columns: int) -> str:
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.0 * min(columns, len(panels)), 3.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, min(columns, len(panels)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, pixels) in zip(axes.flat, panels, strict=False):
        axis.imshow(pixels, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axis.set_title(title, fontsize=8)
    return drawn(figure, "; ".join(title for title, _ in panels))
