"""How fast an H200 could be at best with the compiled step as it is: the least time of each kernel, and their sum.

    make bench-compile-env
    .venv-compile/bin/python benchmarks/roofline.py --model unet --batch 8 --json FILE
    python benchmarks/roofline.py --model unet --batch 8 --program FILE      # a program that compile_only wrote

A kernel can be no faster than its operations at the peak of the matrix units, nor than its bytes over the bandwidth of
the memory; the larger of both is its least time. `bound_patches_per_s` is what is left if every kernel reaches that.
Nothing here is a measurement. Two things can make a card quicker than the sum: arrays that stay in its cache from one
kernel to the next, and other kernels than those that were compiled for without tuning. All else makes it slower.
"""

import argparse
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import gpu_target  # First: it sets what JAX reads when it starts.
import outcome
from flops import count, training_operations_per_patch
from kernels import Kernel, kernels
from recipes import add_arguments
from step_dummy_data import described
from training_step import batch_shapes, lowered_arguments, parts, recipe_of

from lsmfm_jax.train.sharding import make_mesh

# What H200s were seen to reach: matrix products in bfloat16, and copies in their memory.
PEAK_OPERATIONS = 790e12
PEAK_BYTES = 4.3e12
TOP = 20


def main() -> None:
    parser = outcome.parser(__doc__)
    add_arguments(parser, batch=8)
    parser.add_argument("--tflops", type=float, default=PEAK_OPERATIONS / 1e12, help="peak, 10^12 operations/s")
    parser.add_argument("--terabytes", type=float, default=PEAK_BYTES / 1e12, help="bandwidth, 10^12 bytes/s")
    parser.add_argument("--program", type=pathlib.Path, metavar="FILE", help="text of a program compiled before")
    options = parser.parse_args()
    options.dtype = options.dtype or "bfloat16"
    result, found = measure(options)
    print(table(found, options.tflops * 1e12, options.terabytes * 1e12))
    outcome.finish(result, options.json)


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], list[Kernel]]:
    """The figures of a step on one card, and its kernels."""
    config = recipe_of(options)
    if options.program is None:
        mesh = make_mesh(devices=gpu_target.h200_devices(1))
        text = gpu_target.compile_for_gpu(*lowered_arguments(config, mesh)).as_text()
    else:
        text = options.program.read_text()
    found = kernels(text)
    _, _, step, state = parts(config)
    result = outcome.facts("roofline", device=f"1 x {gpu_target.DEVICE}, compiled for, not run") | described(config)
    result["operations_per_step"] = count(step, state, batch_shapes(config))
    result["operations_per_patch"] = training_operations_per_patch(config)
    return result | bounds(
        found, config.train.batch_size, operations_per_s=options.tflops * 1e12, bytes_per_s=options.terabytes * 1e12
    ), found


def bounds(found: Sequence[Kernel], batch: int, *, operations_per_s: float, bytes_per_s: float) -> dict[str, Any]:
    """Sums over all kernels, by kind, by part of the step, and the kernels with the longest least time.

    Args:
        found: kernels of one step.
        batch: patches in it.
        operations_per_s: peak of the matrix units.
        bytes_per_s: bandwidth of the memory.
    """

    def least(kernel: Kernel) -> float:
        return least_seconds(kernel, operations_per_s, bytes_per_s)

    def grouped(name: str, of: Callable[[Kernel], str]) -> list[dict[str, Any]]:
        groups: dict[str, list[Kernel]] = {}
        for kernel in found:
            groups.setdefault(of(kernel), []).append(kernel)
        rows = [
            {name: group, "kernels": sum(kernel.times for kernel in inside)} | _sums(inside, list(map(least, inside)))
            for group, inside in groups.items()
        ]
        return sorted(rows, key=lambda row: -row["least_ms"])

    seconds = list(map(least, found))
    longest = sorted(zip(seconds, found, strict=True), key=lambda pair: -pair[0])[:TOP]
    return {
        "operations_per_s": operations_per_s,
        "bytes_per_s": bytes_per_s,
        "kernels": sum(kernel.times for kernel in found),
        **_sums(found, seconds),
        "operations_ms": sum(kernel.times * kernel.operations for kernel in found) / operations_per_s * 1e3,
        "bytes_ms": sum(kernel.times * kernel.bytes for kernel in found) / bytes_per_s * 1e3,
        "bound_patches_per_s": batch / sum(seconds),
        "kinds": grouped("kind", lambda kernel: kernel.kind),
        "parts": grouped("part", lambda kernel: part(kernel.source)),
        "longest": [_row(kernel, seconds_each, operations_per_s, bytes_per_s) for seconds_each, kernel in longest],
    }


def part(source: str) -> str:
    """Which part of the step an operation belongs to, by the names of modules, which begin with a capital letter.

    Outside of modules, loops are those of the losses that work slab by slab.
    """
    module = re.search(r"\b[A-Z]\w+", source)
    if "distillation_kernels" in source:
        return "losses, in kernels"
    if module is None:
        return "losses, in loops" if "while/" in source else "rest"
    return f"{module[0]}, attention" if "/attention/" in source else module[0]


def least_seconds(kernel: Kernel, operations_per_s: float, bytes_per_s: float) -> float:
    """The least time of a kernel in a step, over all times that it runs."""
    return kernel.times * max(kernel.operations / operations_per_s, kernel.bytes / bytes_per_s)


def _sums(found: Sequence[Kernel], seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "operations": sum(kernel.times * kernel.operations for kernel in found),
        "bytes": sum(kernel.times * kernel.bytes for kernel in found),
        "least_ms": sum(seconds) * 1e3,
    }


def _row(kernel: Kernel, seconds: float, operations_per_s: float, bytes_per_s: float) -> dict[str, Any]:
    by_operations = kernel.operations / operations_per_s > kernel.bytes / bytes_per_s
    return {
        "least_ms": round(seconds * 1e3, 4),
        "limit": "operations" if by_operations else "bytes",
        "times": kernel.times,
        "gigaoperations": round(kernel.operations / 1e9, 2),
        "megabytes": round(kernel.bytes / 1e6, 2),
        "kind": kernel.kind,
        "name": kernel.name,
        "source": kernel.source,
    }


def table(found: Sequence[Kernel], operations_per_s: float, bytes_per_s: float) -> str:
    """The kernels with the longest least time, a line each."""
    rows = [(least_seconds(kernel, operations_per_s, bytes_per_s), kernel) for kernel in found]
    lines = [f"{'ms':>8} {'times':>5} {'GFLOP':>8} {'MB':>9}  kind         kernel, source"]
    for seconds, kernel in sorted(rows, key=lambda row: -row[0])[:TOP]:
        lines.append(
            f"{seconds * 1e3:8.3f} {kernel.times:5} {kernel.operations / 1e9:8.1f} {kernel.bytes / 1e6:9.1f}  "
            f"{kernel.kind:12} {kernel.name} {kernel.source[-60:]}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
