"""What scoring writes: two tables as CSV, and a page with the bars of the paper's Figure 3b."""

import csv
import html
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lsmfm_jax import html_page
from lsmfm_jax.files import mark_folder, replace_text, replacing
from lsmfm_jax.metrics.intervals import Interval
from lsmfm_jax.ranking.score import ALL, MethodScore, Scores

MADE_BY = "ranking score"
POINTS, SUMMARY, PAGE = "points.csv", "summary.csv", "ranking.html"
# From best to worst; told apart without colours too, as each bar carries its number.
_COLOURS = ("#1b7f5c", "#8cc5a8", "#d9dee4")
_INK = "#1c2430"


def place_name(place: int, count: int) -> str:
    """The word for a place from 0, the best, to count - 1, the worst."""
    if place == 0:
        return "best"
    if place == count - 1:
        return "worst"
    return "middle" if count == 3 else f"place {place + 1}"


def write_scores(scores: Scores, out: pathlib.Path) -> None:
    """Write both tables and the page into a folder, which is marked as this command's.

    Raises:
        WriteError: the system does not take a file.
    """
    mark_folder(out, made_by=MADE_BY)
    _write_csv(out / POINTS, _points_rows(scores))
    _write_csv(out / SUMMARY, _summary_rows(scores))
    replace_text(out / PAGE, scores_page(scores))


def lines(scores: Scores) -> list[str]:
    """The figures of all experts as lines of text."""
    overall = [one for one in scores.methods if one.expert == ALL]
    width = max(len(one.method) for one in overall)
    said = [
        f"{one.method:{width}}  {_interval(one.over_cases)} points; {_places(one)}"
        for one in sorted(overall, key=lambda one: -one.over_cases.value)
    ]
    return [*said, agreement_text(scores), *scores.notes]


def agreement_text(scores: Scores) -> str:
    """Kendall's W in words."""
    found = scores.agreement
    if math.isnan(found.mean):
        return "Kendall's W: none, as there is one expert"
    overall = "" if math.isnan(found.overall) else f"; {found.overall:.2f} for the mean points of the methods"
    return (
        f"Kendall's W of {len(scores.experts)} experts: {found.mean:.2f} on average over {len(scores.common)} cases "
        f"(1 is full agreement, {found.chance:.2f} is chance){overall}"
    )


def _places(one: MethodScore) -> str:
    count = len(one.places)
    return ", ".join(f"{place_name(place, count)} {times}" for place, times in enumerate(one.places))


def _interval(one: Interval) -> str:
    return f"{one.value:.2f}" if math.isnan(one.low) else f"{one.value:.2f} {_limits(one)}"


def _limits(one: Interval) -> str:
    return "–" if math.isnan(one.low) else f"[{one.low:.2f}, {one.high:.2f}]"


def _points_rows(scores: Scores) -> list[dict[str, Any]]:
    rows = []
    best = len(scores.key.methods) - 1
    for expert in scores.experts:
        for case in scores.key.cases:
            if case.name not in expert.orders:
                continue
            letters = {method: letter for letter, method in case.methods.items()}
            for place, method in enumerate(expert.orders[case.name]):
                rows.append(
                    {
                        "expert": expert.expert,
                        "case": case.name,
                        "image": case.image,
                        "volume": case.volume,
                        "method": method,
                        "letter": letters[method],
                        "place": place_name(place, best + 1),
                        "points": best - place,
                    }
                )
    return rows


def _summary_rows(scores: Scores) -> list[dict[str, Any]]:
    rows = []
    for one in scores.methods:
        count = len(one.places)
        row: dict[str, Any] = {"expert": one.expert, "method": one.method, "cases": one.cases}
        row |= {place_name(place, count).replace(" ", "_"): times for place, times in enumerate(one.places)}
        row["points"] = sum(times * (count - 1 - place) for place, times in enumerate(one.places))
        row["mean_points"] = f"{one.over_cases.value:.6g}"
        for name, interval in (("cases", one.over_cases), ("volumes", one.over_volumes)):
            row[f"low_{name}"], row[f"high_{name}"] = (
                "" if math.isnan(limit) else f"{limit:.6g}" for limit in (interval.low, interval.high)
            )
        rows.append(row)
    return rows


def _write_csv(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def scores_page(scores: Scores) -> str:
    """The page as HTML."""
    count = len(scores.key.methods)
    title = "Blinded ranking by experts"
    overall = [one for one in scores.methods if one.expert == ALL]
    columns = ["method", *(place_name(place, count) for place in range(count)), "mean points", "interval over volumes"]
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="muted">experts: {len(scores.experts)}, cases: {len(scores.common)} of {len(scores.key.cases)}, '
        f"kit {html.escape(scores.key.kit)}; the best of a case gets {count - 1} points, the worst 0</p>",
        *(f"<p>{html.escape(note[0].upper() + note[1:])}.</p>" for note in scores.notes),
        html_page.drawn(bars(overall), "distribution of places of each method, with the mean points"),
        html_page.table(columns, [_row(one) for one in overall]),
        '<p class="muted">In brackets 95 % intervals, for other experts and cases; those over volumes also for other '
        "volumes, since cases of one volume resemble each other. None with fewer than three cases or volumes.</p>",
        "<h2>Differences of mean points</h2>",
        html_page.table(
            ("methods", "difference", "interval over volumes"),
            [
                [f"{one.first} − {one.second}", _interval(one.over_cases), _limits(one.over_volumes)]
                for one in scores.differences
            ],
        ),
        '<p class="muted">An interval without 0: other experts and cases would most likely show it too.</p>',
        "<h2>Agreement</h2>",
        f"<p>{html.escape(agreement_text(scores))}.</p>",
        "<h2>Each expert</h2>",
        html_page.table(
            ["expert", "cases", *columns],
            [[one.expert, str(one.cases), *_row(one)] for one in scores.methods if one.expert != ALL],
        ),
    ]
    return html_page.page(title, parts)


def _row(one: MethodScore) -> list[str]:
    return [one.method, *map(str, one.places), _interval(one.over_cases), _limits(one.over_volumes)]


def bars(methods: Sequence[MethodScore]) -> Figure:
    """A bar for each method: shares of best to worst, the mean points with their interval below its name."""
    count = len(methods[0].places)
    figure = Figure(figsize=(max(4.6, 1.5 * len(methods) + 1.6), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = np.array([one.places for one in methods], np.float64)
    shares = 100.0 * shares / shares.sum(axis=1, keepdims=True)
    bottom = np.zeros(len(methods))
    for place in range(count):
        # With more than three methods the middle places share the colour between the ends.
        colour = _COLOURS[0] if place == 0 else _COLOURS[-1] if place == count - 1 else _COLOURS[1]
        axes.bar(
            range(len(methods)),
            shares[:, place],
            bottom=bottom,
            color=colour,
            edgecolor="white",
            width=0.62,
            label=place_name(place, count),
        )
        for k, share in enumerate(shares[:, place]):
            if share >= 5.0:
                ink = "white" if place == 0 else _INK
                middle = bottom[k] + share / 2
                axes.text(k, middle, f"{share:.0f} %", ha="center", va="center", color=ink, fontsize=9)
        bottom += shares[:, place]
    labels = [f"{one.method}\n{_interval(one.over_cases)}" for one in methods]
    axes.set_xticks(range(len(methods)), labels, fontsize=9)
    axes.set(ylim=(0, 100), ylabel="rankings (%)")
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles, names, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    axes.set_title("mean points with 95 % interval below each method", fontsize=9, loc="left")
    return figure
