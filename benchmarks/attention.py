"""The SwinUNETR's window attention alone, with its gradients, compiled for an H200: bytes of XLA's kernels and of ours.

    make bench-compile-env
    .venv-compile/bin/python benchmarks/attention.py --json FILE

Each stage of the network is compiled once with `kernels` plain and once fused, forward and gradients in one program.
Bytes are as in `kernels`: of each kernel, operands once and results once. What the programs of our kernels ask for is
`requested_bytes`: they read the same keys again and again, mostly from the cache. Nothing here was run.
"""

import argparse
import re
from functools import partial
from typing import Any

import gpu_target  # First: it sets what JAX reads when it starts.
import jax
import numpy as np
import outcome
from jax.sharding import SingleDeviceSharding
from kernels import kernels
from recipes import recipe

from lsmfm_jax.models.attention_kernel import attend
from lsmfm_jax.models.window_attention import plan_windows, shift_regions


def main() -> None:
    parser = outcome.parser(__doc__)
    parser.add_argument("--size", type=int, default=64, help="edge of the network's input, voxels (default 64)")
    parser.add_argument("--batch", type=int, default=8, help="patches in a step (default 8)")
    options = parser.parse_args()
    device = SingleDeviceSharding(gpu_target.h200_devices(1)[0])
    result = outcome.facts("attention", device=f"1 x {gpu_target.DEVICE}, compiled for, not run")
    result |= {"size": options.size, "batch_size": options.batch, "dtype": "bfloat16", "stages": []}
    for stage in range(4):
        for shifted in (False, True):
            result["stages"].append(measure(stage, shifted=shifted, options=options, device=device))
    for name in ("plain", "fused"):
        result[name] = {key: sum(row[name][key] for row in result["stages"]) for key in ("bytes", "operations")}
    outcome.finish(result, options.json)


def measure(stage: int, *, shifted: bool, options: argparse.Namespace, device: Any) -> dict[str, Any]:
    """Figures of one block of a stage, with both kinds of kernels."""
    model = recipe("swin_unetr", size=options.size, batch=options.batch, dtype="bfloat16").model.swin_unetr
    plan = plan_windows((options.size // 2 ** (stage + 1),) * 3, model.window, shifted=shifted)
    heads, tokens = model.num_heads[stage], int(np.prod(plan.window))
    width = model.feature_size * 2**stage // heads
    windows = (int(np.prod(plan.counts)), options.batch, heads, tokens, width)
    found = {"stage": stage + 1, "shape": windows, "regions": shift_regions(plan) is not None}

    def step(*given: Any, kernels: str) -> Any:
        *operands, regions, gradient = given
        out, pulled = jax.vjp(lambda *operands: attend(*operands, regions, kernels), *operands)
        return out, pulled(gradient)

    given = partial(jax.ShapeDtypeStruct, sharding=device)
    query, bias = given(windows, "bfloat16"), given((heads, tokens, tokens), "float32")
    regions = given((windows[0], tokens), "int32") if found["regions"] else None
    for name in ("plain", "fused"):
        jitted = jax.jit(partial(step, kernels=name))
        compiled = gpu_target.compile_for_gpu(jitted, query, query, query, bias, regions, query)
        found[name] = figures(compiled)
    return found


def figures(compiled: Any) -> dict[str, Any]:
    """Of one program."""
    text = compiled.as_text()
    each = kernels(text)
    return {
        "kernels": sum(kernel.times for kernel in each),
        "bytes": sum(kernel.times * kernel.bytes for kernel in each),
        "operations": sum(kernel.times * kernel.operations for kernel in each),
        "requested_bytes": sum(int(number) for number in re.findall(r"requested_bytes\\22: \\22(\d+)", text)),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


if __name__ == "__main__":
    main()
