"""The numbers behind the charts, worked out by hand and against plain recounts."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.canvas import place
from dataset.tasks import Grid, Pair, Task
from evaluation.figures import (
    by_kind,
    by_step,
    by_variants,
    calibration,
    pass_at_k,
    variant_counts,
)
from evaluation.predictions import Predictions, first_variants
from evaluation.uncertainty import mean_share, share_of
from evaluation.voting import Ranking, count_votes, score

SIDE = 4


def grid(*rows: str) -> Grid:
    return np.array([[int(cell) for cell in row] for row in rows], dtype=np.uint8)


def task(name: str, *solutions: str | None) -> Task:
    """With solutions of one row."""
    test = tuple(Pair(grid("0"), None if s is None else grid(s)) for s in solutions)
    return Task(name, (Pair(grid("1"), grid("1")),), test)


def ranking(*answers: tuple[str, int]) -> Ranking:
    counts = np.array([votes for _, votes in answers], dtype=np.int64)
    return Ranking([grid(answer) for answer, _ in answers], counts, np.full(len(answers), 0.5))


def predicted(rows: Sequence[tuple[str, int, int, str | None, float]]) -> Predictions:
    """From (task, test input, identifier, answer, confidence); no answer: no grid."""
    task_id, test_index, identifier, answers, confidence = (
        zip(*rows, strict=True) if rows else ((),) * 5
    )
    blank = np.zeros(SIDE * SIDE, dtype=np.uint8)
    canvas: list[npt.NDArray[np.uint8]] = [
        blank if answer is None else place(grid(answer)[None], SIDE)[0] for answer in answers
    ]
    count = len(rows)
    return Predictions(
        task_id=np.array(task_id, dtype=np.str_),
        test_index=np.array(test_index, dtype=np.int32),
        identifier=np.array(identifier, dtype=np.int32),
        dihedral=np.zeros(count, dtype=np.int8),
        colour_permutation=np.tile(np.arange(10, dtype=np.uint8), (count, 1)),
        canvas=np.array(canvas, dtype=np.uint8).reshape(count, SIDE * SIDE),
        confidence=np.array(confidence, dtype=np.float32),
        checkpoint=np.zeros(count, dtype=np.int16),
    )


def test_the_curve_of_pass_at_k_ends_where_no_test_input_has_more_answers() -> None:
    """Solved in the first and the third place, and never."""
    tasks = [task("a", "1"), task("b", "2"), task("c", "3")]
    many = ranking(("8", 5), ("9", 4), ("2", 3), ("7", 1))
    votes = {("a", 0): ranking(("1", 2)), ("b", 0): many}
    shares = {1: 1 / 3, 2: 1 / 3, 3: 2 / 3, 5: 2 / 3}
    assert pass_at_k(votes, tasks) == [(k, share_of(3 * s, 3)) for k, s in shares.items()]
    assert pass_at_k(votes, [task("a", None)]) == []


@pytest.mark.parametrize(
    ("most", "counts"), [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])]
)
def test_numbers_of_variants_double_and_end_with_all(most: int, counts: list[int]) -> None:
    assert variant_counts(most) == counts


def test_votes_are_recounted_for_the_first_variants_by_hand() -> None:
    """The original (7) is right, the next two agree on a wrong answer, the last is right."""
    rows = [
        ("a", 0, 9, "5", 0.9), ("a", 0, 7, "1", 0.1), ("a", 0, 8, "5", 0.9), ("a", 0, 11, "1", 0.1)
    ]  # fmt: skip
    tasks = [task("a", "1"), task("b", "2")]
    curves = by_variants(count_votes(predicted(rows), tasks), tasks, (1, 2))
    shares = {k: [(count, share.value) for count, share in curve] for k, curve in curves.items()}
    assert shares == {1: [(1, 0.5), (2, 0.0), (4, 0.0)], 2: [(1, 0.5), (2, 0.5), (4, 0.5)]}


@st.composite
def voted(draw: st.DrawFn) -> list[tuple[str, int, int, str | None, float]]:
    rows = []
    for name, first in (("a", 1), ("b", 100)):
        for variant in range(draw(st.integers(0, 9))):
            for index in (0, 1):
                answer = draw(st.sampled_from(["1", "2", "12", "21", None]))
                confidence = draw(st.sampled_from([0.25, 0.5]))
                rows.append((name, index, first + variant, answer, confidence))
    return draw(st.permutations(rows))


@settings(deadline=None, max_examples=60)
@given(rows=voted())
def test_the_curve_is_that_of_counting_again_with_the_first_variants(
    rows: list[tuple[str, int, int, str | None, float]],
) -> None:
    tasks = [task("a", "1", "12"), task("b", "2", None)]
    predictions = predicted(rows)
    curves = by_variants(count_votes(predictions, tasks), tasks, (1, 2))
    for k, curve in curves.items():
        for count, share in curve:
            again = score(count_votes(first_variants(predictions, count), tasks), tasks)
            assert again is not None
            assert share.value == pytest.approx(again.over_tasks[k])


def test_there_is_no_curve_of_votes_without_solutions_or_without_voters() -> None:
    hidden = [task("a", None)]
    votes = count_votes(predicted([("a", 0, 1, "1", 0.5)]), hidden)
    assert by_variants(votes, hidden, (1, 2)) == {1: [], 2: []}
    assert by_variants({("a", 0): ranking(("1", 2))}, [task("a", "1")], (2,)) == {2: []}


def test_accuracies_are_read_step_by_step() -> None:
    """In the order of the steps, of which there may be ten; a mean without steps is none."""
    metrics = {f"exact_accuracy_step{s}": s / 10 for s in range(10, 0, -1)} | {"exact_accuracy": 1}
    assert by_step(metrics) == {"exact_accuracy": [s / 10 for s in range(1, 11)]}
    assert by_step({"loss_step1": 2.0, "loss": 2.0}) == {}


def test_calibration_is_of_first_answers_by_their_share_of_the_votes() -> None:
    """Shares 0.25 and 0.28 in one bin, one of the two right; a unanimous answer in the last."""
    tasks = [task("a", "1", "1"), task("b", "1", None), task("c", "1")]
    votes = {
        ("a", 0): ranking(("1", 1), ("2", 1), ("3", 1), ("4", 1)),
        ("a", 1): ranking(("2", 7), ("1", 6), ("3", 6), ("4", 6)),
        ("b", 0): ranking(("1", 3)),
        ("b", 1): ranking(("1", 3)),
        ("c", 0): ranking(),
    }
    first, last = calibration(votes, tasks)
    assert first == (pytest.approx((0.25 + 0.28) / 2), share_of(1, 2))
    assert last == (1.0, share_of(1, 1))
    assert calibration(votes, [task("c", "1")]) == []


def test_scores_by_kind_are_means_over_the_tasks_of_each() -> None:
    large = Task("c", (Pair(grid("1" * 20), grid("1")),), (Pair(grid("1"), None),))
    tasks = [task("a", "1"), task("b", "1"), large]
    shares = {"a": 1.0, "b": 0.5, "c": 0.0}
    tables = by_kind(tasks, shares, dict.fromkeys("abc", "evaluation"))
    assert tables["Size of the output"] == {
        "as the input": mean_share([1.0, 0.5]),
        "smaller": mean_share([0.0]),
    }
    assert list(tables["Longest side"]) == ["up to 10", "16–20"]
    assert "Test set" not in tables, "there is only one"
    by_set = by_kind(tasks, {"a": 1.0, "c": 0.0}, {"a": "one", "b": "three", "c": "two"})
    assert by_set["Test set"] == {"one": mean_share([1.0]), "two": mean_share([0.0])}
