"""Compiling for TPUs that are not there: libtpu's own compiler, given the description of a machine with chips."""

import os
import pathlib
import re
import tempfile
from typing import Any, NamedTuple

# Before JAX starts. The machine's own device is its processor; there is no cloud to ask which chips it has, and no chip
# that two processes could fight over: libtpu's lock, which a killed process leaves behind, would stop the next one.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import executed
import jax
import tiles
from jax.experimental import topologies

# libtpu is loaded later than this.
LOGS = tempfile.TemporaryDirectory(prefix="libtpu_")
os.environ["TPU_LOG_DIR"] = LOGS.name

GIB = 2**30
MESSAGE_LINES = 40
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"


class Chip(NamedTuple):
    """A kind of TPU.

    Attributes:
        name: what Google calls it.
        topology: a machine with eight chips of it, as libtpu names them.
        memory_bytes: high-bandwidth memory of one chip, as Google rounds it.
        available_bytes: what libtpu 0.0.42 leaves a program of it, as its messages have it.
        clock_hz: cycles in a second.
    """

    name: str
    topology: str
    memory_bytes: int
    available_bytes: float
    clock_hz: float


# Clocks follow from the peak that Google gives and the size and number of the matrix units.
CHIPS = {
    "tpu-v5e": Chip("TPU v5e", "v5e:2x4", 16 * GIB, 15.75 * GIB, 1.5e9),
    "tpu-v5p": Chip("TPU v5p", "v5p:2x2x2", 95 * GIB, 95.74 * GIB, 1.75e9),
    "tpu-v6e": Chip("TPU v6e", "v6e:2x4", 32 * GIB, 31.25 * GIB, 1.75e9),
}


class CompilerMissing(RuntimeError):
    """libtpu is not installed here."""


class OutOfMemory(RuntimeError):
    """The compiled program does not fit into a chip's memory.

    Attributes:
        needed_bytes: what it would take, as the compiler's message has it; None where it names no figure.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes(message)


def devices(target: str) -> list[Any]:
    """Descriptions of eight chips of one of `CHIPS`.

    Raises:
        CompilerMissing: there is no libtpu; the message says how to get it.
    """
    return slice_devices(CHIPS[target].topology)


def slice_devices(topology: str) -> list[Any]:
    """Descriptions of the chips of a slice, which libtpu names by kind and extent, such as `v5e:8x8`.

    Raises:
        CompilerMissing: there is no libtpu; the message says how to get it.
    """
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        raise CompilerMissing(
            f"no compiler for TPUs here ({error}): `make bench-tpu-env` makes an environment with libtpu, no TPU "
            "needed; then run this with .venv-tpu/bin/python"
        ) from error
    return list(described.devices)


def compile_for_tpu(jitted: Any, *arguments: Any) -> Any:
    """A program compiled for the devices in its arguments' shardings.

    Raises:
        OutOfMemory: the compiler found no way to fit it into the chip.
    """
    lowered = jitted.trace(*arguments).lower(lowering_platforms=("tpu",))
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(str(error)) from error


def figures(compiled: Any, target: str) -> dict[str, Any]:
    """What the compiler says of a program for one chip: memory against the chip's, and its own estimates.

    `compiler_seconds` are the cycles that its model of the chip gives the instructions, over the chip's clock: a lower
    bound of one step's time, see `executed.cycles`. (Its `optimal_seconds` is no time: it takes 1 off for each
    instruction that it cannot judge.) `compiler_operations` and `bytes_accessed` count the body of a loop once.
    """
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    needed += memory.generated_code_size_in_bytes - memory.alias_size_in_bytes
    chip, text = CHIPS[target], compiled.as_text()
    return {
        "chip_bytes": chip.memory_bytes,
        "available_bytes": round(chip.available_bytes),
        "needed_bytes": needed,
        "fits": needed <= chip.available_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "compiler_operations": costs.get("flops"),
        "bytes_accessed": costs.get("bytes accessed"),
        "compiler_seconds": executed.cycles(text) / chip.clock_hz,
        "compiler_optimal_seconds": costs.get("optimal_seconds"),
        "padding": tiles.waste(text),
        # A weight gradient is a convolution as wide as the volume here, and this is its quick form.
        "wide_convolutions": None,
    }


def too_large(error: OutOfMemory, target: str) -> dict[str, Any]:
    """What is known of a program that the compiler refused; its message names the largest arrays."""
    return {
        "outcome": "out_of_memory",
        "chip_bytes": CHIPS[target].memory_bytes,
        "available_bytes": round(CHIPS[target].available_bytes),
        "needed_bytes": error.needed_bytes,
        "fits": False,
        "message": str(error).splitlines()[:MESSAGE_LINES],
    }


def planned_bytes(log: str | None = None) -> int | None:
    """Temporary memory that the compiler has planned, from its log; None before it has.

    It knows that in seconds, and makes code for minutes. Of the programs that were compiled to the end the final
    temporary memory was up to a fifth larger.
    """
    if log is None:
        log = "\n".join(path.read_text(errors="replace") for path in pathlib.Path(LOGS.name).glob("*.INFO.*"))
    found = re.findall(r"Primary algorithm finished with size: (\d+)", log)
    return int(found[-1]) if found else None


def needed_bytes(message: str) -> int | None:
    """What a program needs, of a message of either form that libtpu has; of the first form temporary memory alone.

    `total memory required for HLO temporaries (24.00G) exceeds available HBM (15.75G)`, `Used 18.20G of 15.75G hbm`.
    """
    found = re.search(rf"required for [^(]*\({_SIZE}\) exceeds|Used {_SIZE} of {_SIZE} hbm", message)
    if found is None:
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return round(float(number) * _UNITS[unit])
