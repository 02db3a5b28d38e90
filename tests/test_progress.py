"""A bar on a terminal, a line a minute elsewhere; one rate, whatever is counted."""

import io
import logging
import re

import pytest

from common.errors import UserError
from common.progress import EXAMPLE, Progress, follow, in_words


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_without_a_terminal_there_is_a_line_a_minute_and_no_bar(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("training", 1200, "step", 600, clock=clock, stream=stream) as progress:
        for step in range(610, 910, 10):
            clock.seconds += 6
            progress.reach(step, 1234.5, f"loss {step / 1000:.3f}")
    # At 60, 120 and 180 s; the end, at 180 s, has been told.
    assert lines(stream) == [
        "training: 700 of 1,200 steps, 1.23e+03 examples/s, loss 0.700, 5 min left",
        "training: 800 of 1,200 steps, 1.23e+03 examples/s, loss 0.800, 4 min left",
        "training: 900 of 1,200 steps, 1.23e+03 examples/s, loss 0.900, 3 min left",
    ]


def test_what_takes_less_than_a_minute_is_not_told(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("training", 3, "step", clock=clock, stream=stream) as progress:
        clock.seconds += 59
        progress.reach(3, None)
    assert not stream.getvalue()


def test_the_end_is_told_if_it_took_longer_than_a_minute(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("reading", None, "file", clock=clock, stream=stream) as progress:
        clock.seconds += 70
        progress.advance()
        clock.seconds += 20
        progress.advance()
    assert lines(stream) == ["reading: 1 files", "reading: 2 files"], "no total: no time left"


def test_the_rate_counts_examples_since_the_start_whatever_the_unit(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress("drawing", 4, "task", clock=clock, stream=stream)
    for examples in (1000, 3000):
        clock.seconds += 40
        progress.advance(examples=examples)
    assert lines(stream) == ["drawing: 2 of 4 tasks, 50 examples/s, 80 s left"]


def test_on_a_terminal_there_is_a_bar_and_the_log_stands_above_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    handler = logging.StreamHandler(terminal)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with Progress("training", 10, "step", clock=clock) as progress:
        progress.reach(5, 20.0, "loss 0.500")
        assert logging.getLogger().handlers != [handler], "else a line would tear the bar"
        clock.seconds += 1000
        progress.reach(10, 20.0, "loss 0.400")
    assert logging.getLogger().handlers == [handler]
    shown = terminal.getvalue()
    assert re.search(r"training: 100%\|.*\| 10/10 steps \[.*, 20 examples/s, loss 0.400\]", shown)
    assert "left" not in shown, "that is what a line says"
    assert shown.endswith("\n")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_of_several_ranks_one_shows_it(clock: Clock, stream: io.StringIO) -> None:
    with Progress("x", 2, "step", is_shown=False, clock=clock, stream=stream) as progress:
        clock.seconds += 100
        progress.reach(2, 1.0)
    assert not stream.getvalue()


def test_items_are_followed_in_examples_as_they_are_done(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = ([0] * size for size in (30, 30, 40))
    for _ in follow(batches, "predicting", EXAMPLE, 100, len, clock=clock):
        clock.seconds += 50
    assert capsys.readouterr().err.splitlines() == [
        "predicting: 60 of 100 examples, 0.6 examples/s, 67 s left",
        "predicting: 100 of 100 examples, 0.667 examples/s",
    ]


def test_items_are_followed_one_by_one_without_a_rate(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in follow([1, 2, 3], "checksums", "file", clock=clock):
        clock.seconds += 45
    assert capsys.readouterr().err.splitlines() == [
        "checksums: 2 of 3 files, 45 s left",
        "checksums: 3 of 3 files",
    ]


def test_millions_of_items_are_shown_now_and_then(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times a second, however many there are, and at the end."""
    shown: list[int] = []
    real = Progress.reach

    def reach(self: Progress, position: int, rate: float | None, note: str = "") -> None:
        shown.append(position)
        real(self, position, rate, note)

    monkeypatch.setattr(Progress, "reach", reach)
    for _ in follow(range(1000), "reading", EXAMPLE, examples=lambda _: 1, clock=clock):
        clock.seconds += 1 / 1024
    assert shown == [*range(103, 1000, 103), 1000]


def test_an_error_ends_the_line_of_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)

    def work() -> None:
        for _ in follow([1, 2], "checking", "task"):
            raise UserError("damaged")

    with pytest.raises(UserError):
        work()
    assert terminal.getvalue().endswith("\n")


@pytest.mark.parametrize(
    ("seconds", "words"), [(1.4, "1 s"), (119.4, "119 s"), (120, "2 min"), (7260, "2 h 1 min")]
)
def test_durations_are_said_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
