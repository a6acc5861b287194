"""The training step compiled for one and for eight H200 cards, without a card: memory, operations, collectives.

    make bench-compile-env
    .venv-compile/bin/python benchmarks/compile_only.py --json benchmarks/results/h200-compile-only/unet_8.json

Temporary memory is what XLA plans for the step beside its state; the workspace of cuDNN's convolutions comes on top.
Nothing is tuned, so layouts and kernels on a real card can differ.
"""

import contextlib
import time
from typing import Any

import gpu_target  # First: it sets what JAX reads when it starts.
import outcome
from compiled_program import describe
from flops import count, training_operations_per_patch
from plain_tail import distillation_at_once, plain_tail
from recipes import add_arguments, recipe
from step_dummy_data import described
from training_step import batch_shapes, lowered_arguments, parts

from lsmfm_jax.train.sharding import make_mesh

# A window of three reaches one plane into the part of each neighbour.
NEIGHBOUR_PLANES = 2


def main() -> None:
    parser = outcome.parser(__doc__)
    add_arguments(parser, batch=8)
    parser.add_argument("--devices", type=int, default=1, choices=(1, 2, 4, 8), help="cards (default 1)")
    parser.add_argument("--depth", type=int, default=1, help="cards along the Z axis of volumes (default 1)")
    parser.add_argument("--plain-tail", action="store_true", help="SwinUNETR with its dense features made")
    parser.add_argument("--distillation-at-once", action="store_true", help="over all voxels, not slab by slab")
    options = parser.parse_args()
    config = recipe(
        options.model,
        size=options.size,
        batch=options.batch,
        dtype=options.dtype or "bfloat16",
        text=options.text,
        tiny=options.tiny,
    )
    config.mesh.depth = options.depth
    forms = {"plain_tail": plain_tail, "distillation_at_once": distillation_at_once}
    with contextlib.ExitStack() as stack:
        for name, form in forms.items():
            if getattr(options, name):
                stack.enter_context(form())
        result = measure(config, devices=options.devices)
    result |= {name: getattr(options, name) for name in forms}
    outcome.finish(result, options.json)


def measure(config: Any, *, devices: int) -> dict[str, Any]:
    """The step's figures on a number of cards; `config.train.batch_size` counts over all of them."""
    mesh = make_mesh(**config.mesh, devices=gpu_target.h200_devices(devices))
    start = time.perf_counter()
    compiled = gpu_target.compile_for_gpu(*lowered_arguments(config, mesh))
    seconds = time.perf_counter() - start
    result = outcome.facts("compile_only", device=f"{devices} x {gpu_target.DEVICE}, compiled for, not run")
    result |= described(config) | {"devices": devices, "mesh": dict(mesh.shape)}
    result |= describe(compiled)
    # Where it is not, every card along the depth computes the whole volume. Planes of a neighbour may come on top.
    share = config.data.input_size[0] // mesh.shape["depth"]
    result["depth_is_split"] = result["deepest_convolution"] <= share + NEIGHBOUR_PLANES
    result["operations_per_step"] = step_operations(config)
    result["operations_per_patch"] = training_operations_per_patch(config)
    result["compile_s"] = seconds
    return result


def step_operations(config: Any) -> int:
    """Operations of a whole step over all devices, what is computed again included."""
    _, _, step, state = parts(config)
    return count(step, state, batch_shapes(config))


if __name__ == "__main__":
    main()
