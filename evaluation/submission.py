"""The Kaggle submission: two attempts at every test input, and what makes it a valid one.

    {task_id: [{"attempt_1": grid, "attempt_2": grid}, ...]}

A submission that the competition refuses costs a day's attempt, so it is checked against the
challenge, as it would be there, before it is written.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import UserError
from dataset.tasks import Task, TaskError, parse_grid, shorten
from evaluation.voting import Ranking, TestInput

ATTEMPTS = 2
EMPTY_ANSWER = [[0]]
"""Submitted where there is no answer at all: the format asks for a grid."""


def submission(votes: Mapping[TestInput, Ranking], tasks: Sequence[Task]) -> dict[str, Any]:
    """The Kaggle submission: two attempts for every test input of every task, in order.

    With a single answer both attempts are it; with none both are a 1x1 grid of colour 0.
    """
    return {
        task.task_id: [
            {
                f"attempt_{attempt + 1}": _attempt(votes.get((task.task_id, index)), attempt)
                for attempt in range(ATTEMPTS)
            }
            for index in range(len(task.test))
        ]
        for task in tasks
    }


def _attempt(ranking: Ranking | None, attempt: int) -> list[list[int]]:
    if ranking is None or not ranking.grids:
        return EMPTY_ANSWER
    grid: list[list[int]] = ranking.grids[min(attempt, len(ranking.grids) - 1)].tolist()
    return grid


def check_submission(document: Any, tasks: Sequence[Task]) -> None:
    """Check a submission against the tasks of the challenge.

    Raises:
        UserError: a task is missing or is none of the challenge's, a test input lacks its entry, an
            entry its two attempts, or an attempt is no grid; the message says which.
    """
    if not isinstance(document, dict):
        raise _invalid(f"an object of tasks is needed, not {shorten(document)}")
    expected = {task.task_id: len(task.test) for task in tasks}
    if missing := [task_id for task_id in expected if task_id not in document]:
        raise _invalid(f"task '{missing[0]}' is missing ({len(missing)} of {len(expected)})")
    if unknown := [task_id for task_id in document if task_id not in expected]:
        raise _invalid(f"task {shorten(unknown[0])} is not one of the challenge")
    names = [f"attempt_{attempt + 1}" for attempt in range(ATTEMPTS)]
    for task_id, count in expected.items():
        entries = document[task_id]
        if not isinstance(entries, list) or len(entries) != count:
            found = len(entries) if isinstance(entries, list) else shorten(entries)
            raise _invalid(f"task '{task_id}': {count} test inputs, but entries for {found}")
        for index, entry in enumerate(entries):
            where = f"task '{task_id}', test input {index}"
            if not isinstance(entry, dict) or sorted(entry) != names:
                raise _invalid(f"{where}: needs {' and '.join(names)}, got {shorten(entry)}")
            for name in names:
                try:
                    parse_grid(entry[name], f"{where}, {name}")
                except TaskError as error:
                    raise _invalid(str(error)) from error


def _invalid(problem: str) -> UserError:
    return UserError(
        f"submission.json would not be valid and is not written: {problem}; check the predictions "
        f"and the tasks of the dataset"
    )
