"""Starts a benchmark: they are scripts in `benchmarks/` of the source, not part of the installed package."""

import pathlib
import subprocess
import sys
from collections.abc import Sequence

from lsmfm_jax.errors import LsmfmError

# Scripts a user starts; the other files of that folder are their parts.
BENCHMARKS = (
    "step_dummy_data",
    "step_real_data",
    "loader_only",
    "vs_torch",
    "compile_only",
    "sweep_batch",
    "project_paper_run",
    "tail",
    "scaling",
    "quick_start",
    "brain_memory",
    "brain_chain",
)
FOLDER = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"


class BenchmarksMissing(LsmfmError, FileNotFoundError):
    """The package was installed without its checkout."""


def run_benchmark(name: str, arguments: Sequence[str], *, folder: pathlib.Path = FOLDER) -> int:
    """Runs one benchmark in a process of its own, with this Python; returns its exit code.

    Args:
        name: one of `BENCHMARKS`.
        arguments: handed on to it; `--help` lists what it takes.
        folder: where the scripts are.

    Raises:
        BenchmarksMissing: there is no such folder beside the package.
    """
    script = folder / f"{name}.py"
    if not script.is_file():
        raise BenchmarksMissing(
            f"{script} is missing: benchmarks are part of the source, not of the installed package; clone the "
            "repository, install it with `pip install --editable .`, and run this there"
        )
    return subprocess.run([sys.executable, str(script), *arguments], check=False).returncode
