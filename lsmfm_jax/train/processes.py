"""What the processes of one run tell each other on the host; with one process, nothing is sent."""

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
