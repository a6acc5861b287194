"""`lsmfm experiment` as a function: prepare, run what is left, write tables and the page, say what failed."""

import collections
import pathlib
from collections.abc import Callable

from lsmfm_jax.experiment.cells import Place, run_cell
from lsmfm_jax.experiment.declaration import Experiment
from lsmfm_jax.experiment.grid import Cell, expand, is_done
from lsmfm_jax.experiment.page import PAGE, write_results
from lsmfm_jax.experiment.prepare import prepare
from lsmfm_jax.experiment.runner import projected_hours, run_grid
from lsmfm_jax.experiment.tables import CSV, LATEX, MARKDOWN, claim_rows
from lsmfm_jax.files import locked


def run_experiment(
    experiment: Experiment,
    workdir: pathlib.Path,
    *,
    jobs: int = 1,
    run: Callable[[Place, Cell], None] = run_cell,
    print_line: Callable[[str], None] = print,
) -> int:
    """Runs an experiment, or goes on with it.

    Args:
        experiment: checked, with the folders that the command line names.
        workdir: new, empty, or of the same experiment.
        jobs: cells at a time.
        run: what one cell does.
        print_line: prints a line.

    Returns:
        The exit code: 1 where cells failed.

    Raises:
        ExperimentError: see `prepare`.
        Locked: another process runs an experiment there.
    """
    with locked(workdir, use="experiment"):
        place = prepare(experiment, workdir, print_line=print_line)
        cells = expand(experiment)
        print_line(f"{_count(place.workdir, cells)}; page: {place.workdir / PAGE}")
        write_results(place, cells, running=True)
        outcome = run_grid(
            place,
            cells,
            jobs=jobs,
            run=run,
            redraw=lambda: write_results(place, cells, running=True),
            print_line=print_line,
        )
        results = write_results(place, cells, running=False)
    for row in claim_rows(results)[1]:
        print_line(f"{row[0]}, {row[1]}, {row[2]} patches: {row[3]}: {row[8]} ({row[4]} {row[5]}, Holm's p {row[7]})")
    print_line(f"tables: {place.workdir / CSV}, {MARKDOWN}, {LATEX}; page: {place.workdir / PAGE}")
    if not outcome.failed:
        return 0
    print_line(
        f"{len(outcome.failed)} of {len(cells)} cells failed"
        + (f", {len(outcome.blocked)} that need them were not started" if outcome.blocked else "")
        + "; the same command tries them again:"
    )
    for line in outcome.failed.values():
        print_line(f"  {line}")
    return 1


def describe(experiment: Experiment, workdir: pathlib.Path, *, jobs: int) -> list[str]:
    """What would be run, in lines; nothing is written."""
    cells = expand(experiment)
    lines = [_count(workdir, cells)]
    counts = collections.Counter((cell.task, cell.arm or cell.group) for cell in cells)
    lines += [f"  {task:9} {arm:24} {count}" for (task, arm), count in counts.items()]
    hours = projected_hours(workdir, cells, jobs=jobs)
    lines.append(
        "hours: not known before a cell is done"
        if hours is None
        else f"about {hours:.2f} hours are left with --jobs {jobs}, by the cells that are done"
    )
    return lines


def _count(workdir: pathlib.Path, cells: list[Cell]) -> str:
    done = sum(is_done(workdir, cell) for cell in cells)
    return f"{len(cells)} cells, {done} done"
