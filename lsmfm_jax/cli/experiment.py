"""Runs a declared grid of runs: `lsmfm experiment`."""

import argparse
import pathlib


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command of this file."""
    experiment = commands.add_parser(
        "experiment", help="a grid of runs on shared splits, with tables, intervals and verdicts; goes on after a stop"
    )
    experiment.add_argument(
        "experiment", metavar="FILE[:VARIANT]", help="table1, table2, few_shot (each also :tiny), or a file of your own"
    )
    experiment.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of all that is made")
    experiment.add_argument("--data", type=pathlib.Path, metavar="FOLDER", help="labelled patches, where none are made")
    experiment.add_argument(
        "--pretrained", action="append", default=[], metavar="NAME=RUN", help="a pretrained run that the file names"
    )
    experiment.add_argument("--jobs", type=_at_least_one, default=1, help="cells at a time (default 1)")
    experiment.add_argument("--dry-run", action="store_true", help="count the cells, project the hours, write nothing")
    experiment.set_defaults(run=_experiment)


def _experiment(options: argparse.Namespace) -> int:
    from lsmfm_jax.experiment.command import describe, run_experiment
    from lsmfm_jax.experiment.load import load_experiment
    from lsmfm_jax.experiment.prepare import with_inputs

    experiment = load_experiment(options.experiment)
    if options.dry_run:
        for line in describe(experiment, options.workdir, jobs=options.jobs):
            print(line)
        return 0
    experiment = with_inputs(experiment, data=options.data, pretrained=options.pretrained)

    def print_line(line: str) -> None:
        print(line, flush=True)

    return run_experiment(experiment, options.workdir, jobs=options.jobs, print_line=print_line)


def _at_least_one(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 1 to 1000 is needed")
    return int(text)
