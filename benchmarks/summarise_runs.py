"""Figures of finished runs, for the results in README.md: what was run, and what its validation showed.

python benchmarks/summarise_runs.py runs/a runs/b --json benchmarks/results/DEVICE/runs.json
"""

import json
import pathlib
from typing import Any

import outcome


def summary_of(folder: pathlib.Path) -> dict[str, Any]:
    """What one run folder says of itself: recipe facts, and its first, lowest and last validation."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validation = [line for line in lines if line["kind"] == "validation"]
    train = [line for line in lines if line["kind"] == "train"]
    config = json.loads((folder / "config.json").read_text())
    record = json.loads((folder / "run.json").read_text())
    return {
        "run": folder.name,
        "task": config["task"],
        "architecture": record["architecture"],
        "text": config.get("text", {}).get("enabled"),
        "patches": record.get("patches"),
        "batch_size": config["train"]["batch_size"],
        "epochs": config["train"]["epochs"],
        "steps": train[-1]["step"],
        "seed": config["seed"],
        "validation_first": validation[0],
        "validation_lowest_loss": min(validation, key=lambda line: line["loss"]),
        "validation_last": validation[-1],
    }


def main() -> None:
    """Summarises the run folders named on the command line."""
    parser = outcome.parser(__doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    facts = outcome.facts("summarise_runs", device=f"{outcome.cpu_name()}, {outcome.usable_cores()} cores")
    # Names of run folders are enough for a reader; their paths on this machine are not needed.
    facts["command"] = "benchmarks/summarise_runs.py " + " ".join(run.name for run in options.runs)
    outcome.finish({**facts, "runs": [summary_of(run) for run in options.runs]}, options.json)


if __name__ == "__main__":
    main()
