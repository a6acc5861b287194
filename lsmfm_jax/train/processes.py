"""What the processes of one run exchange on the host; with one process, nothing is sent."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; every process gets the same answer. All must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(gathered(np.array(flag))))


def gathered(values: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """The arrays of all processes, one after another along a new first axis. All must call it."""
    if jax.process_count() == 1:
        return values[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values, tiled=False))


def wait_for_all(name: str) -> None:
    """Returns once every process is here; `name` is shown where one does not come."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def compiled_together(function: Callable[..., Any]) -> Callable[..., Any]:
    """A jitted function that no process starts to run before all have compiled it.

    Processes need not take equally long to compile: one may find the program in its cache. Those that run it first
    then wait for the others inside a collective, and on CPUs that fails after 30 seconds.

    Args:
        function: jitted; the shapes of its last argument may differ from call to call, those of the others may not.
    """
    if jax.process_count() == 1:
        return function
    programs: dict[Any, Callable[..., Any]] = {}

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments[-1])
        shapes = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if shapes not in programs:
            programs[shapes] = function.lower(*arguments).compile()
            wait_for_all("programs compiled")
        return programs[shapes](*arguments)

    return run
