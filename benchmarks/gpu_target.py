"""Compiling for H200 cards that are not there: the real XLA compiler for graphics cards, given a card's description."""

import os
from typing import Any

# Before JAX starts. The machine's own device is its processor; tuning would need the card.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"

from jax.experimental import topologies

DEVICE = "NVIDIA H200"
MEMORY_BYTES = 150_754_820_096
TARGET = f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: {MEMORY_BYTES} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 minor: 0 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{DEVICE}"
"""


class CompilerMissing(RuntimeError):
    """JAX's CUDA plug-in is not installed here."""


def h200_devices(count: int) -> list[Any]:
    """Descriptions of up to eight H200 cards of one machine.

    Raises:
        CompilerMissing: there is no CUDA plug-in; the message says how to get one.
    """
    try:
        # One process with eight cards, as on one machine.
        topology = topologies.get_topology_desc(platform="cuda", target_config=TARGET, topology="1x1x8")
    except Exception as error:
        raise CompilerMissing(
            f"no compiler for NVIDIA cards here ({error}): `make bench-compile-env` makes an environment with JAX's "
            "CUDA plug-in, no card needed; then run this with .venv-compile/bin/python"
        ) from error
    return list(topology.devices[:count])


def compile_for_gpu(jitted: Any, *arguments: Any) -> Any:
    """A program compiled for the devices in its arguments' shardings."""
    return jitted.trace(*arguments).lower(lowering_platforms=("cuda",)).compile()
