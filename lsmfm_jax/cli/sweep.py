"""Searches settings of a recipe: `lsmfm sweep`."""

import argparse
import pathlib

from lsmfm_jax.cli.arguments import at_least_one


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command of this file."""
    sweep = commands.add_parser("sweep", help="search settings of a recipe by many short runs; goes on after a stop")
    sweep.add_argument("sweep", metavar="FILE[:VARIANT]", help="loss_weights (also :tiny), or a file of your own")
    sweep.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of all that is made")
    sweep.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of all runs")
    sweep.add_argument("--trials", type=at_least_one, help="runs in all, those that are done included")
    sweep.add_argument("--jobs", type=at_least_one, default=1, help="runs at a time (default 1)")
    sweep.set_defaults(run=_sweep)


def _sweep(options: argparse.Namespace) -> int:
    from lsmfm_jax.sweep.command import run_sweep, with_arguments
    from lsmfm_jax.sweep.declaration import load_sweep

    sweep = with_arguments(load_sweep(options.sweep), trials=options.trials, arguments=options.set)

    def print_line(line: str) -> None:
        print(line, flush=True)

    return run_sweep(sweep, options.workdir, jobs=options.jobs, print_line=print_line)
