"""SIGTERM, SIGINT and SIGUSR1 while training: what they ask for is done at the end of the batch.

    SIGTERM, SIGINT   write a checkpoint and end; a second one, a while after it, ends at once
    SIGUSR1           write a checkpoint and go on (Slurm's warning that time is short)

Every rank gets the signal, but not at the same batch, so they agree at the end of each.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import Any, Self

from common.distributed import Ranks

ECHO_SECONDS = 2.0
"""For so long a second signal is the first again: Slurm and torchrun both send it."""


class Request(IntEnum):
    """What signals ask for; the highest holds."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class Interrupted(BaseException):
    """Training is to end, where nothing is lost by ending at once; leaves the `with` block."""


class SignalRequests:
    """Handles the signals within a `with` block.

    Args:
        ranks: that have to agree.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._noted = Request.NOTHING
        self._stop_since = 0.0
        self._may_interrupt = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        meanings = {
            "SIGTERM": Request.STOP, "SIGINT": Request.STOP, "SIGUSR1": Request.SAVE,
        }  # fmt: skip
        for name, request in meanings.items():
            if hasattr(signal, name):  # Not every system has all of them.
                number = getattr(signal, name)
                self._handlers[number] = signal.signal(number, self._handler(request))
        return self

    def __exit__(self, kind: object, *_: object) -> bool:
        """An interruption ends here."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        return kind is Interrupted

    def agreed(self) -> Request:
        """What any rank was asked for since the last call; all ranks must call this."""
        noted = self._noted  # Another signal may come while the ranks agree, for the next time.
        request = Request(self._ranks.max(noted))
        if noted is self._noted is Request.SAVE:
            self._noted = Request.NOTHING
        return request

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block from which a request to stop raises Interrupted, as nothing is lost there."""
        self._may_interrupt = True
        try:
            self._interrupt_if_asked()
            yield
        except RuntimeError:
            # A rank that was told to stop has left while this one waited for it.
            self._interrupt_if_asked()
            raise
        finally:
            self._may_interrupt = False

    def _interrupt_if_asked(self) -> None:
        if self._noted is Request.STOP:
            raise Interrupted

    def _handler(self, request: Request) -> Any:
        def note(number: int, _: FrameType | None) -> None:
            if self._noted is not Request.STOP:
                self._noted = request
                self._stop_since = time.monotonic()
                if request is Request.STOP and self._ranks.is_main:
                    # Not by logging, of which this may interrupt a call.
                    name = signal.Signals(number).name
                    os.write(2, f"\n{name}: ending at the end of this batch\n".encode())
            elif request is Request.STOP and time.monotonic() - self._stop_since > ECHO_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            if self._may_interrupt:
                self._interrupt_if_asked()

        return note
