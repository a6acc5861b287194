"""The results as one table: long as CSV, a row for each figure; wide as Markdown and LaTeX, a row for each method."""

import csv
import math
import pathlib
from collections.abc import Callable, Sequence

from lsmfm_jax.experiment.results import METRICS, Claim, Results, Row
from lsmfm_jax.files import replace_text, replacing
from lsmfm_jax.metrics.intervals import Interval

CSV, MARKDOWN, LATEX = "results.csv", "results.md", "results.tex"
# What a metric is, in full: of several ways to say "Dice", which one.
TITLES = {
    "dice": "foreground Dice",
    "iou": "IoU",
    "panoptic_quality": "panoptic quality",
    "detection_f1": "detection F1",
    "cl_dice": "clDice",
    "total_dice_paper": "mean of foreground and background Dice (the paper's total Dice)",
    "count_dice_paper": "Dice of component counts (the paper's instance Dice)",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "ssim": "SSIM",
    "psnr": "PSNR, dB",
}
HOW = (
    "Means over seeds and test patches of all folds, with 95 % intervals that resample seeds, volumes, and patches "
    "within volumes. A difference is taken on the same patches. p is two-sided, from the same resamples and widened as "
    "the interval is for few volumes; Holm's p corrects it for all claims of this experiment, and a claim holds below "
    ".05. Claims are over all types; differences of single types are in the CSV, without a verdict."
)
_COLUMNS = ("task", "type", "method", "size", "metric", "mean", "low", "high", "seeds", "patches", "volumes")
_COMPARED = ("against", "difference", "difference_low", "difference_high", "p", "p_holm", "verdict", "printed_in_paper")


def write_tables(results: Results, folder: pathlib.Path) -> None:
    """Writes the three forms into a folder.

    Raises:
        WriteError: the system does not take a file.
    """
    with replacing(folder / CSV) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*_COLUMNS, *_COMPARED], restval="")
        writer.writeheader()
        writer.writerows(_long(results))
    replace_text(folder / MARKDOWN, markdown(results))
    replace_text(folder / LATEX, latex(results))


def _long(results: Results) -> list[dict[str, object]]:
    claims = {_key(claim.row): claim for claim in results.claims}
    rows = []
    for row in results.rows:
        for metric, mean in row.means.items():
            line: dict[str, object] = dict(zip(_COLUMNS, (*_key(row), metric, *_numbers(mean)), strict=False))
            line |= {"seeds": len(row.runs), "patches": len(row.volumes), "volumes": mean.units}
            difference, claim = results.differences.get((*_key(row), metric)), claims.get(_key(row))
            if difference is not None:
                line["against"] = row.against
                line |= dict(zip(_COMPARED[1:4], _numbers(difference), strict=True))
                if claim is not None and metric == claim.metric:
                    line |= {"p": _number(claim.p_value), "p_holm": _number(claim.adjusted), "verdict": claim.verdict}
            line["printed_in_paper"] = row.paper.get(metric, "")
            rows.append(line)
    return rows


def wide(results: Results, task: str) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of one task's table as plain text; a column of printed figures beside a metric that has any."""
    rows = [row for row in results.rows if row.task == task]
    printed = [metric for metric in METRICS[task] if any(metric in row.paper for row in rows)]
    head = ["type", "method", "patches to learn from"]
    for metric in METRICS[task]:
        head += [TITLES[metric], *(["printed in the paper"] if metric in printed else [])]
    cells = []
    for row in rows:
        line = [row.group, row.method, str(row.size)]
        for metric in METRICS[task]:
            line.append(interval_text(row.means[metric]))
            if metric in printed:
                line.append(f"{row.paper[metric]:.2f}" if metric in row.paper else "")
        cells.append(line)
    return head, cells


def claim_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the claims as plain text."""
    head = ["task", "type", "patches to learn from", "claim", "metric", "difference", "p", "Holm's p", "verdict"]
    return head, [_claim(claim) for claim in results.claims]


def _claim(claim: Claim) -> list[str]:
    row = claim.row
    said = f"{row.method} better than {row.against}"
    numbers = [interval_text(claim.difference, sign=True), _p_text(claim.p_value), _p_text(claim.adjusted)]
    return [row.task, row.group, str(row.size), said, TITLES[claim.metric], *numbers, claim.verdict]


def interval_text(interval: Interval, *, sign: bool = False) -> str:
    """A mean with its interval; `[-]` where there is too little to resample."""
    number = "{:+.3f}" if sign else "{:.3f}"
    limits = "[-]" if math.isnan(interval.low) else f"[{number}, {number}]".format(interval.low, interval.high)
    return f"{number.format(interval.value)} {limits}"


def markdown(results: Results) -> str:
    """All tables as Markdown."""
    return _text(results, lambda title: f"## {title}", _markdown_table, str)


def latex(results: Results) -> str:
    """All tables as LaTeX, for `\\input`; no package is needed."""
    return _text(results, lambda title: f"\\subsection*{{{_escaped(title)}}}", _latex_table, _escaped)


def _text(
    results: Results,
    heading: Callable[[str], str],
    table: Callable[[Sequence[str], Sequence[Sequence[str]]], str],
    plain: Callable[[str], str],
) -> str:
    parts = [plain(HOW)]
    for task in dict.fromkeys(row.task for row in results.rows):
        parts += [heading(task), table(*wide(results, task))]
    if results.claims:
        parts += [heading("claims"), table(*claim_rows(results))]
    return "\n\n".join(parts) + "\n"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _latex_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" & ".join(map(_escaped, line)) + " \\\\" for line in (head, *rows)]
    body = "\n".join(
        [f"\\begin{{tabular}}{{{'l' * len(head)}}}", "\\hline", lines[0], "\\hline", *lines[1:], "\\hline"]
    )
    return f"{body}\n\\end{{tabular}}"


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)


def _key(row: Row) -> tuple[str, str, str, int]:
    return row.task, row.group, row.method, row.size


def _numbers(interval: Interval) -> tuple[str, str, str]:
    return _number(interval.value), _number(interval.low), _number(interval.high)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _p_text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
