"""What kind a task is."""

import numpy as np
import pytest

from dataset.tasks import Grid, Pair, Task
from evaluation.kinds import KINDS, colours, largest_side, size_change


def zeros(rows: int, cols: int) -> Grid:
    return np.zeros((rows, cols), dtype=np.uint8)


def task(*shapes: tuple[tuple[int, int], tuple[int, int]]) -> Task:
    pairs = tuple(Pair(zeros(*one), zeros(*two)) for one, two in shapes)
    return Task("a", pairs, (Pair(zeros(1, 1), None),))


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([((2, 3), (2, 3)), ((4, 4), (4, 4))], "as the input"),
        ([((2, 3), (1, 1))], "smaller"),
        ([((2, 3), (9, 9)), ((1, 1), (2, 1))], "larger"),
        ([((2, 3), (2, 3)), ((2, 3), (1, 1))], "varies"),
        ([((2, 3), (3, 2))], "varies"),
        ([], "varies"),
    ],
)
def test_the_demonstrations_say_how_the_size_changes(
    shapes: list[tuple[tuple[int, int], tuple[int, int]]], expected: str
) -> None:
    assert size_change(task(*shapes)) == expected


@pytest.mark.parametrize(
    ("side", "expected"),
    [(1, "up to 10"), (10, "up to 10"), (11, "11–15"), (20, "16–20"), (21, "21–30"), (30, "21–30")],
)
def test_the_longest_side_is_that_of_any_known_grid(side: int, expected: str) -> None:
    assert largest_side(task(((1, 1), (1, side)))) == expected
    assert largest_side(Task("a", (), (Pair(zeros(1, 1), zeros(side, 1)),))) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(1, "up to 3"), (3, "up to 3"), (4, "4–5"), (10, "8–10")]
)
def test_colours_are_those_of_the_demonstrations(count: int, expected: str) -> None:
    shown = Pair(zeros(1, 1), np.arange(count, dtype=np.uint8)[None])
    hidden = Pair(zeros(1, 1), np.arange(10, dtype=np.uint8)[None])
    assert colours(Task("a", (shown,), (hidden,))) == expected


def test_every_name_of_a_kind_is_one_that_is_shown() -> None:
    some = [task(((1, 1), (side, 2))) for side in range(1, 31)]
    for kind in KINDS.values():
        assert {kind.name_of(one) for one in some} <= set(kind.names)
