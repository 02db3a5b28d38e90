"""pass@k and the submission, worked by hand."""

from typing import Any

import numpy as np
import pytest

from dataset.tasks import Grid, Pair, Task
from evaluation.scoring import score, solution_place, submission
from evaluation.voting import Ranking


def grid(value: Any) -> Grid:
    return np.array(value, dtype=np.uint8)


def task(task_id: str, *solutions: Any) -> Task:
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


def test_a_task_of_two_test_inputs_one_of_which_is_solved_scores_a_half() -> None:
    tasks = [task("a", [[1]], [[2]])]
    scores = score({("a", 0): ranking([[1]]), ("a", 1): ranking([[3]])}, tasks)
    assert scores is not None
    assert scores.over_tasks[1] == 0.5
    assert (scores.num_tasks, scores.num_test_inputs) == (1, 2)


def test_the_mean_over_tasks_is_not_the_mean_over_test_inputs() -> None:
    tasks = [task("a", [[1]], [[2]]), task("b", [[3]])]
    rankings = {
        ("a", 0): ranking([[1]]),
        ("a", 1): ranking([[9]]),
        ("b", 0): ranking([[9]], [[3]]),  # second
    }
    scores = score(rankings, tasks)
    assert scores is not None
    assert (scores.over_tasks[1], scores.over_tasks[2]) == (0.25, 0.75)  # (1/2 + 0)/2, (1/2 + 1)/2
    assert scores.over_test_inputs[1] == pytest.approx(1 / 3)
    assert scores.over_test_inputs[2] == pytest.approx(2 / 3)
    assert (scores.num_tasks, scores.num_test_inputs) == (2, 3)


def test_pass_at_k_looks_at_the_first_k_answers() -> None:
    solution = [[7]]
    for place, solved_from in [(1, 1), (2, 2), (3, 5), (5, 5), (6, 10), (11, 100), (101, 1000)]:
        answers = ranking(*wrong(place - 1), solution, *wrong(3))
        scores = score({("a", 0): answers}, [task("a", solution)])
        assert scores is not None
        expected = {k: float(k >= solved_from) for k in (1, 2, 5, 10, 100, 1000)}
        assert scores.over_tasks == expected
        assert scores.over_test_inputs == expected


def test_missing_predictions_count_as_unsolved() -> None:
    tasks = [task("a", [[1]]), task("b", [[2]]), task("c", [[3]])]
    scores = score({("a", 0): ranking([[1]]), ("c", 0): ranking()}, tasks)
    assert scores is not None
    assert scores.over_tasks[1000] == pytest.approx(1 / 3)
    assert scores.num_tasks == 3


def test_hidden_solutions_are_not_scored() -> None:
    rankings = {("a", 0): ranking([[9]]), ("a", 1): ranking([[1]]), ("b", 0): ranking([[1]])}
    assert score(rankings, [task("a", None, None), task("b", None)]) is None
    # Known in part: the hidden ones are left out of both the shares and the counts.
    scores = score(rankings, [task("a", None, [[1]]), task("b", None)])
    assert scores is not None
    assert scores.over_tasks[1] == 1
    assert (scores.num_tasks, scores.num_test_inputs) == (1, 1)


def test_an_answer_of_another_shape_is_another_answer() -> None:
    assert solution_place(ranking([[1, 1]], [[1], [1]]), grid([[1], [1]])) == 2
    assert solution_place(ranking([[1, 1]]), grid([[1]])) == float("inf")
    assert solution_place(None, grid([[1]])) == float("inf")


def test_the_submission_has_two_attempts_for_every_test_input_in_order() -> None:
    tasks = [task("b", [[1]], None, [[3]]), task("a", [[4]])]
    rankings = {
        ("b", 0): ranking([[1, 2]], [[3]], [[4]]),  # more than two: the first two
        ("b", 1): ranking([[5], [6]]),  # one: twice
        ("b", 2): ranking(),  # none
        # "a" was not predicted at all
    }
    nothing = {"attempt_1": [[0]], "attempt_2": [[0]]}
    assert submission(rankings, tasks) == {
        "b": [
            {"attempt_1": [[1, 2]], "attempt_2": [[3]]},
            {"attempt_1": [[5], [6]], "attempt_2": [[5], [6]]},
            nothing,
        ],
        "a": [nothing],
    }
    assert list(submission(rankings, tasks)) == ["b", "a"]
