"""One page on a run, with curves and pictures, that opens from disk without a network."""

import datetime
import html
import io
import json
import pathlib
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lsmfm_jax import html_page
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.files import read_json, replace_json, replace_text
from lsmfm_jax.train.tracking import read_metrics

# Curves that belong together stand in one panel; what a run does not have is left out, and a metric that is named in
# none of these gets a panel of its own.
PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Loss", ("loss",)),
    ("Reconstruction, mean absolute error", ("reconstruct",)),
    ("Distillation, nats", ("distill",)),
    ("Contrast, nats", ("contrast",)),
    ("Alignment, 1 - cosine", ("align",)),
    ("Retrieval, share right", ("image_to_text_top1", "text_to_image_top1", "chance_top1")),
    ("Retrieval, share right among the first five", ("image_to_text_top5", "text_to_image_top5", "chance_top5")),
    ("Teacher entropy, nats", ("teacher_entropy", "teacher_marginal_entropy")),
    ("Teacher information, nats (0 is collapse)", ("teacher_information",)),
    ("Directions that the features use (1 is collapse)", ("feature_rank",)),
    ("Nearest patch of another volume has the same caption", ("neighbour_accuracy", "neighbour_chance")),
    ("Scale of the contrast", ("logit_scale",)),
    ("Dice", ("dice",)),
    ("Precision and recall", ("precision", "recall")),
    ("Accuracy", ("accuracy", "macro_f1")),
    ("SSIM", ("ssim", "ssim_blurred", "ssim_smooth", "ssim_mean")),
    ("PSNR, dB", ("psnr", "psnr_blurred")),
    ("Absolute error", ("l1", "l1_smooth", "l1_mean")),
    ("Difference in edges and high frequencies", ("edge", "high_frequency")),
    ("Gradient norm", ("grad_norm",)),
    ("Throughput, patches/s", ("patches_per_s",)),
    ("Damaged patches", ("damaged_patches",)),
)


class ReportError(LsmfmError, FileNotFoundError):
    """A folder that is no run folder."""


def write_report(folder: pathlib.Path) -> pathlib.Path:
    """Writes `report.html` into a run folder and returns its path.

    Raises:
        ReportError: the folder is no run folder.
        DamagedFile: one of its records cannot be read.
    """
    for name in ("config.json", "metrics.jsonl"):
        if not (folder / name).exists():
            raise ReportError(f"{folder}: no {name} there; name the --workdir of a run")
    train, validation = read_metrics(folder, "train"), read_metrics(folder, "validation")
    record = read_json(folder / "run.json") if (folder / "run.json").exists() else {}
    config = read_json(folder / "config.json")
    when = datetime.datetime.fromtimestamp((folder / "metrics.jsonl").stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    parts = [
        f"<h1>{html.escape(record.get('task', config['task']).capitalize())}: {html.escape(folder.name)}</h1>",
        f'<p class="muted">{html.escape(_subtitle(config, record))}. Last figures of {when}.</p>',
        "<h2>Result</h2>",
        _result_table(validation),
        *_comparison(folder),
        "<h2>Curves</h2>",
        '<div class="curves">' + "".join(_curves(train, validation)) + "</div>",
        *_pictures(folder),
        "<h2>How it was made</h2>",
        _details("Configuration", json.dumps(config, indent=2)),
        _details("Run", json.dumps(record, indent=2)),
    ]
    if (folder / "groups.txt").exists():
        parts.append(_details("Optimiser groups", (folder / "groups.txt").read_text()))
    target = folder / "report.html"
    replace_text(target, html_page.page(folder.name, parts))
    if validation:
        replace_json(folder / "summary.json", {"first": validation[0], "last": validation[-1]})
    return target


def _subtitle(config: dict[str, Any], record: dict[str, Any]) -> str:
    model = record.get("architecture", config.get("model", {}))
    patches = record.get("patches", {})
    counts = f", {patches['train']} patches to train and {patches['validation']} to validate" if patches else ""
    text = config.get("text")
    mode = "" if text is None else (", image and text" if text["enabled"] else ", image only")
    return f"{model.get('name', '')}{mode}{counts}, seed {config['seed']}"


def _result_table(validation: list[dict[str, Any]]) -> str:
    if not validation:
        return "<p>No validation yet.</p>"
    first, last = validation[0], validation[-1]
    best = min(validation, key=lambda line: line.get("loss") if line.get("loss") is not None else float("inf"))
    rows = "".join(
        f"<tr><td>{html.escape(name.replace('_', ' '))}</td>"
        + "".join(f"<td>{_figure(line.get(name))}</td>" for line in (first, best, last))
        + "</tr>"
        for name in last
        if name not in ("step", "kind")
    )
    head = (
        f"<tr><th>validation</th><th>first (step {first['step']})</th><th>lowest loss (step {best['step']})</th>"
        f"<th>last (step {last['step']})</th></tr>"
    )
    return f"<table>{head}{rows}</table>"


def _comparison(folder: pathlib.Path) -> list[str]:
    """The run beside thresholds and a pixel classifier, where that was measured."""
    file = folder / "comparison.json"
    if not file.exists():
        return []
    found = read_json(file)
    rows = "".join(
        f"<tr><td>{html.escape(name.replace('_', ' '))}</td><td>{row['dice']:.3f}</td></tr>"
        for name, row in found["methods"].items()
    )
    head = "<tr><th>on the validation patches</th><th>foreground Dice</th></tr>"
    return [
        "<h2>Better than a threshold?</h2>",
        f"<p>{html.escape(found['verdict'])}.</p><table>{head}{rows}</table>",
    ]


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"


def _curves(train: list[dict[str, Any]], validation: list[dict[str, Any]]) -> list[str]:
    panels = []
    logged = dict.fromkeys(name for record in (*train, *validation) for name in record if name not in ("step", "kind"))
    known = {name for _, names in PANELS for name in names}
    others = [(name.replace("_", " ").capitalize(), (name,)) for name in logged if name not in known]
    for title, names in (*PANELS, *others):
        lines = [
            (f"{kind} {name.replace('_', ' ')}" if len(names) > 1 else kind, style, points)
            for name in names
            for kind, style, records in (("train", "-", train), ("validation", "--", validation))
            if (points := [(r["step"], r[name]) for r in records if r.get(name) is not None])
        ]
        if lines:
            panels.append(_panel(title, lines))
    return panels


def _panel(title: str, lines: list[tuple[str, str, list[tuple[int, float]]]]) -> str:
    figure = Figure(figsize=(4.4, 2.9), layout="constrained")
    FigureCanvasSVG(figure)
    axis = figure.subplots()
    for label, style, points in lines:
        steps, values = zip(*points, strict=True)
        marker = "." if len(points) < 30 else None
        axis.plot(steps, values, style, marker=marker, label=label, linewidth=1.4)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.legend(fontsize=7, frameon=False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _pictures(folder: pathlib.Path) -> list[str]:
    files = sorted((folder / "pictures").glob("*.png"))
    if not files:
        return []
    shown = [files[0]] if len(files) == 1 else [files[-1], files[0]]
    parts = ["<h2>Pictures</h2>"]
    for file in shown:
        name = file.stem.replace("_", " ")
        parts.append(f'<p class="muted">{html.escape(name)}</p>{html_page.png(file.read_bytes(), name)}')
    return parts


def _details(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary><pre>{html.escape(text)}</pre></details>"
