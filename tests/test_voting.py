"""Votes: augmentations are undone exactly, and the count depends on nothing but the votes."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.augmentation import augment, invert
from dataset.canvas import EOS, PAD, place, read_back
from dataset.tasks import Grid
from evaluation.predictions import Predictions, concatenate
from evaluation.voting import (
    OUTSIDE,
    Ranking,
    TestInput,
    count_votes,
    grid_mask,
    invert_canvases,
    rank_answers,
)

SIDE = 6
IDENTITY = tuple(range(10))
NO_GRID = np.full((0, 0), 0, dtype=np.uint8)


class Row(NamedTuple):
    """One prediction, by the answer that it stands for in the task's own orientation."""

    answer: Any
    confidence: float = 0.5
    task_id: str = "task"
    test_index: int = 0
    dihedral: int = 0
    permutation: tuple[int, ...] = IDENTITY


def canvas_of(row: Row) -> npt.NDArray[np.uint8]:
    grid = np.array(row.answer, dtype=np.uint8)
    if grid.size == 0:
        return np.full(SIDE * SIDE, PAD, dtype=np.uint8)
    shown = augment(grid, row.dihedral, np.array(row.permutation, dtype=np.uint8))
    return place(shown[None], SIDE)[0]


def predictions(rows: list[Row]) -> Predictions:
    count = len(rows)
    return Predictions(
        task_id=np.array([row.task_id for row in rows], dtype=np.str_),
        test_index=np.array([row.test_index for row in rows], dtype=np.int32),
        identifier=np.arange(count, dtype=np.int32),
        dihedral=np.array([row.dihedral for row in rows], dtype=np.int8),
        colour_permutation=np.array([row.permutation for row in rows], np.uint8).reshape(-1, 10),
        canvas=np.array([canvas_of(row) for row in rows], np.uint8).reshape(-1, SIDE * SIDE),
        confidence=np.array([row.confidence for row in rows], dtype=np.float32),
        checkpoint=np.zeros(count, dtype=np.int16),
    )


@st.composite
def grids(draw: Any, colours: int = 10, side: int = SIDE) -> Grid:
    rows, cols = draw(st.integers(1, side)), draw(st.integers(1, side))
    line = st.lists(st.integers(0, colours - 1), min_size=cols, max_size=cols)
    return np.array(draw(st.lists(line, min_size=rows, max_size=rows)), dtype=np.uint8)


def permutations() -> Any:
    return st.permutations(range(1, 10)).map(lambda rest: (0, *rest))


@st.composite
def votes(draw: Any, exact: bool) -> list[Row]:
    """Up to 14 predictions of few tasks and few answers, so that answers meet.

    With `exact`, confidences are multiples of 1/64, whose sums are exact in any order.
    """
    answers = [*draw(st.lists(grids(colours=2, side=2), min_size=1, max_size=4)), NO_GRID]
    confidence = st.integers(0, 64).map(lambda n: n / 64) if exact else st.floats(0, 1, width=32)
    row = st.builds(
        Row,
        answer=st.sampled_from(answers),
        confidence=confidence,
        task_id=st.sampled_from(["a", "b"]),
        test_index=st.integers(0, 1),
        dihedral=st.integers(0, 7),
        permutation=permutations(),
    )
    result: list[Row] = draw(st.lists(row, max_size=14))
    return result


def plain(rankings: dict[TestInput, Ranking]) -> dict[TestInput, list[tuple[Any, int, float]]]:
    """Rankings as lists, for exact comparison."""
    return {
        key: [
            (grid.tolist(), int(count), float(confidence))
            for grid, count, confidence in zip(*ranking, strict=True)
        ]
        for key, ranking in rankings.items()
    }


@given(grid=grids(), dihedral=st.integers(0, 7), permutation=st.permutations(range(10)))
@settings(max_examples=150)
def test_every_augmentation_is_undone(grid: Grid, dihedral: int, permutation: list[int]) -> None:
    row = Row(grid, dihedral=dihedral, permutation=tuple(permutation))
    other = Row([[1, 2, 3]], dihedral=1)  # Rows of other sizes and turns in the same batch.
    given_rows = predictions([other, row, row])
    squares = invert_canvases(given_rows.canvas, given_rows.dihedral, given_rows.colour_permutation)
    expected = np.full((SIDE, SIDE), OUTSIDE, dtype=np.uint8)
    expected[: grid.shape[0], : grid.shape[1]] = grid
    assert np.array_equal(squares[1], expected)
    assert np.array_equal(squares[2], expected)
    assert squares[0, 0, :4].tolist() == [1, 2, 3, OUTSIDE]
    assert (squares[0, 1:] == OUTSIDE).all()


def test_undoing_by_hand() -> None:
    # The variant shows the task's grid turned counter-clockwise once, colours 1 and 2 exchanged.
    shown = np.array([[2, 5], [1, 0], [3, 1]], dtype=np.uint8)
    permutation = np.array([[0, 2, 1, 3, 4, 5, 6, 7, 8, 9]], dtype=np.uint8)
    squares = invert_canvases(place(shown[None], 4), np.array([1], dtype=np.int8), permutation)
    _ = OUTSIDE
    assert squares[0].tolist() == [
        [3, 2, 1, _],
        [2, 0, 5, _],
        [_, _, _, _],
        [_, _, _, _],
    ]


@pytest.mark.parametrize("first_cell", [PAD, EOS])
def test_a_canvas_that_shows_no_grid_does_not_vote(first_cell: int) -> None:
    given_rows = predictions([Row([[4]], 0.25), Row([[7, 7]], 0.9)])
    given_rows.canvas[1, 0] = first_cell
    ranking = rank_answers(given_rows)
    assert [grid.tolist() for grid in ranking.grids] == [[[4]]]
    assert ranking.votes.tolist() == [1]


