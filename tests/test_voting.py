"""Votes and scores: augmentations are undone exactly, and only the votes count."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.tokens import PAD
from dataset.augmentation import augment, invert
from dataset.canvas import EOS, place, read_back
from dataset.tasks import Grid, Pair, Task
from evaluation.predictions import Predictions, pool_predictions
from evaluation.voting import (
    OUTSIDE,
    Ranking,
    Scores,
    TestInput,
    count_votes,
    invert_canvases,
    score,
    shares_within,
    solution_place,
    solution_places,
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


SOME_GRID = np.zeros((1, 1), dtype=np.uint8)
TASKS = [Task(i, (), (Pair(SOME_GRID, None),) * 2) for i in ("task", "a", "b")]


def counted(*rows: Row) -> dict[TestInput, list[tuple[Any, int, float]]]:
    """Rankings of the answers as lists, for exact comparison."""
    return plain(count_votes(predictions(list(rows)), TASKS))


def plain(rankings: dict[TestInput, Ranking]) -> dict[TestInput, list[tuple[Any, int, float]]]:
    return {
        key: [
            (grid.tolist(), int(count), float(confidence))
            for grid, count, confidence in zip(*ranking[:3], strict=True)
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


@pytest.mark.parametrize("first_cell", [PAD, EOS])
def test_a_canvas_that_shows_no_grid_does_not_vote(first_cell: int) -> None:
    given_rows = predictions([Row([[4]], 0.25), Row([[7, 7]], 0.9)])
    given_rows.canvas[1, 0] = first_cell
    assert plain(count_votes(given_rows, TASKS)) == {("task", 0): [([[4]], 1, 0.25)]}


def test_answers_are_ranked_by_votes_then_by_mean_confidence_then_by_the_grid() -> None:
    """Whichever variant they were given to, and in whatever order."""
    swapped = (0, 2, 1, 3, 4, 5, 6, 7, 8, 9)
    a, b, c, d, e = [[1, 1]], [[1], [1]], [[1, 2, 3], [0, 0, 4]], [[3]], [[1, 2]]
    rows = [
        *(Row(e, 0.625), Row(e, 0.625)),
        *(Row(a, 0.5), Row(a, 0.75)),
        *(Row(b, 0.875), Row(b, 0.5, dihedral=3)),
        *(Row(c, d / 32, dihedral=d, permutation=swapped) for d in range(8)),  # However unsure.
        Row(d, 1.0),
    ]
    ranked = [(c, 8, 3.5 / 32), (b, 2, 0.6875), (a, 2, 0.625), (e, 2, 0.625), (d, 1, 1.0)]
    assert counted(*rows) == counted(*rows[::-1]) == {("task", 0): ranked}


def test_each_test_input_of_each_task_is_counted_by_itself() -> None:
    rows = [
        Row([[1]], 0.5, "b", 0),
        Row([[2]], 0.5, "a", 1),
        Row([[3]], 0.5, "a", 0),
        Row(NO_GRID, 0.5, "b", 1),
        Row([[3]], 0.25, "a", 0),
    ]
    assert counted(*rows) == {
        ("a", 0): [([[3]], 2, 0.375)],
        ("a", 1): [([[2]], 1, 0.5)],
        ("b", 0): [([[1]], 1, 0.5)],
        ("b", 1): [],
    }
    assert counted() == {}


def test_predictions_of_other_tasks_are_refused() -> None:
    """Recounted against the wrong dataset they would score zero, or not at all."""
    message = "test input 1 of task 'other' was predicted and is not in the test set"
    with pytest.raises(UserError, match=message):
        counted(Row([[1]]), Row([[1]], task_id="other", test_index=1))


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
    assert counted(*rows) == by_dictionaries(rows)


@given(rows=votes(exact=False), data=st.data())
@settings(max_examples=100)
def test_neither_the_order_nor_the_split_over_ranks_changes_a_bit(
    rows: list[Row], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    parts = [predictions(list(shuffled[:cut])), predictions(list(shuffled[cut:]))]
    assert plain(count_votes(pool_predictions(parts), TASKS)) == counted(*rows)


def test_the_mean_confidence_is_the_same_to_the_last_bit_in_every_order() -> None:
    """Of sizes so different that a sum is rounded, and plain sums differ by the order."""
    generator = np.random.default_rng(0)
    confidences = (10.0 ** -generator.uniform(0, 18, 50)).astype(np.float32).tolist()
    means, plain_sums = set(), set()
    for _ in range(20):
        shuffled = generator.permutation(confidences).tolist()
        ((answer,),) = counted(*(Row([[1]], confidence) for confidence in shuffled)).values()
        means.add(answer[2])
        plain_sums.add(float(np.cumsum(shuffled)[-1]))
    assert len(means) == 1
    assert len(plain_sums) > 1, "so the order did matter"


# ---- scores ----------------------------------------------------------------------------------


def grid(value: Any) -> Grid:
    return np.array(value, dtype=np.uint8)


def task_of(task_id: str, *solutions: Any) -> Task:
    """A task with one test input for each solution; None where it is hidden."""
    some = grid([[0]])
    outputs = [None if solution is None else grid(solution) for solution in solutions]
    return Task(task_id, (Pair(some, some),), tuple(Pair(some, output) for output in outputs))


def ranking(*answers: Any) -> Ranking:
    """Answers in their order, with falling votes."""
    count = len(answers)
    return Ranking([grid(a) for a in answers], np.arange(count, 0, -1), np.full(count, 0.5))


def wrong(count: int) -> list[Any]:
    """As many different wrong answers, all wider than any solution here."""
    return [[[0] * (width + 10)] for width in range(count)]


def scored(votes: dict[TestInput, Ranking], *tasks: Task) -> Scores:
    scores = score(votes, tasks)
    assert scores is not None, "some solutions are known"
    return scores


def test_places_and_shares_of_single_tasks_by_hand() -> None:
    """Second place and none; and a task whose solution is hidden does not take part."""
    tasks = [task_of("a", [[2]], [[1]]), task_of("b", None)]
    places = solution_places({("a", 0): ranking([[1]], [[2]]), ("b", 0): ranking([[1]])}, tasks)
    assert places == {"a": [2, float("inf")]}
    assert shares_within(places, 1) == {"a": 0.0}
    assert shares_within(places, 2) == {"a": 0.5}


def test_the_mean_over_tasks_is_not_the_mean_over_test_inputs() -> None:
    votes = {
        ("a", 0): ranking([[1]]),
        ("a", 1): ranking([[9]]),
        ("b", 0): ranking([[9]], [[3]]),  # second
    }
    scores = scored(votes, task_of("a", [[1]], [[2]]), task_of("b", [[3]]))
    assert (scores.over_tasks[1], scores.over_tasks[2]) == (0.25, 0.75)  # (1/2 + 0)/2, (1/2 + 1)/2
    assert scores.over_test_inputs[1] == pytest.approx(1 / 3)
    assert scores.by_name()["pass@2"] == 0.75
    assert scores.by_name()["pass@2_test_inputs"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("rank", "solved_from"),
    [(1, 1), (2, 2), (3, 5), (5, 5), (6, 10), (11, 100), (101, 1000)],
)
def test_pass_at_k_looks_at_the_first_k_answers(rank: int, solved_from: int) -> None:
    wrong = [[[0] * (width + 10)] for width in range(rank + 2)]
    answers = ranking(*wrong[: rank - 1], [[7]], *wrong[rank - 1 :])
    scores = scored({("a", 0): answers}, task_of("a", [[7]]))
    expected = {k: float(k >= solved_from) for k in (1, 2, 5, 10, 100, 1000)}
    assert scores.over_tasks == scores.over_test_inputs == expected


def test_missing_predictions_count_as_unsolved() -> None:
    tasks = [task_of(name, [[1]]) for name in "abc"]
    scores = scored({("a", 0): ranking([[1]]), ("c", 0): ranking()}, *tasks)
    assert scores.over_tasks[1000] == pytest.approx(1 / 3)


def test_hidden_solutions_are_not_scored() -> None:
    votes = {("a", 0): ranking([[9]]), ("a", 1): ranking([[1]]), ("b", 0): ranking([[1]])}
    assert score(votes, [task_of("a", None, None), task_of("b", None)]) is None
    # Known in part: the hidden ones are left out.
    scores = scored(votes, task_of("a", None, [[1]]), task_of("b", None))
    assert scores.over_tasks[1] == scores.over_test_inputs[1] == 1


def test_an_answer_of_another_shape_is_another_answer() -> None:
    assert solution_place(ranking([[1, 1]], [[1], [1]]), grid([[1], [1]])) == 2
    assert solution_place(ranking([[1, 1]]), grid([[1]])) == float("inf")
    assert solution_place(None, grid([[1]])) == float("inf")
