"""The README's two quick commands in a fresh clone of this checkout's last commit: seconds, environment included.

`make pretrain` makes the environment, so it needs the network; `make finetune` follows in the same clone.
"""

import csv
import pathlib
import subprocess
import tempfile
import time
from typing import Any

import outcome


def main() -> None:
    options = outcome.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome.finish(measure(pathlib.Path(folder) / "clone"), options.json)


def measure(clone: pathlib.Path) -> dict[str, Any]:
    """Both commands in a clone made at the given place, and the Dice that the second one ends with."""
    result = outcome.facts("quick_start", device=outcome.device_name())
    subprocess.run(["git", "clone", "--quiet", str(outcome.ROOT), str(clone)], check=True)
    for target in ("pretrain", "finetune"):
        start = time.perf_counter()
        subprocess.run(["make", target], cwd=clone, check=True, stdout=subprocess.DEVNULL)
        result[f"{target}_s"] = time.perf_counter() - start
    with (clone / "runs" / "finetune" / "predictions" / "summary.csv").open() as file:
        result["dice"] = next(float(row["mean"]) for row in csv.DictReader(file) if row["metric"] == "dice")
    return result


if __name__ == "__main__":
    main()
