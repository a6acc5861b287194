"""Reading ahead, in threads or in worker processes, which leave signals to the run and end with it."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

import grain

# What a terminal or a scheduler sends to all processes of a run.
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def prefetching(batches: grain.MapDataset, workers: int, prefetch: int) -> grain.IterDataset:
    """Read ahead in threads, or in worker processes.

    Args:
        batches: one for each index; with workers it must be picklable.
        workers: processes that read; 0 for threads of this one.
        prefetch: batches read ahead in all.
    """
    options = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
    if workers == 0:
        return batches.to_iter_dataset(options)
    # grain hands absl's flags to its workers, which fails where no absl program has parsed them.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    # Its start unblocks signals; the workers, which come later, are to inherit that they are blocked.
    resource_tracker.ensure_running()
    ahead = max(1, prefetch // workers)
    own = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
    return batches.to_iter_dataset(own).mp_prefetch(processes, worker_init_fn=_end_with_the_parent)


@contextlib.contextmanager
def signals_left_to_this_process() -> Iterator[None]:
    """Workers that are started here do not get the signals that ask for a stop: the run stops, and then ends them.

    Processes and threads inherit which signals are blocked in the thread that starts them; meanwhile another thread
    takes those that come.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_the_parent(worker: int, workers: int) -> None:
    """In a worker: ends it when the run is gone, however that came."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=wait, name="parent", daemon=True).start()
