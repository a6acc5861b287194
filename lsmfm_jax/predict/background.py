"""Reading ahead and writing behind: one thread each, with little in between."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()
# How long a thread waits for room before it looks whether it is still wanted.
_LOOK_S = 0.2


def ahead(items: Iterable[Item], *, depth: int = 1) -> Iterator[Item]:
    """Gives the items of an iterable that a thread makes meanwhile, at most `depth` ahead.

    An exception of the thread is raised here, in its place. Where the caller stops early, so does the thread.
    """
    made: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                made.put(item, timeout=_LOOK_S)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, name="lsmfm-read", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
            # Not kept while the next is made.
            del item
    finally:
        stopped.set()
        thread.join()


class Behind:
    """Does things in one thread, in their order; use as a context manager.

    Leaving it waits for all that was given. An exception of the thread is raised at the next `do` or at the end,
    and what was given after it is not done.
    """

    def __init__(self, *, depth: int = 1) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="lsmfm-write", daemon=True)
        self._thread.start()

    def do(self, job: Callable[[], None]) -> None:
        """Gives a job, and waits where `depth` are already waiting."""
        self._raise()
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            if self._error is None:
                try:
                    job()
                except BaseException as error:
                    self._error = error
            # Its arrays are not needed while it waits for the next.
            del job

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> "Behind":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._jobs.put(None)
        self._thread.join()
        if kind is None:
            self._raise()
