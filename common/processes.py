"""Worker processes for the commands that build datasets."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any

from common.errors import UserError


def num_cpus() -> int:
    """CPUs that this process may use; macOS cannot tell, there it is all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def worker_processes(workers: int) -> Iterator[Executor]:
    """So many processes to work in: they end with the `with` block, or when this one is killed.

    With 0 the work is done in a thread of this one: starting a process takes seconds.

    They are spawned: a fork copies the locks that other threads (of a progress bar, of the executor
    itself) hold at that moment, and nobody is there to release them. So what the processes are to
    do must be importable, and a script must guard its entry point.

    Raises:
        UserError: a process was killed.
    """
    if workers == 0:
        with ThreadPoolExecutor(1) as thread:
            yield thread
        return
    executor = _Workers(
        max_workers=workers,
        mp_context=get_context("spawn"),
        initializer=_end_with_parent,
    )
    try:
        yield executor
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, most likely for want of memory: try fewer --workers"
        ) from error
    finally:
        # What has not begun is of no use after an error, and all is done without one.
        executor.shutdown(cancel_futures=True)


class _Workers(ProcessPoolExecutor):
    """Starts a process when work is handed in, and lets nothing come between its two halves."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """As the base class's."""
        with _signals_later():
            return super().submit(*args, **kwargs)


@contextmanager
def _signals_later() -> Iterator[None]:
    """Heed SIGTERM and Ctrl-C afterwards: a process half started would say so in a traceback."""
    if threading.current_thread() is not threading.main_thread():  # Signals are not for it.
        yield
        return
    received: list[int] = []
    later = (signal.SIGTERM, signal.SIGINT)
    before = {kind: signal.signal(kind, lambda n, _: received.append(n)) for kind in later}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    for number in received[:1]:
        signal.raise_signal(number)


def _end_with_parent() -> None:
    """Let this worker end when its parent is killed, and not before.

    Ctrl-C reaches all processes of a terminal: the parent alone decides what becomes of it.

    By itself it would wait for work forever: every worker has the writing end of the pipe that work
    comes through, too, so that none ever reads its end. A thread must watch, as the worker itself
    is in that wait, or at work.
    """

    def watch() -> None:
        parent = parent_process()
        assert parent is not None, "this is a worker"
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
