"""What would be refused by the competition is refused before it is written."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from dataset.canvas import place
from dataset.tasks import Pair, Task
from evaluation.predictions import Predictions
from evaluation.results import write_arc_results
from evaluation.submission import check_submission, submission
from evaluation.voting import Ranking, count_votes

CELL = np.zeros((1, 1), dtype=np.uint8)
LARGEST = [[9] * 30] * 30


def task_of(task_id: str, num_test: int) -> Task:
    """A challenge's task: its solutions are hidden."""
    return Task(task_id, (Pair(CELL, CELL),), (Pair(CELL, None),) * num_test)


def ranking(*grids: Any) -> Ranking:
    answers = [np.array(grid, dtype=np.uint8) for grid in grids]
    return Ranking(answers, np.arange(len(grids), 0, -1), np.full(len(grids), 0.5))


TASKS = [task_of("b", 3), task_of("a", 1)]


def valid() -> dict[str, Any]:
    def entry(first: Any, second: Any) -> dict[str, Any]:
        return {"attempt_1": first, "attempt_2": second}

    cell = [[0]]
    return {
        "b": [entry([[1, 2]], [[3]]), entry(LARGEST, cell), entry(cell, cell)],
        "a": [entry([[4]], [[4], [5]])],
    }


def test_it_has_two_attempts_for_every_test_input_in_order() -> None:
    votes = {
        ("b", 0): ranking([[1, 2]], [[3]], [[4]]),  # more than two: the first two
        ("b", 1): ranking([[5], [6]]),  # one: twice
        ("b", 2): ranking(),  # none
        # "a" was not predicted at all
    }
    nothing = {"attempt_1": [[0]], "attempt_2": [[0]]}
    document = submission(votes, TASKS)
    assert document == {
        "b": [
            {"attempt_1": [[1, 2]], "attempt_2": [[3]]},
            {"attempt_1": [[5], [6]], "attempt_2": [[5], [6]]},
            nothing,
        ],
        "a": [nothing],
    }
    assert list(document) == ["b", "a"]
    check_submission(json.loads(json.dumps(document)), TASKS)


def test_a_valid_one_passes_as_it_is() -> None:
    document = valid()
    check_submission(document, TASKS)
    assert document == valid()


FAULTS: list[tuple[tuple[Any, ...], Any, str]] = [
    ((), [], "an object of tasks is needed"),
    (("a",), None, "task 'a' is missing .1 of 2."),
    (("c",), [], "task 'c' is not one of the challenge"),
    (("b",), {}, "task 'b': 3 test inputs, but entries for {}"),
    (("a",), [], "task 'a': 1 test inputs, but entries for 0"),
    (("b", 1), None, "task 'b': 3 test inputs, but entries for 2"),
    (("b", 1), [[[0]], [[0]]], "task 'b', test input 1: needs attempt_1 and attempt_2"),
    (("b", 1, "attempt_2"), None, "task 'b', test input 1: needs attempt_1 and attempt_2"),
    (("b", 1, "attempt_3"), [[0]], "task 'b', test input 1: needs attempt_1 and attempt_2"),
    (("b", 2, "attempt_1"), [], "task 'b', test input 2, attempt_1: 0 rows"),
    (("b", 2, "attempt_2"), [[]], "test input 2, attempt_2: 0 columns"),
    (("b", 2, "attempt_2"), [0], "attempt_2: a grid must be a list of rows"),
    (("b", 2, "attempt_2"), "0", "attempt_2: a grid must be a list of rows"),
    (("b", 2, "attempt_2"), [[1, 2], [3]], "attempt_2: ragged rows of 1 and 2 cells"),
    (("b", 2, "attempt_2"), [[0]] * 31, "attempt_2: 31 rows, a grid has 1 to 30"),
    (("b", 2, "attempt_2"), [[0] * 31], "attempt_2: 31 columns, a grid has 1 to 30"),
    (("a", 0, "attempt_1"), [[10]], "task 'a', test input 0, attempt_1: colour 10"),
    (("a", 0, "attempt_1"), [[-1]], "attempt_1: colour -1"),
    (("a", 0, "attempt_1"), [[1.0]], "attempt_1: colour 1.0"),
    (("a", 0, "attempt_1"), [[True]], "attempt_1: colour True"),
    (("a", 0, "attempt_1"), [[None]], "attempt_1: colour None"),
]


@pytest.mark.parametrize(("place_of_fault", "value", "message"), FAULTS)
def test_every_fault_is_refused_by_task_test_input_and_attempt(
    place_of_fault: tuple[Any, ...], value: Any, message: str
) -> None:
    """None takes away what stands at the place, anything else is put there."""
    document: Any = copy.deepcopy(valid())
    if place_of_fault:
        *path, last = place_of_fault
        holder = document
        for key in path:
            holder = holder[key]
        if value is None:
            del holder[last]
        else:
            holder[last] = value
    else:
        document = value
    with pytest.raises(UserError, match=f"would not be valid and is not written: .*{message}"):
        check_submission(document, TASKS)


def test_nothing_is_written_with_a_submission_that_is_not_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [task_of("a", 1)]
    predictions = Predictions(
        task_id=np.array(["a"]),
        test_index=np.zeros(1, np.int32),
        identifier=np.ones(1, np.int32),
        dihedral=np.zeros(1, np.int8),
        colour_permutation=np.arange(10, dtype=np.uint8)[None],
        canvas=place(np.array([[[7]]], np.uint8), 3),
        confidence=np.ones(1, np.float32),
        checkpoint=np.zeros(1, np.int16),
    )
    votes = count_votes(predictions, tasks)
    document = {"test_set": {"name": "made up"}, "num_predictions": 1}

    def write(out: Path) -> None:
        write_arc_results(out, tasks, predictions, votes, None, document, report=False)

    write(tmp_path / "good")
    written = json.loads((tmp_path / "good" / "submission.json").read_text())
    assert written == {"a": [{"attempt_1": [[7]], "attempt_2": [[7]]}]}
    monkeypatch.setattr("evaluation.results.submission", lambda *_: {})
    with pytest.raises(UserError, match="task 'a' is missing"):
        write(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
