"""The table of an experiment that has run, as JSON with the machine and the versions.

python benchmarks/experiment_figures.py --workdir WORKDIR --json FILE

The rows are those of `results.csv` in the workdir of `lsmfm experiment`; of the splits it names the patches to test on.
"""

import csv
import pathlib
from typing import Any

import outcome

from lsmfm_jax.experiment.prepare import RECORD
from lsmfm_jax.experiment.tables import CSV
from lsmfm_jax.files import read_json, read_sealed


def figures(workdir: pathlib.Path) -> dict[str, Any]:
    """Name, rows, splits and hours of an experiment."""
    with (workdir / CSV).open(newline="", encoding="utf-8") as file:
        rows = [{key: _value(text) for key, text in row.items() if text} for row in csv.DictReader(file)]
    tests = {
        str(path.relative_to(workdir / "splits").with_suffix("")): read_sealed(path)["test"]
        for path in sorted((workdir / "splits").rglob("*.json"))
    }
    seconds = [read_json(path)["seconds"] for path in (workdir / "cells").rglob("done.json")]
    experiment = read_sealed(workdir / RECORD)["experiment"]
    return {
        "experiment": experiment["name"],
        "seeds": experiment["seeds"],
        "cells": len(seconds),
        "hours_of_cells": round(sum(seconds) / 3600, 2),
        "tested_on": tests,
        "rows": rows,
    }


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def main() -> None:
    """Writes the file that the command line names."""
    parser = outcome.parser(__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of lsmfm experiment")
    options = parser.parse_args()
    if not (options.workdir / CSV).is_file():
        parser.error(f"--workdir {options.workdir}: no {CSV} there; name the workdir of a finished `lsmfm experiment`")
    facts = outcome.facts("experiment_figures", device=f"{outcome.cpu_name()}, {outcome.usable_cores()} cores")
    facts["command"] = "benchmarks/experiment_figures.py"  # where folders lay does not matter to a reader
    outcome.finish({**facts, **figures(options.workdir)}, options.json)


if __name__ == "__main__":
    main()
