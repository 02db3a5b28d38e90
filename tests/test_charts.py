"""Where things are on a chart, in a box of known edges."""

from itertools import pairwise

import pytest

from evaluation.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Axis,
    Chart,
    Series,
    Table,
    draw_bars,
    draw_chart,
    interval_text,
    percent,
)
from evaluation.uncertainty import Share

DECADES = Axis("x", (1, 10, 100), True)
SHARES = Axis("x", (0, 0.5, 1), is_share=True)


def chart(*series: Series, axis: Axis = DECADES, **options: bool) -> Chart:
    return draw_chart("title", "caption", axis, series, Table(("x",), []), **options)


def test_a_logarithmic_axis_gives_equal_ratios_equal_room() -> None:
    drawn = chart(Series("one", [(1, 0.0), (10, 0.2), (100, 0.4)]))
    middle = (LEFT + RIGHT) / 2
    assert drawn.series[0].dots == [(LEFT, BOTTOM), (middle, (TOP + BOTTOM) / 2), (RIGHT, TOP)]
    assert [(tick.at, tick.text) for tick in drawn.x_ticks] == [
        (LEFT, "1"), (middle, "10"), (RIGHT, "100")
    ]  # fmt: skip
    assert [tick.text for tick in drawn.y_ticks] == ["0%", "10%", "20%", "30%", "40%"]
    assert drawn.series[0].last == "40.0%"


def test_a_line_has_a_band_and_points_have_whiskers() -> None:
    points, intervals = [(1, 0.4), (100, 0.4)], [(0.2, 0.6), (0.2, 0.6)]
    line = chart(Series("one", points, intervals)).series[0]
    assert line.path.startswith("M") and line.band.endswith("Z") and line.whiskers == []
    dots = chart(Series("one", points, intervals, is_joined=False)).series[0]
    assert dots.path == dots.band == ""
    (x, low, high), _ = dots.whiskers
    assert (x, low - dots.dots[0][1]) == (LEFT, pytest.approx(dots.dots[0][1] - high, abs=0.11))


def test_the_vertical_axis_ends_above_the_highest_interval() -> None:
    def top(*series: Series) -> str:
        return chart(*series).y_ticks[-1].text

    assert top(Series("one", [(1, 0.03)])) == "5%"
    assert top(Series("one", [(1, 0.03)], [(0.01, 0.11)])) == "20%"
    assert top(Series("one", [(1, 1.0)]), Series("two", [(1, 0.1)])) == "100%"


def test_on_the_diagonal_both_shares_are_the_same() -> None:
    drawn = chart(Series("one", [(0.5, 0.5)]), axis=SHARES, has_diagonal=True)
    assert drawn.diagonal == f"M{LEFT} {BOTTOM}L{RIGHT} {TOP}"
    assert drawn.series[0].dots == [((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2)]
    assert [tick.text for tick in drawn.x_ticks] == ["0%", "50%", "100%"]


def test_numbers_on_an_axis_do_not_run_into_each_other() -> None:
    """The last one stays, and those that are left out are the ones before it."""
    counts = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
    drawn = chart(Series("one", [(n, 0.1) for n in counts]), axis=Axis("n", counts, True))
    places = [tick.at for tick in drawn.x_ticks]
    assert min(b - a for a, b in pairwise(places)) >= 30
    assert drawn.x_ticks[-1].text == "1000"


def test_a_single_point_stands_in_the_middle() -> None:
    drawn = chart(Series("one", [(5, 0.5)]), axis=Axis("n", (5,)))
    assert drawn.series[0].dots[0][0] == (LEFT + RIGHT) / 2


def test_shares_are_written_for_people() -> None:
    share = Share(0.6363, 0.5881, 0.6820, 400)
    assert percent(share.value) == "63.6%"
    assert interval_text(share) == "58.8–68.2%"
    (bar,) = draw_bars("t", "c", {"g": {"name": share}}).groups["g"]
    assert bar == ("name", "63.6%", "400", 63.6, 58.8, 9.4)
