"""The clock of a training process: how long a run has trained, and when the process has to stop.

Where something is decided by time, all ranks must decide alike, though each has a clock of its own:
then the main rank's readings hold for all. They go from host to host, without a wait for a device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from common.distributed import Ranks


class Clock:
    """Starts when it is made.

    Args:
        ranks: of this run.
        is_shared: whether the main rank tells its readings to the others; every rank must then call
            each method when the others do.
    """

    def __init__(self, ranks: Ranks, is_shared: bool) -> None:
        self._ranks = ranks
        self._is_shared = is_shared
        self._started = self._lap_ended = self._read()
        self._lap_started: float | None = None

    def lap(self) -> float:
        """End a lap and start the next: its seconds without pauses, 0 of what was before any."""
        self._lap_ended = self._read()
        started, self._lap_started = self._lap_started, self._lap_ended
        return 0.0 if started is None else self._lap_ended - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what is done inside out of the lap."""
        assert self._lap_started is not None, "pauses are parts of a lap"
        started = self._read()
        yield
        self._lap_started += self._read() - started

    def is_past(self, minutes: float | None) -> bool:
        """Whether the last lap ended so long after the start, or later; with None never."""
        return minutes is not None and self._lap_ended - self._started >= 60 * minutes

    def _read(self) -> float:
        return self._ranks.from_main(perf_counter) if self._is_shared else perf_counter()
