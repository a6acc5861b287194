"""How cost grows as work grows: throughput and memory against batch size, patch size and width.

    lsmfm bench sweep_batch --model unet --batches 1 2 4 8 16 32 --sizes 64 96 128 --widths 0.5 1 --out FOLDER

Writes sweep.csv and sweep.png into the folder. Each point runs in a process of its own, so that its peak memory is
its own and that one that does not fit ends nothing but itself.
"""

import csv
import itertools
import json
import pathlib
import subprocess
import sys
from typing import Any

import outcome
from recipes import add_arguments

COLUMNS = ("model", "size", "width", "batch", "patches_per_s", "least", "most", "peak_memory_bytes", "error")


def main() -> None:
    parser = outcome.parser(__doc__)
    add_arguments(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128], help="edges of the input, voxels")
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0], help="times the recipe's channels")
    parser.add_argument("--steps", type=int, default=3, help="measurements at each point (default 3)")
    parser.add_argument("--out", type=pathlib.Path, help="folder of sweep.csv and sweep.png")
    parser.add_argument("--point", type=float, help="run one point of this width here (used by the sweep itself)")
    options = parser.parse_args()
    if options.point is not None:
        outcome.finish(one_point(options), options.json)
        return
    points = [point(options, *values) for values in itertools.product(options.sizes, options.widths, options.batches)]
    rows = [row for row, _ in points]
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        write_csv(rows, options.out / "sweep.csv")
        plot(rows, options.out / "sweep.png")
    device = next((device for _, device in points if device), "")
    outcome.finish(outcome.facts("sweep_batch", device=device) | {"rows": rows}, options.json)


def one_point(options: Any) -> dict[str, Any]:
    """The step at one size, width and batch."""
    from step_dummy_data import measure
    from training_step import recipe_of

    config = recipe_of(options)
    return measure(widened(config, options.point), steps=options.steps)


def widened(config: Any, width: float) -> Any:
    """A configuration with its channels times a factor."""
    if config.model.name == "unet":
        config.model.unet.channels = tuple(round(width * channels) for channels in config.model.unet.channels)
    else:
        config.model.swin_unetr.feature_size = 12 * max(1, round(width * config.model.swin_unetr.feature_size / 12))
    return config


def point(options: Any, size: int, width: float, batch: int) -> tuple[dict[str, Any], str]:
    """A row of the table, and the device it was measured on."""
    flags = ["--model", options.model, "--size", size, "--batch", batch, "--steps", options.steps, "--point", width]
    flags += [flag for flag, wanted in (("--text", options.text), ("--tiny", options.tiny)) if wanted]
    flags += ["--dtype", options.dtype] if options.dtype else []
    command = [sys.executable, __file__, *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    row = {"model": options.model, "size": size, "width": width, "batch": batch}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed: out of memory?"])[-1]
        return row | {"error": last[:300]}, ""
    result = json.loads(done.stdout)
    rate = result["patches_per_s"]
    row |= {"patches_per_s": rate["median"], "least": rate["min"], "most": rate["max"]}
    return row | {"peak_memory_bytes": result["peak_memory_bytes"], "error": ""}, result["device"]


def write_csv(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """The table."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Throughput and memory against batch size, a line for each patch size and width."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (speed, memory) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for size, width in sorted({(row["size"], row["width"]) for row in rows}):
        line = [row for row in rows if (row["size"], row["width"]) == (size, width) and not row["error"]]
        batches = [row["batch"] for row in line]
        label = f"{size}³" if width == 1 else f"{size}³, {width:g} × channels"
        rates = [row["patches_per_s"] for row in line]
        below = [row["patches_per_s"] - row["least"] for row in line]
        above = [row["most"] - row["patches_per_s"] for row in line]
        speed.errorbar(batches, rates, yerr=(below, above), marker="o", capsize=3, label=label)
        memory.plot(batches, [row["peak_memory_bytes"] / 2**30 for row in line], marker="o", label=label)
    for axes, name in ((speed, "patches per second"), (memory, "peak memory, GiB")):
        axes.set(xlabel="batch size", ylabel=name, xscale="log", yscale="log")
        axes.set_xticks(sorted({row["batch"] for row in rows}))
        axes.set_xticks([], minor=True)
        for formatted in (
            axes.xaxis.set_major_formatter,
            axes.yaxis.set_major_formatter,
            axes.yaxis.set_minor_formatter,
        ):
            formatted("{x:g}")
        axes.grid(alpha=0.3)
    speed.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
