"""Memory that is free but still counted as used by the process."""

import ctypes


def give_back() -> None:
    """Gives freed memory back to the system, where the C library keeps it for later (glibc does, by threads).

    Between two stages of a long job, so that the second does not add its peak to what the first left behind.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
