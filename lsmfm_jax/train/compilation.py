"""Around compiling: processes that belong together, a cache of programs, options for CPUs, memory it leaves."""

import ctypes
import os
import pathlib
from collections.abc import Callable

import jax


class LaunchError(RuntimeError):
    """Variables of a multi-process launch that do not fit together; the message names them."""


def start_devices() -> Callable[[str], None]:
    """Joins the processes of a multi-process launch and turns the compilation cache on.

    A launch script sets `LSMFM_COORDINATOR` (host:port), `LSMFM_PROCESSES` and `LSMFM_PROCESS`; under SLURM or on
    a TPU pod `LSMFM_COORDINATOR=auto` lets JAX find them. Without it this is one process.

    Returns:
        A function that prints a line on process 0 and nothing elsewhere.

    Raises:
        LaunchError: `LSMFM_PROCESSES` or `LSMFM_PROCESS` is missing or wrong.
    """
    coordinator = os.environ.get("LSMFM_COORDINATOR", "")
    if coordinator == "auto":
        jax.distributed.initialize()
    elif coordinator:
        jax.distributed.initialize(coordinator, *_process_numbers())
    if not jax.config.jax_compilation_cache_dir:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(base / "lsmfm_jax" / "compiled"))
    main = jax.process_index() == 0

    def say(text: str) -> None:
        if main:
            print(text, flush=True)

    return say


# What XLA gives to YNNPACK by default and does better itself: its sums over channels take three times as long there.
# On the SwinUNETR's step this saves a third of the time and a tenth of the memory; it costs the UNet's a twentieth of
# the time and saves it a seventh of the memory (batch 1, 64³, 2 cores).
_WITHOUT_YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": ""}
# Ordered to run side by side, as is XLA's default, operations hold a quarter more and, as most use all cores by
# themselves, are no quicker.
_MEMORY_BEFORE_CONCURRENCY = {"xla_cpu_enable_concurrency_optimized_scheduler": False}


def compiler_options(mesh: jax.sharding.Mesh) -> dict[str, bool | str] | None:
    """Options for `jax.jit` of what runs on the mesh: those measured to help on a CPU, none elsewhere."""
    if mesh.devices.flat[0].platform != "cpu":
        return None
    # One device alone, where it was measured: with more, the default order of the collectives stays.
    return _WITHOUT_YNNPACK | (_MEMORY_BEFORE_CONCURRENCY if mesh.size == 1 else {})


def return_compiler_memory() -> bool:
    """Gives what compiling took from the heap back to the system; tells whether it could.

    The C library of Linux keeps such memory for later, and nothing later needs it: for a step of the SwinUNETR it
    is more than a gigabyte and a half.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    return trim is not None and bool(trim(0))


def _process_numbers() -> tuple[int, int]:
    """How many processes there are, and which this is."""
    values = {name: os.environ.get(name, "") for name in ("LSMFM_PROCESSES", "LSMFM_PROCESS")}
    count, index = (int(text) if text.isdigit() else -1 for text in values.values())
    if not 0 <= index < count:
        raise LaunchError(
            f"LSMFM_COORDINATOR is set, but LSMFM_PROCESSES is {values['LSMFM_PROCESSES']!r} and LSMFM_PROCESS is "
            f"{values['LSMFM_PROCESS']!r}: the number of processes is needed, and this one's, from 0 on; or unset "
            "LSMFM_COORDINATOR for one process"
        )
    return count, index