def test_the_mask_covers_the_grid_that_is_read_back() -> None:
    canvases = predictions([Row([[1, 2], [3, 4], [5, 6]]), Row(NO_GRID)]).canvas
    mask = grid_mask(canvases).reshape(2, SIDE, SIDE)
    assert mask[0, :3, :2].all()
    assert mask[0].sum() == 6
    assert not mask[1].any()


def test_answers_are_ranked_by_votes_then_by_mean_confidence() -> None:
    a, b, c, d = [[1, 1]], [[1], [1]], [[2]], [[3]]
    rows = [
        *(Row(a, 0.5), Row(a, 0.75)),  # mean 0.625
        *(Row(b, 0.875), Row(b, 0.5)),  # mean 0.6875
        *(Row(c, 0.125), Row(c, 0.125), Row(c, 0.25)),  # three votes, however unsure
        Row(d, 1.0),
    ]
    (ranking,) = count_votes(predictions(rows)).values()
    assert [grid.tolist() for grid in ranking.grids] == [c, b, a, d]
    assert ranking.votes.tolist() == [3, 2, 2, 1]
    assert ranking.confidences.tolist() == pytest.approx([0.5 / 3, 0.6875, 0.625, 1.0])


def test_what_is_equal_in_votes_and_confidence_is_ranked_by_the_grid() -> None:
    rows = [Row([[colour]], 0.5) for colour in (3, 1, 2)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        (ranking,) = count_votes(predictions([rows[i] for i in order])).values()
        assert [grid.item() for grid in ranking.grids] == [1, 2, 3]


def test_variants_of_one_answer_vote_together() -> None:
    swapped = (0, 2, 1, 3, 4, 5, 6, 7, 8, 9)
    answer = [[1, 2, 3], [0, 0, 4]]
    rows = [Row(answer, 0.5, dihedral=d, permutation=swapped) for d in range(8)]
    (ranking,) = count_votes(predictions(rows)).values()
    assert [grid.tolist() for grid in ranking.grids] == [answer]
    assert ranking.votes.tolist() == [8]


def test_each_test_input_of_each_task_is_counted_by_itself() -> None:
    rows = [
        Row([[1]], 0.5, "b", 0),
        Row([[2]], 0.5, "a", 1),
        Row([[3]], 0.5, "a", 0),
        Row([[4]], 0.5, "b", 1),
        Row([[3]], 0.25, "a", 0),
    ]
    assert plain(count_votes(predictions(rows))) == {
        ("a", 0): [([[3]], 2, 0.375)],
        ("a", 1): [([[2]], 1, 0.5)],
        ("b", 0): [([[1]], 1, 0.5)],
        ("b", 1): [([[4]], 1, 0.5)],
    }


def test_a_test_input_without_any_grid_has_an_empty_ranking() -> None:
    assert plain(count_votes(predictions([Row(NO_GRID), Row(NO_GRID)]))) == {("task", 0): []}
    assert count_votes(predictions([])) == {}


def by_dictionaries(rows: list[Row]) -> dict[TestInput, list[tuple[Any, int, float]]]:
    """Votes counted one by one."""
    found: dict[TestInput, dict[bytes, list[Any]]] = {}
    for row in rows:
        answers = found.setdefault((row.task_id, row.test_index), {})
        shown = read_back(canvas_of(row))
        if shown is None:
            continue
        grid = invert(shown, row.dihedral, np.array(row.permutation, dtype=np.uint8))
        padded = np.full((SIDE, SIDE), 10, dtype=np.uint8)
        padded[: grid.shape[0], : grid.shape[1]] = grid
        answers.setdefault(padded.tobytes(), [grid.tolist(), []])[1].append(row.confidence)
    rankings = {}
    for key, answers in found.items():
        ranked = sorted(
            (-len(given_confidences), -sum(given_confidences) / len(given_confidences), cells, grid)
            for cells, (grid, given_confidences) in answers.items()
        )
        rankings[key] = [(grid, -count, -mean) for count, mean, _, grid in ranked]
    return rankings


@given(rows=votes(exact=True))
@settings(max_examples=150)
def test_the_count_agrees_with_one_by_dictionaries(rows: list[Row]) -> None:
    assert plain(count_votes(predictions(rows))) == by_dictionaries(rows)


@given(rows=votes(exact=False), data=st.data())
@settings(max_examples=100)
def test_neither_the_order_nor_the_split_over_ranks_changes_a_bit(
    rows: list[Row], data: st.DataObject
) -> None:
    expected = plain(count_votes(predictions(rows)))
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    parts = [predictions(list(shuffled[:cut])), predictions(list(shuffled[cut:]))]
    assert plain(count_votes(concatenate(parts))) == expected


def test_the_mean_confidence_is_the_same_to_the_last_bit_in_every_order() -> None:
    """Of sizes so different that a sum is rounded, and plain sums differ by the order."""
    generator = np.random.default_rng(0)
    confidences = (10.0 ** -generator.uniform(0, 18, 50)).tolist()
    means, plain_means = set(), set()
    for _ in range(20):
        order = generator.permutation(50)
        given_rows = predictions([Row([[1]], confidences[i]) for i in order])
        (ranking,) = count_votes(given_rows).values()
        means.add(ranking.confidences[0])
        total = 0.0
        for confidence in given_rows.confidence.tolist():
            total += confidence
        plain_means.add(total / 50)
    assert len(means) == 1
    assert len(plain_means) > 1, "so the order did matter"
