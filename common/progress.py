"""How far long work is: a bar on a terminal, elsewhere (a log file, Slurm) a line a minute.

The one rate that it shows is examples/s, over all ranks, and an example is a question with its
answer, as one variant shows it:

    training      examples that took their last supervision step
    evaluation    variants of test inputs that were predicted, all steps of them
    building      examples that were drawn, read or written

What is not made of examples (files, runs of a study) is counted without a rate.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import ExitStack
from typing import Any, Self, TextIO, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

SECONDS_BETWEEN_LINES = 60.0
SECONDS_BETWEEN_UPDATES = 0.1
EXAMPLE = "example"
"""The unit of work that is counted in examples."""
BAR = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}s [{elapsed}<{remaining}{postfix}]"
)

Item = TypeVar("Item")
Clock = Callable[[], float]


class Progress:
    """Of one piece of work; a context, in which the log's lines stand above the bar.

    Args:
        what: is done, in a word.
        total: units of it; None: not known.
        unit: in the singular.
        start: units that were done before.
        is_shown: whether anything is; of several ranks one shows it.
        clock: seconds.
        stream: where it is shown; None: stderr.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        unit: str,
        start: int = 0,
        is_shown: bool = True,
        clock: Clock = time.monotonic,
        stream: TextIO | None = None,
    ) -> None:
        stream = stream or sys.stderr
        self.what, self.total, self.unit = what, total, unit
        self.position = self._start = start
        self._examples = 0
        self._facts = ""
        self._clock = clock
        self._started = self._line_at = clock()
        self._is_told = True
        self._lines = stream if is_shown and not stream.isatty() else None
        self._bar: tqdm[Any] | None = None
        self._redirected = ExitStack()
        if is_shown and stream.isatty():
            self._bar = tqdm(
                total=total, initial=start, desc=what, unit=unit, bar_format=BAR, file=stream
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._redirected.enter_context(logging_redirect_tqdm())
        return self

    def __exit__(self, *_: object) -> None:
        self._redirected.close()
        self.close()

    def advance(self, count: int = 1, examples: int | None = None) -> None:
        """Count units that are done, and how many examples they were."""
        rate = None
        if examples is not None:
            self._examples += examples
            rate = self._examples / max(self._clock() - self._started, 1e-9)
        self.reach(self.position + count, rate)

    def reach(self, position: int, rate: float | None, note: str = "") -> None:
        """Show a place in the work, examples/s if they are known, and what else there is to say."""
        facts = [] if rate is None else [f"{rate:.3g} examples/s"]
        self._facts = ", ".join([*facts, note] if note else facts)
        done, self.position = position - self.position, position
        self._is_told = False
        if self._bar is not None:
            self._bar.set_postfix_str(self._facts, refresh=False)
            self._bar.update(done)
        elif self._clock() - self._line_at >= SECONDS_BETWEEN_LINES:
            self._write_line()

    def close(self) -> None:
        """End the bar's line; or write the last one, if it took long enough for any."""
        if self._bar is not None:
            self._bar.close()
        elif not self._is_told and self._clock() - self._started >= SECONDS_BETWEEN_LINES:
            self._write_line()

    def _write_line(self) -> None:
        if self._lines is None:
            return
        self._line_at, self._is_told = self._clock(), True
        place = f"{self.position:,}"
        if self.total:
            place += f" of {self.total:,}"
        parts = [f"{self.what}: {place} {self.unit}s", self._facts, self._time_left()]
        self._lines.write(", ".join(filter(None, parts)) + "\n")
        self._lines.flush()

    def _time_left(self) -> str:
        """At the speed since the start, everything counted; nothing where it cannot be told."""
        done = self.position - self._start
        if not self.total or done <= 0 or self.position >= self.total:
            return ""
        seconds = (self._clock() - self._started) / done * (self.total - self.position)
        return f"{in_words(seconds)} left"


def follow(
    items: Iterable[Item],
    what: str,
    unit: str,
    total: int | None = None,
    examples: Callable[[Item], int] | None = None,
    is_shown: bool = True,
    clock: Clock = time.monotonic,
) -> Iterator[Item]:
    """The items, and how far they are: each counts as done when the next one is asked for.

    Args:
        items: pieces of work.
        what: see `Progress`.
        unit: that the work is counted in: an item, or EXAMPLE.
        total: units in all; None: as many as there are items, if that is known.
        examples: how many an item holds; None: it is not made of examples.
        is_shown: see `Progress`.
        clock: see there.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    progress = Progress(what, total, unit, is_shown=is_shown, clock=clock)
    count, held, shown_at = 0, 0, clock()

    def show() -> None:
        units = held if unit == EXAMPLE else count
        progress.advance(units, None if examples is None else held)

    try:
        for item in items:
            yield item
            count += 1
            held += 0 if examples is None else examples(item)
            if (now := clock()) - shown_at >= SECONDS_BETWEEN_UPDATES:  # There may be millions.
                show()
                count, held, shown_at = 0, 0, now
        if count:
            show()
    finally:  # Also when an error ends the work: a bar then ends its line of the terminal.
        progress.close()


def in_words(seconds: float) -> str:
    """A duration: seconds, or from two minutes on hours and minutes."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
