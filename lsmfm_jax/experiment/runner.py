"""Runs what is left of a grid, some cells at a time; a line for each that ends, and at the end those that failed."""

import concurrent.futures
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lsmfm_jax.experiment.cells import Place, mark_failed, read_done, run_cell
from lsmfm_jax.experiment.grid import Cell, is_done

# Drawing the page takes seconds of a machine that has better things to do.
PAGE_EVERY_S, PAGE_SHARE = 60.0, 0.05


class Outcome(NamedTuple):
    """What became of the cells: those that failed with their lines, and those that waited for them."""

    failed: dict[str, str]
    blocked: list[str]


def run_grid(
    place: Place,
    cells: Sequence[Cell],
    *,
    jobs: int,
    run: Callable[[Place, Cell], None] = run_cell,
    redraw: Callable[[], None] = lambda: None,
    print_line: Callable[[str], None] = print,
) -> Outcome:
    """Runs all cells that are not done, each once, at most `jobs` at a time.

    Args:
        place: the experiment and its folders.
        cells: of the grid, in their order.
        jobs: cells at a time.
        run: what one cell does; raises where it fails.
        redraw: draws the page; called now and then, and at the end by the caller.
        print_line: prints a line.
    """
    done = {cell.key for cell in cells if is_done(place.workdir, cell)}
    waiting = [cell for cell in cells if cell.key not in done]
    failed: dict[str, str] = {}
    running: dict[concurrent.futures.Future, Cell] = {}
    next_page = time.monotonic() + PAGE_EVERY_S
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        while True:
            for cell in [cell for cell in waiting if done.issuperset(cell.after)][: jobs - len(running)]:
                waiting.remove(cell)
                running[pool.submit(run, place, cell)] = cell
            if not running:
                break
            ended, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in ended:
                cell = running.pop(future)
                error = future.exception()
                if error is None:
                    done.add(cell.key)
                elif isinstance(error, Exception):
                    failed[cell.key] = mark_failed(place, cell, error)
                else:
                    raise error
                print_line(_status(place, cells, cell, done, failed, jobs=jobs))
            if (start := time.monotonic()) > next_page:
                redraw()
                end = time.monotonic()
                next_page = end + max(PAGE_EVERY_S, (end - start) / PAGE_SHARE)
    return Outcome(failed, [cell.key for cell in waiting])


def projected_hours(workdir: pathlib.Path, cells: Sequence[Cell], *, jobs: int) -> float | None:
    """Hours that the cells which are left would take, by those of their kind that are done; None where none is.

    A kind of which no cell is done counts as the mean of its task, or of all.
    """
    seconds: dict[tuple, list[float]] = {}
    left = []
    for cell in cells:
        if is_done(workdir, cell):
            took = read_done(workdir, cell)["seconds"]
            for kind in (cell.kind, (cell.task,), ()):
                seconds.setdefault(kind, []).append(took)
        else:
            left.append(cell)
    if not seconds:
        return None
    total = 0.0
    for cell in left:
        known = next(seconds[kind] for kind in (cell.kind, (cell.task,), ()) if kind in seconds)
        total += sum(known) / len(known)
    return total / jobs / 3600


def _status(
    place: Place, cells: Sequence[Cell], cell: Cell, done: set[str], failed: dict[str, str], *, jobs: int
) -> str:
    """One line on a cell that ended."""
    where = f"[{len(done) + len(failed)}/{len(cells)}]"
    if cell.key in failed:
        return f"{where} {failed[cell.key]}"
    record = read_done(place.workdir, cell)
    metric = {"segment": "dice", "classify": "accuracy", "deblur": "ssim"}.get(cell.task, "")
    means = ", ".join(
        f"{'' if method == 'prediction' else method + ' '}{metric} {sum(s[metric] for s in of.values()) / len(of):.3f}"
        for method, of in record["methods"].items()
        if of
    )
    hours = projected_hours(place.workdir, cells, jobs=jobs) or 0.0
    left = len(cells) - len(done) - len(failed)
    return f"{where} {cell.key}: {means or 'done'} in {record['seconds']:.0f} s; {left} left, about {hours:.2f} h"
