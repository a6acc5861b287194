"""Runs a declared grid of runs: `lsmfm experiment`."""

import argparse
import pathlib
import shlex

from lsmfm_jax.cli.arguments import at_least_one, part


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
    experiment.add_argument(
        "--tool", action="append", default=[], metavar="NAME=PYTHON", help="an outside tool, by its own Python"
    )
    experiment.add_argument("--jobs", type=at_least_one, default=1, help="cells at a time (default 1)")
    experiment.add_argument("--dry-run", action="store_true", help="count the cells, project the hours, write nothing")
    experiment.add_argument(
        "--slurm", type=at_least_one, metavar="N", help="print a SLURM array of N parts, run nothing"
    )
    experiment.add_argument("--part", type=part, metavar="I/N", help="run this part of the cells, as the array does")
    experiment.set_defaults(run=_experiment)


def _experiment(options: argparse.Namespace) -> int:
    from lsmfm_jax.experiment.command import array_script, describe, run_experiment
    from lsmfm_jax.experiment.load import load_experiment
    from lsmfm_jax.experiment.prepare import with_inputs

    experiment = load_experiment(options.experiment)
    if options.pretrained or options.tool or not options.dry_run:
        experiment = with_inputs(experiment, data=options.data, pretrained=options.pretrained, tools=options.tool)
    if options.dry_run:
        for line in describe(experiment, options.workdir, jobs=options.jobs):
            print(line)
        return 0
    if options.slurm is not None:
        print(array_script(experiment, options.workdir, _without_slurm(options), options.slurm), end="")
        return 0

    def print_line(line: str) -> None:
        print(line, flush=True)

    return run_experiment(experiment, options.workdir, jobs=options.jobs, part=options.part, print_line=print_line)


def _without_slurm(options: argparse.Namespace) -> str:
    """The command as a shell takes it; paths are absolute, as a job may start in another folder."""
    spec = options.experiment
    path, colon, variant = spec.partition(":")
    if pathlib.Path(path).is_file():
        spec = f"{pathlib.Path(path).resolve()}{colon}{variant}"
    words = ["lsmfm", "experiment", spec, "--workdir", options.workdir.resolve(), "--jobs", options.jobs]
    if options.data is not None:
        words += ["--data", options.data.resolve()]
    for option, pairs in (("--pretrained", options.pretrained), ("--tool", options.tool)):
        for name, _, path in (given.partition("=") for given in pairs):
            words += [option, f"{name}={pathlib.Path(path).absolute()}"]
    return shlex.join(map(str, words))
