"""What every benchmark writes beside its figures: device, versions, commit, and how busy the machine was."""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "monai", "grain", "tensorstore")


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser with the `--json` of every benchmark; `description` is the script's docstring."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=pathlib.Path, metavar="FILE", help="where to write the figures")
    return made


def versions() -> dict[str, str]:
    """Versions of what matters for speed, of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checkout's commit, with `+changes` where files differ from it; empty outside a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "lsmfm_jax", "benchmarks")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except FileNotFoundError:
        return ""


def cpu_name() -> str:
    """The processor's name."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def device_name() -> str:
    """The first JAX device: the graphics card's name, or the processor's."""
    import jax

    device = jax.devices()[0]
    return f"{cpu_name()}, {usable_cores()} cores" if device.platform == "cpu" else device.device_kind


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def answer(arguments: Sequence[str], *, of: str) -> Any:
    """The JSON in the last line that a script prints, run by itself so that its peak memory is its own.

    Raises:
        SystemExit: it failed; the message begins with `of`.
    """
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{of}: ended with {done.returncode}: {done.stdout[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def process_peak_bytes() -> int:
    """The largest resident set of this process so far, or since `forget_process_peak`."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_process_peak() -> bool:
    """Reset the peak memory of this process, which Linux allows; returns whether it could."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def facts(benchmark: str, *, device: str) -> dict[str, Any]:
    """The entries that every result has; the command line is in it, so that it can be run again."""
    return {
        "benchmark": benchmark,
        "command": " ".join(["benchmarks/" + pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": device,
        "cores": usable_cores(),
        "versions": versions(),
        "commit": commit(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def finish(result: dict[str, Any], path: pathlib.Path | None) -> None:
    """Print a result with the machine's load, and write it where a file was named."""
    # Above the number of cores, other programs were running and times are too long.
    text = as_text(result | {"load_average_at_end": round(os.getloadavg()[0], 2)})
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def as_text(result: dict[str, Any]) -> str:
    """JSON with a line for each key; a list of numbers or names stays on one line, and so does a row of a table."""
    # Line breaks stand between values only: inside of a string JSON writes them as \\n.
    text = json.dumps(result, indent=1)
    # An object that begins its line is a row: where it is the value of a key, the key comes first.
    for innermost in (r"(\[)\n\s*([^\[\]{}]*?)\n\s*(\])", r"(?m)^(\s*\{)\n\s*([^\[\]{}]*?)\n\s*(\})"):
        text = re.sub(innermost, lambda found: found[1] + re.sub(r"\n\s*", " ", found[2]) + found[3], text)
    return text
