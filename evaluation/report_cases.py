"""From an outcome to the cases that the report shows."""

from collections.abc import Sequence

from dataset.canvas import read_back
from dataset.tasks import Grid, Task
from evaluation.evaluator import Outcome
from evaluation.report import Attempt, ReportCase
from evaluation.scoring import ATTEMPTS
from evaluation.voting import Ranking, TestInput


def report_cases(tasks: Sequence[Task], outcome: Outcome) -> list[ReportCase]:
    """One case for each test input of each task, in order."""
    developed = _step_answers(outcome)
    return [
        ReportCase(
            task_id=task.task_id,
            test_index=index,
            demonstrations=task.train,
            test_input=pair.input,
            solution=pair.output,
            attempts=_attempts(outcome.rankings.get((task.task_id, index))),
            step_answers=developed.get((task.task_id, index), ()),
        )
        for task in tasks
        for index, pair in enumerate(task.test)
    ]


def _attempts(ranking: Ranking | None) -> tuple[Attempt, ...]:
    if ranking is None:
        return ()
    ranked = zip(ranking.grids, ranking.votes, ranking.confidences, strict=True)
    return tuple(
        Attempt(grid, int(votes), float(confidence)) for grid, votes, confidence in ranked
    )[:ATTEMPTS]


def _step_answers(outcome: Outcome) -> dict[TestInput, tuple[Grid | None, ...]]:
    if outcome.step_answers is None:
        return {}
    answers = outcome.step_answers
    rows = zip(answers.task_id, answers.test_index, answers.canvas, strict=True)
    return {
        (str(task_id), int(index)): tuple(read_back(canvas) for canvas in canvases)
        for task_id, index, canvases in rows
    }
