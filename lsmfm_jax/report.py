"""One page on a run, with curves and pictures, that opens from disk without a network."""

import base64
import datetime
import html
import io
import json
import pathlib
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lsmfm_jax.train.checkpoint import write_json_atomically
from lsmfm_jax.train.tracking import read_metrics

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; margin: 2rem auto; max-width: 70rem;
       padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.muted { color: #5c6b7f; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem 1rem .25rem 0; text-align: left; border-bottom: 1px solid #e3e8ef; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: .8rem; }
.curves svg { width: 100%; height: auto; } img { max-width: 100%; height: auto; }
details { margin: .6rem 0; } summary { cursor: pointer; } pre { background: #f5f7fa; padding: .8rem; overflow: auto; }
"""

# Curves that belong together stand in one panel; what a run does not have is left out.
_PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Loss", ("loss",)),
    ("Reconstruction, mean absolute error", ("reconstruct",)),
    ("Distillation, nats", ("distill",)),
    ("Contrast, nats", ("contrast",)),
    ("Alignment, 1 - cosine", ("align",)),
    ("Retrieval, share right", ("image_to_text_top1", "text_to_image_top1", "chance_top1")),
    ("Teacher entropy, nats", ("teacher_entropy", "teacher_marginal_entropy")),
    ("Teacher information, nats (0 is collapse)", ("teacher_information",)),
    ("Dice", ("dice",)),
    ("Accuracy", ("accuracy", "macro_f1")),
    ("SSIM", ("ssim", "ssim_of_input")),
    ("PSNR, dB", ("psnr_db", "psnr_db_of_input")),
    ("Gradient norm", ("grad_norm",)),
    ("Throughput, patches/s", ("patches_per_s",)),
)


def write_report(folder: pathlib.Path) -> pathlib.Path:
    """Writes `report.html` into a run folder and returns its path.

    Raises:
        FileNotFoundError: the folder is no run folder.
    """
    for name in ("config.json", "metrics.jsonl"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder}: no {name} there; name the --workdir of a run")
    train, validation = read_metrics(folder, "train"), read_metrics(folder, "validation")
    record = json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {}
    config = json.loads((folder / "config.json").read_text())
    when = datetime.datetime.fromtimestamp((folder / "metrics.jsonl").stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    parts = [
        f"<h1>{html.escape(record.get('task', config['task']).capitalize())}: {html.escape(folder.name)}</h1>",
        f'<p class="muted">{html.escape(_subtitle(config, record))}. Last figures of {when}.</p>',
        "<h2>Result</h2>",
        _result_table(validation),
        "<h2>Curves</h2>",
        '<div class="curves">' + "".join(_curves(train, validation)) + "</div>",
        *_pictures(folder),
        "<h2>How it was made</h2>",
        _details("Configuration", json.dumps(config, indent=2)),
        _details("Run", json.dumps(record, indent=2)),
    ]
    if (folder / "groups.txt").exists():
        parts.append(_details("Optimiser groups", (folder / "groups.txt").read_text()))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(folder.name)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )
    target = folder / "report.html"
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text(page)
    temporary.replace(target)
    if validation:
        write_json_atomically(folder / "summary.json", {"first": validation[0], "last": validation[-1]})
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


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"


def _curves(train: list[dict[str, Any]], validation: list[dict[str, Any]]) -> list[str]:
    panels = []
    for title, names in _PANELS:
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
        data = base64.b64encode(file.read_bytes()).decode()
        name = file.stem.replace("_", " ")
        parts.append(f'<p class="muted">{html.escape(name)}</p><img alt="{name}" src="data:image/png;base64,{data}">')
    return parts


def _details(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary><pre>{html.escape(text)}</pre></details>"
