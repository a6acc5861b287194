"""A generated brain from nothing to counted cells, by the commands that a user would type, with kills on the way.

A brain is generated; patches of it are cut; a tiny network learns from five of them; the whole brain is predicted in
parts, each of which is killed (SIGKILL) once and started again; the parts are merged; and the objects are compared
with the places where the generator put cells. What is written: seconds and peak memory of each step, how often a part
was killed, how much of the network's work was done twice, and precision, recall and the count beside the truth.
"""

import argparse
import csv
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import outcome

LSMFM = (sys.executable, "-c", "from lsmfm_jax.cli import main; raise SystemExit(main())")
TRAINING, VALIDATION = 5, 2


def main() -> None:
    parser = outcome.parser(__doc__)
    parser.add_argument("--shape", default="1024,2048,2048", help="Z,Y,X voxels of the brain")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--kill-after", type=float, nargs=2, default=(20.0, 90.0), help="seconds, drawn between these")
    parser.add_argument("--window", type=int, default=96, help="voxels a side that the network sees at a time")
    parser.add_argument("--max-ram", default="4G", help="of a process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=pathlib.Path, help="folder to keep (default: a temporary one)")
    parser.add_argument("overrides", nargs="*", help="for the finetuning, after --: --config.key=value")
    options = parser.parse_args()
    if options.work:
        outcome.finish(chain(options.work, options), options.json)
        return
    with tempfile.TemporaryDirectory() as folder:
        outcome.finish(chain(pathlib.Path(folder), options), options.json)


def chain(work: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
    """All steps in a folder, which must be empty or not there."""
    work.mkdir(parents=True, exist_ok=True)
    result = outcome.facts("brain_chain", device=f"{outcome.cpu_name()}, {outcome.usable_cores()} cores")
    result |= {"shape": options.shape, "parts": options.parts, "window": options.window, "max_ram": options.max_ram}
    result["kill_after"] = list(options.kill_after)
    result["overrides"] = options.overrides
    result["command"] = "benchmarks/brain_chain.py"  # where folders lay does not matter to a reader
    brain, store, patches, run, out = (
        work / name for name in ("brain.ome.zarr", "store", "patches", "run", "found.ome.zarr")
    )
    steps: dict[str, dict[str, float]] = {}

    def do(name: str, *arguments: object) -> None:
        steps[name] = lsmfm(arguments, log=work / f"{name}.log")
        print(f"{name}: {steps[name]}", file=sys.stderr, flush=True)

    do("generate", "data", "phantom-brain", "--out", brain, "--shape", options.shape, "--seed", options.seed)
    how = ("--count", TRAINING + VALIDATION, "--size", "64,64,64", "--min-foreground", 0.02, "--seed", options.seed)
    do("cut", "data", "cut", brain, "--out", store, *how)
    do("labels", "data", "pairs", store, "--out", patches, "--labels", brain / "labels" / "cells")
    names = sorted(path.name.removesuffix("_label.nii.gz") for path in patches.glob("*_label.nii.gz"))
    sides = {"train_names": tuple(names[:TRAINING]), "validation_names": tuple(names[TRAINING:])}
    chosen = [f"--config.data.{key}={value!r}" for key, value in sides.items()]
    chosen.append(f"--config.data.folder={patches}")
    do("finetune", "finetune", "--config", "segment_unet:tiny", "--workdir", run, *chosen, *options.overrides)
    predict = ("predict", "--checkpoint", run, brain, "--out", out, "--max-ram", options.max_ram)
    predict = (*predict, "--window", ",".join([str(options.window)] * 3))
    do("prepare", *predict, "--prepare")
    moments, kills = random.Random(options.seed), []
    for part in range(1, options.parts + 1):
        which = (*predict, "--part", f"{part}/{options.parts}")
        after = moments.uniform(*options.kill_after)
        killed = lsmfm(which, log=work / f"part{part}_killed.log", kill_after=after)
        kills.append({"part": part, "after_s": round(after, 1), "was_running": bool(killed["killed"])})
        do(f"part{part}", *which)
    do("merge", "predict", "--merge", out, "--max-ram", options.max_ram)
    truth, scores = work / "brain_cells.csv", work / "scores.csv"
    do("evaluate", "evaluate", "--pred", out, "--label", truth, "--out", scores, "--spacing-um", "1,1,1")
    summary = json.loads((out / "summary.json").read_text())
    with scores.open() as file:
        (row,) = (row for row in csv.DictReader(file) if (row["row"], row["method"]) == ("patch", "prediction"))
    found = {name: float(value) for name, value in row.items() if name.startswith("detection_")}
    with truth.open() as file:
        cells = sum(1 for _ in file) - 1
    result |= {"steps": steps, "kills": kills, "cells": cells, "objects": summary["objects"], "scores": found}
    result["blank_shards_frac"] = round(summary["blank_shards"] / summary["shards"], 3)
    return result | {"process_seconds": summary["process_seconds"]}


def lsmfm(arguments: Sequence[object], *, log: pathlib.Path, kill_after: float | None = None) -> dict[str, float]:
    """Runs a command to its end, or kills it after some seconds; seconds, and the peak memory of its process in GB."""
    began = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen([*LSMFM, *map(str, arguments)], stdout=file, stderr=subprocess.STDOUT)
        killer = threading.Timer(kill_after or 0, process.kill)
        if kill_after is not None:
            killer.start()
        _, status, usage = os.wait4(process.pid, 0)
        killer.cancel()
    process.returncode = code = os.waitstatus_to_exitcode(status)
    if code and not (kill_after is not None and code == -signal.SIGKILL):
        raise SystemExit(f"lsmfm {arguments[0]} ended with {code}; see {log}")
    seconds = round(time.perf_counter() - began, 1)
    return {"seconds": seconds, "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2), "killed": float(code != 0)}


if __name__ == "__main__":
    main()
