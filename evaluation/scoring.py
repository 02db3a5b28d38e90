"""From ranked answers to pass@k and to `submission.json`.

pass@k: a test input is solved if its solution is among the first k answers; a task scores the
share of its test inputs that are solved; the figure is the mean over tasks. The mean over test
inputs stands beside it, since published figures mix the two.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dataset.tasks import Grid, Task
from evaluation.voting import Ranking, TestInput

PASS_AT = (1, 2, 5, 10, 100, 1000)
ATTEMPTS = 2
EMPTY_ANSWER = [[0]]
"""Submitted where there is no answer at all: the format asks for a grid."""


class Scores(NamedTuple):
    """How often the solution is among the first k answers."""

    over_tasks: dict[int, float]
    """k -> mean over tasks of the share of solved test inputs."""
    over_test_inputs: dict[int, float]
    """k -> share of solved test inputs."""
    num_tasks: int
    """Tasks with a known solution; the others are not scored."""
    num_test_inputs: int


def score(rankings: Mapping[TestInput, Ranking], tasks: Sequence[Task]) -> Scores | None:
    """Score every test input with a known solution; None if no solution is known.

    A test input without predictions counts as unsolved.
    """
    places: list[list[float]] = []
    for task in tasks:
        known = [
            (index, pair.output) for index, pair in enumerate(task.test) if pair.output is not None
        ]
        if known:
            places.append(
                [solution_place(rankings.get((task.task_id, i)), output) for i, output in known]
            )
    if not places:
        return None
    flat = [place for of_task in places for place in of_task]
    return Scores(
        over_tasks={
            k: float(np.mean([np.mean([place <= k for place in of_task]) for of_task in places]))
            for k in PASS_AT
        },
        over_test_inputs={k: float(np.mean([place <= k for place in flat])) for k in PASS_AT},
        num_tasks=len(places),
        num_test_inputs=len(flat),
    )


def solution_place(ranking: Ranking | None, solution: Grid) -> float:
    """Place of the solution among the answers, counted from 1; infinite if it is not there."""
    for place, grid in enumerate(ranking.grids if ranking else [], start=1):
        if np.array_equal(grid, solution):
            return place
    return float("inf")


def submission(rankings: Mapping[TestInput, Ranking], tasks: Sequence[Task]) -> dict[str, Any]:
    """The Kaggle submission: two attempts for every test input of every task, in order.

    With a single answer both attempts are it; with none both are a 1x1 grid of colour 0.
    """
    return {
        task.task_id: [
            {
                f"attempt_{attempt + 1}": _attempt(rankings.get((task.task_id, index)), attempt)
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
