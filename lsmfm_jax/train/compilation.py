"""Before the first device is touched: processes that belong together, and a cache of compiled programs."""

import os
import pathlib
from collections.abc import Callable

import jax


def start_devices() -> Callable[[str], None]:
    """Joins the processes of a multi-process launch and turns the compilation cache on.

    A launch script sets `LSMFM_COORDINATOR` (host:port), `LSMFM_PROCESSES` and `LSMFM_PROCESS`; under SLURM or on
    a TPU pod `LSMFM_COORDINATOR=auto` lets JAX find them. Without it this is one process.

    Returns:
        A function that prints a line on process 0 and nothing elsewhere.
    """
    coordinator = os.environ.get("LSMFM_COORDINATOR", "")
    if coordinator == "auto":
        jax.distributed.initialize()
    elif coordinator:
        jax.distributed.initialize(
            coordinator, int(os.environ["LSMFM_PROCESSES"]), int(os.environ["LSMFM_PROCESS"])
        )
    if not jax.config.jax_compilation_cache_dir:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(base / "lsmfm_jax" / "compiled"))
    main = jax.process_index() == 0

    def say(text: str) -> None:
        if main:
            print(text, flush=True)

    return say
