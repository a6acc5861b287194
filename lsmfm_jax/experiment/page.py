"""The page of an experiment, which fills in while it runs: what is done, tables, verdicts, figures, failures."""

import collections
import html
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

from lsmfm_jax import html_page
from lsmfm_jax.experiment.cells import Place
from lsmfm_jax.experiment.declaration import as_record
from lsmfm_jax.experiment.figures import draw_figures
from lsmfm_jax.experiment.grid import FAILED, Cell, is_done
from lsmfm_jax.experiment.results import Results, collect
from lsmfm_jax.experiment.tables import HOW, claim_rows, wide, write_tables
from lsmfm_jax.files import read_json, replace_text

PAGE = "experiment.html"
REFRESH_S = 30


def write_results(place: Place, cells: Sequence[Cell], *, running: bool) -> Results:
    """Writes tables, figures and the page of what is done so far into the workdir.

    Args:
        place: the experiment and its folders.
        cells: of the grid.
        running: whether it goes on: the page then loads itself anew now and then.
    """
    results = collect(place, cells)
    write_tables(results, place.workdir)
    figures = draw_figures(results, place.workdir)
    replace_text(place.workdir / PAGE, _page(place, cells, results, figures, running=running))
    return results


def _page(
    place: Place, cells: Sequence[Cell], results: Results, figures: Mapping[str, pathlib.Path], *, running: bool
) -> str:
    done = sum(is_done(place.workdir, cell) for cell in cells)
    state = "running" if running else "ended" if done == len(cells) else "not complete: the same command goes on"
    parts = [
        f"<h1>Experiment {html.escape(place.experiment.name)}</h1>",
        f'<p class="muted">{done} of {len(cells)} cells done; {state}.</p>',
        html_page.table(["task", "arm", "cells", "done", "failed"], _progress(place, cells)),
    ]
    for task in dict.fromkeys(row.task for row in results.rows):
        parts += [f"<h2>{html.escape(task.capitalize())}</h2>", html_page.table(*_breaking_well(*wide(results, task)))]
        parts.append(html_page.png(figures[task].read_bytes(), f"main metric, {task}"))
    if results.claims:
        parts += ["<h2>Claims</h2>", html_page.table(*_breaking_well(*claim_rows(results)))]
    parts.append(f'<p class="muted">{html.escape(HOW)}</p>')
    failures = _failures(place, cells)
    if failures:
        parts += ["<h2>Failed</h2>", html_page.table(["cell", "last line of its log", "log"], failures)]
    declared = html.escape(json.dumps(as_record(place.experiment), indent=1))
    parts.append(f"<details><summary>Declaration</summary><pre>{declared}</pre></details>")
    head = f'<meta http-equiv="refresh" content="{REFRESH_S}">' if running else ""
    return html_page.page(place.experiment.name, parts, head=head)


def _breaking_well(head: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[Sequence[str], list[list[str]]]:
    """The table with lines that break before an interval and not in it, and in names after an underscore."""
    whole = [[re.sub(r"\[(\S+), (\S+)\]", "[\\1,\u00a0\\2]", cell) for cell in row] for row in rows]
    return head, [[cell.replace("_", "_\u200b") for cell in row] for row in whole]


def _progress(place: Place, cells: Sequence[Cell]) -> list[list[str]]:
    counts: dict[tuple[str, str], list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    for cell in cells:
        of = counts[cell.task, cell.arm or cell.group]
        of[0] += 1
        of[1] += is_done(place.workdir, cell)
        of[2] += (place.workdir / cell.key / FAILED).is_file()
    return [[task, arm, *map(str, of)] for (task, arm), of in counts.items()]


def _failures(place: Place, cells: Sequence[Cell]) -> list[list[str]]:
    marks = [(cell, place.workdir / cell.key / FAILED) for cell in cells]
    records = [(cell, read_json(mark)) for cell, mark in marks if mark.is_file()]
    return [[cell.key, record["error"], record["log"]] for cell, record in records]
