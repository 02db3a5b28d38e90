"""Charts of a page as vector graphics: where everything is, which the template only writes down.

A chart is described by what it shows (`Series`, `Axis`), and laid out in a box of WIDTH x HEIGHT
that the page scales. Its numbers also stand in a table below it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evaluation.uncertainty import Share

WIDTH, HEIGHT = 360, 194
LEFT, RIGHT, TOP, BOTTOM = 42, 342, 10, 150
"""Edges of the plot; the axes' numbers and names are outside."""
BOX = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "bottom": BOTTOM}
"""For the template."""
TOPS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares at which a vertical axis may end."""
NARROWEST = 30
"""Between the middles of two numbers on the horizontal axis."""


class Axis(NamedTuple):
    """The horizontal one."""

    label: str
    ticks: Sequence[float]
    is_logarithmic: bool = False
    is_share: bool = False


class Series(NamedTuple):
    """A line, or points with their intervals."""

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = ()
    """For each point; none where they are not known."""
    is_joined: bool = True


class Tick(NamedTuple):
    at: float
    text: str


class Drawn(NamedTuple):
    """A series as it is drawn."""

    name: str
    last: str
    """Its last value, for the legend."""
    path: str
    band: str
    dots: list[tuple[float, float]]
    whiskers: list[tuple[float, float, float]]
    """Place, lower and upper end."""


@dataclass(frozen=True)
class Table:
    """Numbers with the names of their columns."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """Everything that is drawn, and said beside it."""

    title: str
    caption: str
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    series: list[Drawn]
    table: Table
    diagonal: str = ""
    """Path of the line where both axes show the same."""

    @property
    def description(self) -> str:
        """In words, for those who do not see it."""
        ends = [f"{drawn.name} ends at {drawn.last}" for drawn in self.series if drawn.path]
        return f"{self.title}. {'; '.join(ends)}" if ends else f"{self.title}. See the numbers."


class Bar(NamedTuple):
    """A share with its interval, as a row of a list; all in percent of the row's width."""

    name: str
    text: str
    total: str
    at: float
    low: float
    width: float


@dataclass(frozen=True)
class Bars:
    """Shares beside each other, in groups."""

    title: str
    caption: str
    groups: dict[str, list[Bar]]


def percent(value: float) -> str:
    """A share for people: 63.6%."""
    return f"{100 * value:.1f}%"


def interval_text(share: Share) -> str:
    """The interval of a share for people, the sign only once."""
    return f"{100 * share.low:.1f}–{100 * share.high:.1f}%"


def draw_chart(
    title: str,
    caption: str,
    axis: Axis,
    series: Sequence[Series],
    table: Table,
    has_diagonal: bool = False,
) -> Chart:
    """Lay out series of shares against a horizontal axis.

    Args:
        title: of the chart.
        caption: what it shows, in a sentence or two.
        axis: the horizontal one.
        series: what is drawn; values are shares.
        table: the same as numbers.
        has_diagonal: whether the line is drawn where both axes, of shares, show the same.
    """
    assert not has_diagonal or axis.is_share, "axes of different things have no diagonal"
    xs = [x for s in series for x, _ in s.points]
    ends = [*xs, *axis.ticks]
    first, last = (0.0, 1.0) if axis.is_share else (min(ends), max(ends))
    highest = max(max(y for _, y in (*s.points, *s.intervals)) for s in series)
    top = 1.0 if has_diagonal else next(t for t in TOPS if t >= min(highest, 1.0) - 1e-9)

    def across(x: float) -> float:
        start, end, value = first, last, x
        if axis.is_logarithmic:
            start, end, value = math.log(first), math.log(last), math.log(x)
        share = (value - start) / (end - start) if end > start else 0.5
        return round(LEFT + share * (RIGHT - LEFT), 1)

    def up(y: float) -> float:
        return round(BOTTOM - y / top * (BOTTOM - TOP), 1)

    def draw(s: Series) -> Drawn:
        dots = [(across(x), up(y)) for x, y in s.points]
        lows = [(x, up(low)) for (x, _), (low, _) in zip(dots, s.intervals, strict=False)]
        highs = [(x, up(high)) for (x, _), (_, high) in zip(dots, s.intervals, strict=False)]
        joined = s.is_joined
        return Drawn(
            s.name,
            percent(s.points[-1][1]),
            _path(dots) if joined else "",
            _path([*highs, *reversed(lows)]) + "Z" if joined and lows else "",
            dots,
            [] if joined else [(x, lo, hi) for (x, lo), (_, hi) in zip(lows, highs, strict=True)],
        )

    return Chart(
        title,
        caption,
        axis.label,
        _apart([Tick(across(x), percent_or_number(x, axis.is_share)) for x in axis.ticks]),
        [Tick(up(top * part / 4), f"{100 * top * part / 4:g}%") for part in range(5)],
        [draw(s) for s in series],
        table,
        _path([(across(0), up(0)), (across(1), up(1))]) if has_diagonal else "",
    )


def percent_or_number(value: float, is_share: bool) -> str:
    """Of a tick."""
    return f"{100 * value:g}%" if is_share else f"{value:g}"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _apart(ticks: list[Tick]) -> list[Tick]:
    """Without those whose numbers would run into the next; the last one stays."""
    kept: list[Tick] = []
    for tick in reversed(ticks):
        if not kept or kept[-1].at - tick.at >= NARROWEST:
            kept.append(tick)
    return kept[::-1]


def draw_bars(title: str, caption: str, groups: dict[str, dict[str, Share]]) -> Bars:
    """Lay out shares with their intervals, by group and name."""
    return Bars(
        title,
        caption,
        {
            group: [
                Bar(
                    name,
                    percent(share.value),
                    f"{share.total:,}",
                    round(100 * share.value, 1),
                    round(100 * share.low, 1),
                    round(100 * (share.high - share.low), 1),
                )
                for name, share in shares.items()
            ]
            for group, shares in groups.items()
        },
    )
