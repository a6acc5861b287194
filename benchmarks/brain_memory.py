"""Peak memory and speed of `lsmfm predict` on whole brains of several sizes, a copy standing in for the network.

Each size is a generated brain, and is predicted and merged in a process of its own under `--max-ram`: with what is
empty left out, as is usual, and with nothing left out (`--no-skip`), which is the most work and the most objects. The
copy makes the brain's bright voxels foreground, so that masks, objects and pyramids are those of a real prediction.
Memory is the largest resident set of the process, Python and libraries included, for each stage by itself.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import outcome

SKIPPING = {"usual": (), "nothing_skipped": ("--no-skip",)}


def main() -> None:
    parser = outcome.parser(__doc__)
    parser.add_argument("--voxels", type=float, nargs="+", default=[1e8, 3e8, 1e9], help="of each brain, about")
    parser.add_argument("--largest-no-skip", type=float, default=1e9, help="larger ones are not run with --no-skip")
    parser.add_argument("--max-ram", default="2G", help="of a process, as of lsmfm predict (default 2G)")
    parser.add_argument("--window", type=int, default=96, help="voxels a side (default 96)")
    parser.add_argument("--work", type=pathlib.Path, help="folder for brains and results (default: a temporary one)")
    parser.add_argument("--one", nargs=3, metavar=("BRAIN", "RESULT", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        brain, out, case = options.one
        print(json.dumps(one(pathlib.Path(brain), pathlib.Path(out), case, options)))
        return
    result = outcome.facts("brain_memory", device=f"{outcome.cpu_name()}, {outcome.usable_cores()} cores")
    result |= {"max_ram": options.max_ram, "window": options.window, "network": "a copy of its input", "cases": []}
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        for voxels in options.voxels:
            result["cases"] += measure(pathlib.Path(folder), voxels, options)
    by_case = {case: [one for one in result["cases"] if one["case"] == case] for case in SKIPPING}
    result["largest_to_smallest"] = {case: memory_ratio(found) for case, found in by_case.items() if found}
    outcome.finish(result, options.json)


def measure(folder: pathlib.Path, voxels: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The figures of one size, with and without leaving out what is empty; brain and results are removed."""
    from lsmfm_jax.phantom.brain import write_brain

    side = round(voxels ** (1 / 3))
    brain, out, found = folder / "brain.ome.zarr", folder / "result.ome.zarr", []
    cells = write_brain(brain, shape=(side, side, side))
    for case in SKIPPING if voxels <= options.largest_no_skip else ["usual"]:
        arguments = [__file__, "--one", str(brain), str(out), case]
        arguments += ["--max-ram", options.max_ram, "--window", str(options.window)]
        measured = outcome.answer(arguments, of=f"{side}^3 voxels, {case}")
        found.append({"shape": [side] * 3, "voxels": side**3, "cells": cells, **measured})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        shutil.rmtree(out)
    shutil.rmtree(brain)
    return found


def one(brain: pathlib.Path, out: pathlib.Path, case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Predicts and merges a brain in this process."""
    from lsmfm_jax.cli import main as lsmfm
    from lsmfm_jax.predict import network
    from lsmfm_jax.predict.plan import parse_bytes
    from lsmfm_jax.predict.shards import read_record

    network.load_predictor = _copy  # the command imports it when it runs
    predict = ["predict", "--checkpoint", "a-copy", str(brain), "--out", str(out), "--max-ram", options.max_ram]
    predict += ["--window", ",".join([str(options.window)] * 3), *SKIPPING[case]]
    stages = {
        "measuring": [*predict, "--prepare"],
        "predicting": [*predict, "--part", "1/1"],
        "merging": ["predict", "--merge", str(out), "--max-ram", options.max_ram],
    }
    seconds, peaks = {}, {}
    for name, arguments in stages.items():
        outcome.forget_process_peak()
        began = time.perf_counter()
        if lsmfm(arguments):
            raise SystemExit(f"{name} failed")
        seconds[name], peaks[name] = round(time.perf_counter() - began, 2), outcome.process_peak_bytes()
    summary = json.loads((out / "summary.json").read_text())
    process = summary["process_seconds"]
    limit, voxels = parse_bytes(options.max_ram), float(summary["shape"][0]) ** 3
    return {
        "case": case,
        "peak_bytes": max(peaks.values()),
        "peak_bytes_of": peaks,
        "peak_frac_of_max_ram": round(max(peaks.values()) / limit, 3),
        "planned_bytes": read_record(out).plan.needed_bytes,
        "seconds": seconds,
        "mvoxel_per_s": {name: round(voxels / passed / 1e6, 2) for name, passed in seconds.items()},
        "predicting_share": {
            "reading": round(process["of it reading"] / process["predicting"], 3),
            "writing": round(process["writing"] / process["predicting"], 3),
        },
        "process_seconds": {name: round(value, 2) for name, value in process.items()},
        "blank_shards_frac": round(summary["blank_shards"] / summary["shards"], 3),
        "objects": summary["objects"],
        "result_bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    }


def memory_ratio(cases: list[dict[str, Any]]) -> dict[str, float]:
    """The memory that the last brain needs, in that of the first: in all, and by stage."""
    first, last = cases[0], cases[-1]
    ratios = {name: last["peak_bytes_of"][name] / first["peak_bytes_of"][name] for name in last["peak_bytes_of"]}
    return {"all": round(last["peak_bytes"] / first["peak_bytes"], 3)} | {n: round(r, 3) for n, r in ratios.items()}


def _copy(checkpoint: pathlib.Path, *, window: tuple[int, int, int], flips: bool, xla: str | None) -> Any:
    """A predictor whose map is what the network would see: bright voxels are foreground."""
    from lsmfm_jax.predict.network import Predictor
    from lsmfm_jax.scale import Scale

    apply: Callable[[Any], Any] = lambda windows: windows  # noqa: E731
    scale = Scale("local", sigma_voxels=12.0)
    return Predictor("segment", {}, "a copy", window, scale, apply, fingerprint="copy")


if __name__ == "__main__":
    main()
