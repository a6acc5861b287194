"""`lsmfm experiment` as a function: prepare, run what is left, write tables and the page, say what failed."""

import collections
import pathlib
from collections.abc import Callable

from lsmfm_jax.experiment.cells import Place, run_cell
from lsmfm_jax.experiment.declaration import Experiment, ExperimentError
from lsmfm_jax.experiment.grid import Cell, expand, is_done, part_of
from lsmfm_jax.experiment.page import PAGE, write_results
from lsmfm_jax.experiment.prepare import RECORD, prepare
from lsmfm_jax.experiment.runner import Outcome, projected_hours, run_grid
from lsmfm_jax.experiment.tables import CSV, LATEX, MARKDOWN, claim_rows
from lsmfm_jax.locks import locked


def run_experiment(
    experiment: Experiment,
    workdir: pathlib.Path,
    *,
    jobs: int = 1,
    part: tuple[int, int] | None = None,
    run: Callable[[Place, Cell], None] = run_cell,
    print_line: Callable[[str], None] = print,
) -> int:
    """Runs an experiment, or goes on with it.

    Args:
        experiment: checked, with the folders that the command line names.
        workdir: new, empty, or of the same experiment.
        jobs: cells at a time.
        part: I and N: run the I-th of N parts of the cells, beside the others; tables and page are left to a call
            without it.
        run: what one cell does.
        print_line: prints a line.

    Returns:
        The exit code: 1 where cells failed.

    Raises:
        ExperimentError: see `prepare`.
        Locked: another process runs an experiment there.
    """
    if part is not None:
        return _run_part(experiment, workdir, part, jobs=jobs, run=run, print_line=print_line)
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
    return _tell_failures(outcome, cells, print_line)


def _run_part(
    experiment: Experiment,
    workdir: pathlib.Path,
    part: tuple[int, int],
    *,
    jobs: int,
    run: Callable[[Place, Cell], None],
    print_line: Callable[[str], None],
) -> int:
    """One part of the cells, in a workdir that was prepared before."""
    if not (workdir / RECORD).is_file():
        raise ExperimentError(f"--part: {workdir} is not prepared; run the command with --slurm N first")
    number, count = part
    with locked(workdir / "parts" / f"{number}_of_{count}", use="part of an experiment"):
        place = prepare(experiment, workdir, print_line=print_line)
        cells = part_of(expand(experiment), number, count)
        outcome = run_grid(place, cells, jobs=jobs, run=run, print_line=print_line)
    return _tell_failures(outcome, cells, print_line)


def array_script(experiment: Experiment, workdir: pathlib.Path, command: str, parts: int) -> str:
    """A SLURM array of N parts as text; the workdir is prepared, so that parts need not wait for each other.

    Args:
        experiment: see `run_experiment`.
        workdir: see `run_experiment`.
        command: the words of the command without `--slurm`.
        parts: array tasks.
    """
    with locked(workdir, use="experiment"):
        prepare(experiment, workdir, print_line=lambda line: None)
    return f"""#!/usr/bin/env bash
# {len(expand(experiment))} cells in {parts} parts. Submit it again to go on with what is left or failed; when all parts
# have ended, run the command without --part for tables and page.
# CHANGE: account, partition, time, and what a task gets.
#SBATCH --account=ACCOUNT
#SBATCH --partition=gpu
#SBATCH --time=24:00:00
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --array=1-{parts}
#SBATCH --job-name=lsmfm-experiment
#SBATCH --output=%x-%A_%a.out
set -euo pipefail
exec {command} --part "$SLURM_ARRAY_TASK_ID/{parts}"
"""


def _tell_failures(outcome: Outcome, cells: list[Cell], print_line: Callable[[str], None]) -> int:
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
