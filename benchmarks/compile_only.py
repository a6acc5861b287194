"""The training step compiled for NVIDIA H200 cards or TPUs that are not there: memory, operations, collectives.

    make bench-compile-env
    .venv-compile/bin/python benchmarks/compile_only.py --json benchmarks/results/h200-compile-only/unet_8.json
    make bench-tpu-env
    .venv-tpu/bin/python benchmarks/compile_only.py --target tpu-v5e --json FILE

Temporary memory is what XLA plans for the step beside its state. On a card the workspace of cuDNN's convolutions comes
on top, and nothing is tuned, so layouts and kernels on a real card can differ. For a TPU the compiler plans all memory
and refuses a program that does not fit: that is a result, and so is a compilation that takes longer than `--limit`;
`outcome` says which. The plan is made in the first minute; `--plan-only` ends there.
"""

import argparse
import contextlib
import os
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import gpu_target  # First: both set what JAX reads when it starts.
import outcome
import tpu_target
from compiled_program import describe
from flops import count, training_operations_per_patch
from plain_tail import distillation_at_once, plain_tail
from recipes import add_arguments, recipe
from step_dummy_data import described
from training_step import batch_shapes, lowered_arguments, parts

from lsmfm_jax.train.sharding import make_mesh

# A window of three reaches one plane into the part of each neighbour.
NEIGHBOUR_PLANES = 2
H200 = "h200"


def main() -> None:
    parser = outcome.parser(__doc__)
    add_arguments(parser, batch=8)
    parser.add_argument("--target", choices=(H200, *tpu_target.CHIPS), default=H200, help="compiled for (default h200)")
    parser.add_argument("--devices", type=int, default=1, choices=(1, 2, 4, 8), help="cards or chips (default 1)")
    parser.add_argument("--depth", type=int, default=1, help="cards along the Z axis of volumes (default 1)")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="give the compiler up after so long")
    parser.add_argument("--plan-only", action="store_true", help="for a TPU: end when its memory is planned")
    parser.add_argument(
        "--program", type=pathlib.Path, metavar="FILE", help="where to write the compiled program's text"
    )
    parser.add_argument("--plain-tail", action="store_true", help="SwinUNETR with its dense features made")
    parser.add_argument("--distillation-at-once", action="store_true", help="over all voxels, not slab by slab")
    options = parser.parse_args()
    if options.plan_only and options.target == H200:
        parser.error("--plan-only is for TPUs: a card's compiler writes no such plan to a log")
    config = recipe(
        options.model,
        size=options.size,
        batch=options.batch,
        dtype=options.dtype or "bfloat16",
        text=options.text,
        tiny=options.tiny,
        xla=options.xla,
        kernels=options.kernels,
    )
    config.mesh.depth = options.depth
    forms = {"plain_tail": plain_tail, "distillation_at_once": distillation_at_once}
    with contextlib.ExitStack() as stack:
        for name, form in forms.items():
            if getattr(options, name):
                stack.enter_context(form())
        result = measure(config, options)
    result |= {name: getattr(options, name) for name in forms}
    outcome.finish(result, options.json)


def measure(config: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The step's figures on a number of devices; `config.train.batch_size` counts over all of them."""
    on_tpu = options.target != H200
    name = tpu_target.CHIPS[options.target].name if on_tpu else gpu_target.DEVICE
    devices = tpu_target.devices(options.target) if on_tpu else gpu_target.h200_devices(options.devices)
    mesh = make_mesh(**config.mesh, devices=devices[: options.devices])
    result = outcome.facts("compile_only", device=f"{options.devices} x {name}, compiled for, not run")
    result |= described(config) | {"devices": options.devices, "mesh": dict(mesh.shape)}
    result["operations_per_step"] = step_operations(config)
    result["operations_per_patch"] = training_operations_per_patch(config)
    compile_step = tpu_target.compile_for_tpu if on_tpu else gpu_target.compile_for_gpu
    start, processor = time.perf_counter(), time.process_time()
    compiled, failed = None, {"outcome": "compiled"}
    with watched(result, options):
        try:
            compiled = compile_step(*lowered_arguments(config, mesh))
        except tpu_target.OutOfMemory as error:
            failed = tpu_target.too_large(error, options.target)
    # On a busy machine the processor's seconds are stretched less.
    result |= failed | {
        "compile_s": time.perf_counter() - start,
        "compile_processor_s": time.process_time() - processor,
    }
    if compiled is None:
        return result
    if options.program is not None:
        options.program.write_text(compiled.as_text())
    result |= describe(compiled)
    # Where it is not, every card along the depth computes the whole volume. Planes of a neighbour may come on top.
    share = config.data.input_size[0] // mesh.shape["depth"]
    result["depth_is_split"] = result["deepest_convolution"] <= share + NEIGHBOUR_PLANES
    return result | (tpu_target.figures(compiled, options.target) if on_tpu else {})


@contextlib.contextmanager
def watched(result: dict[str, Any], options: argparse.Namespace) -> Iterator[None]:
    """Ends the process, with what is known by then, after `--limit` seconds or, with `--plan-only`, at the plan.

    The compiler cannot be interrupted otherwise.
    """
    done = threading.Event()

    def watch() -> None:
        start = time.perf_counter()
        while not done.wait(1):
            late = options.limit is not None and time.perf_counter() - start >= options.limit
            planned = tpu_target.planned_bytes()
            if late or (options.plan_only and planned):
                how = {"outcome": "timed_out", "limit_s": options.limit} if late else {"outcome": "planned"}
                outcome.finish(result | how | {"planned_bytes": planned}, options.json)
                tpu_target.LOGS.cleanup()
                os._exit(0)

    if options.limit is not None or options.plan_only:
        threading.Thread(target=watch, daemon=True).start()
    yield
    done.set()


def step_operations(config: Any) -> int:
    """Operations of a whole step over all devices, what is computed again included."""
    _, _, step, state = parts(config)
    return count(step, state, batch_shapes(config))


if __name__ == "__main__":
    main()
