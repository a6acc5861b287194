"""Looks after runs: `lsmfm report`, `lsmfm verify`, `lsmfm bench`."""

import argparse
import pathlib

from lsmfm_jax.bench import BENCHMARKS, run_benchmark


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the commands of this file."""
    _add_report(commands)
    _add_verify(commands)
    _add_bench(commands)


def _add_report(commands: argparse._SubParsersAction) -> None:
    report = commands.add_parser("report", help="write the one-page report of a run again")
    report.add_argument("workdir", type=pathlib.Path)
    report.set_defaults(run=_report)


def _add_verify(commands: argparse._SubParsersAction) -> None:
    verify = commands.add_parser("verify", help="read all of a store or a run and name what is damaged")
    verify.add_argument("path", type=pathlib.Path)
    verify.set_defaults(run=_verify)


def _add_bench(commands: argparse._SubParsersAction) -> None:
    bench = commands.add_parser("bench", help="measure speed and memory (benchmarks/README.md)")
    bench.add_argument("name", choices=BENCHMARKS)
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="of the benchmark; --help lists them")
    bench.set_defaults(run=_bench)


def _report(options: argparse.Namespace) -> int:
    from lsmfm_jax.report import write_report

    print(write_report(options.workdir))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from lsmfm_jax.verify import printable, verify

    damages = verify(options.path)
    for line in damages:
        print(line)
    print(f"{printable(str(options.path))}: {f'{len(damages)} damaged' if damages else 'whole'}")
    return 1 if damages else 0


def _bench(options: argparse.Namespace) -> int:
    return run_benchmark(options.name, options.arguments)
