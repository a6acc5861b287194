"""Around compiling: processes that belong together, a cache of programs, options for CPUs, memory it leaves."""

import ctypes
import functools
import importlib.metadata
import logging
import os
import pathlib
from collections.abc import Callable, Mapping

import jax
from jax.sharding import SingleDeviceSharding

from lsmfm_jax.errors import InputError, LsmfmError
from lsmfm_jax.train.platform_flags import Value, wanted_flags
from lsmfm_jax.train.signals import listen

log = logging.getLogger(__name__)


class LaunchError(LsmfmError, RuntimeError):
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
    # JAX's service for several processes takes SIGTERM for itself.
    listen()
    if not jax.config.jax_compilation_cache_dir:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(base / "lsmfm_jax" / "compiled"))
    main = jax.process_index() == 0

    def print_line(text: str) -> None:
        if main:
            print(text, flush=True)

    return print_line


def compiler_options(mesh: jax.sharding.Mesh, mode: str = "default") -> dict[str, Value] | None:
    """Options for `jax.jit` of what runs on the mesh: the flags of a mode, `train.xla`; see `platform_flags`.

    Raises:
        InputError: the mode is unknown, or something that it needs is set otherwise or not known to this compiler.
    """
    first = mesh.devices.flat[0]
    device = next((device for device in mesh.devices.flat if device.process_index == jax.process_index()), first)
    wanted = wanted_flags(device.platform, mode, devices=mesh.size)
    options = _known({name: flag.value for name, flag in wanted.items()}, device)
    missing = [name for name, flag in wanted.items() if flag.needed and name not in (options or {})]
    if missing:
        raise InputError(
            f"train.xla: {mode!r} needs {', '.join(missing)}, which jaxlib {importlib.metadata.version('jaxlib')} does "
            "not take; choose another mode (default, fast), or a jaxlib that takes it"
        )
    return options


# Drawing parameters runs once, and its program is long: the rounds of the random numbers, written out for each tensor.
# Optimised, the SwinUNETR's takes minutes to compile on a CPU; so it takes a fifth, and the last bit of some values
# is another.
_COMPILE_QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


def run_once_options(platform: str) -> dict[str, Value] | None:
    """Options for `jax.jit` of what runs a single time on `platform`: on a CPU compiled quickly, not to run quickly."""
    if platform != "cpu":
        return None
    return _known(_COMPILE_QUICKLY)


def _known(wanted: Mapping[str, Value], device: jax.Device | None = None) -> dict[str, Value] | None:
    """Those options that the compiler for a device takes (without one, JAX's own); None where it takes none."""
    return {name: value for name, value in wanted.items() if _is_known(name, value, device)} or None


@functools.cache
def _is_known(option: str, value: Value, device: jax.Device | None) -> bool:
    """Whether the compiler takes an option: their names change between releases, and an unknown one raises."""
    place = None if device is None else SingleDeviceSharding(device)
    number = jax.ShapeDtypeStruct((), "float32", sharding=place)
    try:
        jax.jit(lambda x: x, compiler_options={option: value}).lower(number).compile()
    except Exception as error:  # of jaxlib, whose class and text change as well
        log.warning(
            "this jaxlib does not take the compiler option %s, which saves time or memory: running without it (%s)",
            option,
            " ".join(str(error).split())[:120],
        )
        return False
    return True


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
