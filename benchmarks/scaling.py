"""Throughput per device against the number of devices, and what the messages between them would cost.

    lsmfm bench scaling --model unet --batch 8                        # all devices of this machine
    lsmfm bench scaling --tiny --size 16 --batch 8 --forced-devices 8 # pretend devices: correctness only
    lsmfm bench scaling --from-compiled RESULT.json                   # from compile_only, for cards that are not here

Weak scaling: --batch patches on each device. Beside it one fixed global batch runs on every number of devices, and
its loss must not depend on it. Of pretend devices, which share one processor, times mean nothing and are left out.
`scaling.md` has the arithmetic behind the projection.
"""

import json
import math
import os
import pathlib
from typing import Any

import outcome
from recipes import add_arguments

# Bytes a second that one card can send, from the makers' data sheets: NVLink 4 of an H200, and one 400 Gbit/s
# InfiniBand port for each card; both as reached in practice, at four fifths.
NVLINK_BYTES_PER_S = 0.8 * 450e9
INFINIBAND_BYTES_PER_S = 0.8 * 50e9
CARDS_PER_MACHINE = 8
# To start a collective on the cards of one machine, and for a message from machine to machine.
LATENCY_S = 20e-6
HOP_S = 5e-6
# Until a step has been measured on a card: the share of its peak that the issue of speed asks for.
ASSUMED_PEAK = 790e12
ASSUMED_PEAK_FRAC = 0.3


def main() -> None:
    parser = outcome.parser(__doc__)
    add_arguments(parser, batch=8)
    parser.add_argument("--steps", type=int, default=5, help="measurements (default 5)")
    parser.add_argument("--forced-devices", type=int, help="pretend devices on the processor")
    parser.add_argument("--from-compiled", type=pathlib.Path, metavar="FILE", help="project from a compile_only JSON")
    parser.add_argument("--step", type=pathlib.Path, metavar="FILE", help="measured step, for the projection")
    options = parser.parse_args()
    if options.from_compiled:
        step = json.loads(options.step.read_text()) if options.step else None
        outcome.finish(project(json.loads(options.from_compiled.read_text()), step=step), options.json)
        return
    if options.forced_devices:
        # Before JAX starts.
        flag = f"--xla_force_host_platform_device_count={options.forced_devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    outcome.finish(measure(options), options.json)


def measure(options: Any) -> dict[str, Any]:
    """Throughput and loss on 1, 2, 4, ... devices."""
    import jax

    devices = jax.devices()
    counts = [2**power for power in range(len(devices).bit_length()) if 2**power <= len(devices)]
    rows = [row(options, devices[:count], global_batch=options.batch * counts[-1]) for count in counts]
    losses = [one["loss_of_fixed_batch"] for one in rows]
    result = outcome.facts("scaling", device=outcome.device_name())
    result |= {"model": options.model, "size": options.size, "batch_per_device": options.batch, "devices": rows}
    result["loss_difference"] = max(abs(loss - losses[0]) / abs(losses[0]) for loss in losses)
    if "patches_per_s_per_device" in rows[0]:
        first = rows[0]["patches_per_s_per_device"]["median"]
        result["efficiency"] = {one["count"]: one["patches_per_s_per_device"]["median"] / first for one in rows}
    return result


def row(options: Any, devices: list[Any], *, global_batch: int) -> dict[str, Any]:
    """One number of devices."""
    import itertools

    from recipes import dummy_batch
    from timing import patches_per_s, time_steps
    from training_step import build, on_mesh, recipe_of

    config = recipe_of(options)
    config.train.batch_size = global_batch
    built = build(config, devices=devices)
    _, metrics = built.step(built.state, on_mesh(built, dummy_batch(config)))
    result = {"count": len(devices), "loss_of_fixed_batch": float(metrics["loss"])}
    if options.forced_devices:
        return result
    config.train.batch_size = options.batch * len(devices)
    built = build(config, devices=devices)
    batch = itertools.repeat(on_mesh(built, dummy_batch(config)))
    _, seconds = time_steps(built.step, built.state, batch, measurements=options.steps, steps_each=5, warm_up=2)
    rate = patches_per_s(seconds, config.train.batch_size)
    result["patches_per_s_per_device"] = {name: value / len(devices) for name, value in rate.items() if name != "count"}
    return result


def project(compiled: dict[str, Any], *, step: dict[str, Any] | None = None) -> dict[str, Any]:
    """Efficiency on 8 and on 256 cards from the bytes that are sent, none of them hidden behind computing.

    Of a mesh with `depth`, the slices that neighbours exchange are counted as well; they stay inside a machine.

    Args:
        compiled: result of compile_only on several cards.
        step: result of a measured step of the same model, for the time to compute; None assumes a share of the peak.

    Raises:
        ValueError: the program was compiled for one card, so that it has no collectives.
    """
    if compiled["devices"] < 2:
        raise ValueError("compiled for one card: give a compile_only result with --devices 8")
    per_card = compiled["batch_size"] / compiled["devices"]
    if step is not None:
        compute_s = per_card / step["patches_per_s_per_device"]["median"]
    else:
        compute_s = per_card * compiled["operations_per_patch"]["step"] / (ASSUMED_PEAK * ASSUMED_PEAK_FRAC)
    collectives = compiled["collectives"]
    reduced = collectives.get("all-reduce", {"count": 0, "bytes": 0})
    halos = collectives.get("collective-permute", {"count": 0, "bytes": 0})
    others = {name: entry for name, entry in collectives.items() if name not in ("all-reduce", "collective-permute")}
    halo_s = halos["bytes"] / NVLINK_BYTES_PER_S + halos["count"] * LATENCY_S
    result = outcome.facts("scaling", device=compiled["device"])
    result |= {name: compiled[name] for name in ("model", "batch_size", "input_size", "mesh", "collectives")}
    result["compute_s"] = compute_s
    result["compute_from"] = (
        step["benchmark"] if step else f"{ASSUMED_PEAK_FRAC:.0%} of {ASSUMED_PEAK / 1e12:g} TFLOP/s"
    )
    result["other_collectives"] = others
    for cards in (8, 256):
        message_s = halo_s + all_reduce_seconds(reduced["bytes"], reduced["count"], cards=cards)
        result[f"on_{cards}_cards"] = {
            "message_s": message_s,
            "efficiency_nothing_hidden": compute_s / (compute_s + message_s),
        }
    return result


def all_reduce_seconds(size: int, count: int, *, cards: int) -> float:
    """Time of all-reduces of `size` bytes in all: within machines over NVLink, then between them over InfiniBand.

    On one machine a ring sends 2 (n - 1) / n of the bytes from each card. On several, each machine first reduces
    and scatters (n - 1) / n over NVLink, every card all-reduces its eighth with the same card of the other
    machines, and the machine gathers: the same over NVLink, and 2 (m - 1) / m of an eighth over each card's port.
    """
    inside = min(cards, CARDS_PER_MACHINE)
    machines = cards // inside
    seconds = 2 * (inside - 1) / inside * size / NVLINK_BYTES_PER_S + count * LATENCY_S
    if machines > 1:
        seconds += 2 * (machines - 1) / machines * size / inside / INFINIBAND_BYTES_PER_S
        # Small messages go up a tree of machines and down again.
        seconds += count * 2 * math.log2(machines) * HOP_S
    return seconds


if __name__ == "__main__":
    main()
