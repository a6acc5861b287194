"""The pretraining step against the same objective in plain PyTorch with MONAI's networks, side by side.

    make bench-env
    .venv-bench/bin/python benchmarks/vs_torch.py --model unet --size 64 --batch 1 --steps 3 --json FILE

Both sides get the same random volumes and the same first weights, each in a process of its own; first their losses
are compared, then they take turns, one step each. Images alone unless --text. With --search each side also runs alone,
at the batches given or, with none given, at ever doubled ones until one does not fit; and in the setting of the
released code. The file is written after each of these runs, so that it holds what there is when time runs out.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import outcome
from recipes import add_arguments
from timing import patches_per_s, spread

SIDES = ("ours", "torch")
# The released runs: eight micro-batches of one patch on each card.
RELEASED = {"batch": 8, "accumulate": 8}


class Side:
    """A process that runs one side."""

    def __init__(self, name: str, plan: dict[str, Any]) -> None:
        script = pathlib.Path(__file__).with_name("vs_torch_side.py")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.name, self.process = name, subprocess.Popen([sys.executable, script, name, json.dumps(plan)], **pipes)

    def ask(self, command: str) -> Any:
        """The answer to a command.

        Raises:
            RuntimeError: the side failed; the message says how.
        """
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": "the process ended; out of memory?"}
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(f"{self.name}, {command}: {answer['error']}")
        return answer

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = outcome.parser(__doc__)
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each side (default 3)")
    parser.add_argument("--search", type=int, nargs="*", metavar="BATCH", help="each side alone at these batches")
    options = parser.parse_args()
    names = ("model", "size", "batch", "text", "dtype", "tiny")
    with tempfile.TemporaryDirectory() as folder:
        plan = {name: getattr(options, name) for name in names} | {"accumulate": 1, "folder": folder}
        result = side_by_side(plan, steps=options.steps)
        outcome.finish(result, options.json)
        if options.search is not None:
            for found in searched(plan, options.search, steps=options.steps):
                outcome.finish(result | found, options.json)


def side_by_side(plan: dict[str, Any], *, steps: int) -> dict[str, Any]:
    """Losses of both, then steps in turn."""
    with Side("ours", plan) as ours, Side("torch", plan) as theirs:
        losses = {"ours": ours.ask("first_losses"), "torch": theirs.ask("first_losses")}
        for side in (ours, theirs):
            side.ask("start")
            side.ask("step")
            side.ask("step")
        startup = {side.name: side.ask("peak_bytes") for side in (ours, theirs)}
        forgot = [side.ask("forget_peak") for side in (ours, theirs)]
        seconds = {name: [] for name in SIDES}
        used = {side.name: -side.ask("processor_s") for side in (ours, theirs)}
        for _ in range(steps):
            for side in (ours, theirs):
                seconds[side.name].append(side.ask("step"))
        for side in (ours, theirs):
            used[side.name] += side.ask("processor_s")
        device = ours.ask("device")
        peaks = {side.name: side.ask("peak_bytes") for side in (ours, theirs)}
        dtype = ours.ask("dtype")
    differences = relative_differences(losses["ours"], losses["torch"])
    rates = {name: patches_per_s(seconds[name], plan["batch"]) for name in SIDES}
    result = outcome.facts("vs_torch", device=device)
    result |= {name: plan[name] for name in ("model", "size", "batch", "text", "tiny")} | {"dtype": dtype}
    for name in SIDES:
        result[f"{name}_patches_per_s"] = rates[name]["median"]
        result[f"{name}_peak_bytes"] = peaks[name]
        result[f"{name}_startup_peak_bytes"] = startup[name]
        result[f"{name}_step_s"] = spread(seconds[name])
        # Over all cores; other programs on the machine change it less than they change the time.
        result[f"{name}_processor_s_per_step"] = used[name] / steps
    result["peak_bytes_are_of"] = "the timed steps" if all(forgot) else "start-up and steps"
    result["ratio"] = result["ours_patches_per_s"] / result["torch_patches_per_s"]
    result["memory_ratio"] = result["ours_peak_bytes"] / result["torch_peak_bytes"]
    result["losses"] = losses
    # Of losses in float32 with the same weights, volumes and masks; the gradient's norm apart.
    result["gradient_norm_difference"] = differences.pop("grad_norm", None)
    result["loss_difference"] = max(differences.values())
    return result


def relative_differences(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Relative difference of each figure that both have."""
    return {name: abs(one[name] - other[name]) / max(abs(other[name]), 1e-30) for name in one if name in other}


def alone(name: str, plan: dict[str, Any], *, steps: int) -> dict[str, Any]:
    """One side by itself; the reason where it fails, as it does where memory runs out."""
    try:
        with Side(name, plan) as side:
            side.ask("start")
            side.ask("step")
            side.ask("step")
            side.ask("forget_peak")
            seconds = [side.ask("step") for _ in range(steps)]
            peak = side.ask("peak_bytes")
    except RuntimeError as error:
        return {"batch": plan["batch"], "error": str(error)}
    rate = patches_per_s(seconds, plan["batch"])
    return {"batch": plan["batch"], "patches_per_s": rate, "peak_bytes": peak}


def searched(plan: dict[str, Any], batches: list[int], *, steps: int) -> Iterator[dict[str, Any]]:
    """What is found of each side alone: by batch, the best and the largest, and the released setting; run by run."""
    plan = plan | {"folder": "/nonexistent"}  # Each side draws its own weights.
    found: dict[str, Any] = {}
    # PyTorch first: it compiles nothing, so its part is soon done.
    for name in reversed(SIDES):
        found[f"{name}_released_setting"] = alone(name, plan | RELEASED, steps=steps)
        yield found
        rows = found[f"{name}_by_batch"] = []
        for batch in batches or (plan["batch"] * 2**power for power in range(12)):
            rows.append(alone(name, plan | {"batch": batch}, steps=steps))
            fitting = [row for row in rows if "error" not in row]
            found[f"{name}_largest_batch"] = max((row["batch"] for row in fitting), default=0)
            found[f"{name}_best"] = max(fitting, key=lambda row: row["patches_per_s"]["median"], default=None)
            if found.get("ours_best") and found.get("torch_best"):
                best = [found[f"{side}_best"]["patches_per_s"]["median"] for side in SIDES]
                found["ratio_at_best_batches"] = best[0] / best[1]
            yield found
            if "error" in rows[-1]:
                break


if __name__ == "__main__":
    main()
