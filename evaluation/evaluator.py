"""One evaluation from end to end: predict on all ranks, join, vote, score."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from common.distributed import Ranks
from common.errors import UserError
from dataset.tasks import Task
from evaluation.predict import (
    EvaluationSet,
    Progress,
    StepAccuracy,
    StepAnswers,
    join,
    predict,
)
from evaluation.predictions import Predictions
from evaluation.scoring import Scores, score
from evaluation.voting import Ranking, TestInput, count_votes
from models.supervision import ImprovementSteps


class Outcome(NamedTuple):
    """What one evaluation found."""

    predictions: Predictions
    rankings: Mapping[TestInput, Ranking]
    scores: Scores | None
    """None where no solution is known."""
    accuracy: StepAccuracy | None
    """None where votes were recounted without a model."""
    step_answers: StepAnswers | None


def evaluate(
    steps: ImprovementSteps,
    test_set: EvaluationSet,
    batch_size: int,
    ranks: Ranks,
    progress: Progress | None = None,
) -> Outcome | None:
    """Predict this rank's share; the main rank gets the outcome over all ranks, others None."""
    results = ranks.gather_objects(predict(steps, test_set, batch_size, ranks, progress))
    if results is None:
        return None
    result = join(results)
    return vote(result.predictions, test_set.tasks, result.accuracy, result.step_answers)


def vote(
    predictions: Predictions,
    tasks: Sequence[Task],
    accuracy: StepAccuracy | None = None,
    step_answers: StepAnswers | None = None,
) -> Outcome:
    """Count the votes of predictions, fresh from a model or read from a file, and score them.

    Raises:
        UserError: the predictions are of other tasks.
    """
    test_inputs = {(task.task_id, i) for task in tasks for i in range(len(task.test))}
    predicted = zip(predictions.task_id.tolist(), predictions.test_index.tolist(), strict=True)
    if unknown := set(predicted) - test_inputs:
        task_id, index = min(unknown)
        raise UserError(
            f"test input {index} of task '{task_id}' was predicted and is not in the test set: "
            f"data.path must name the dataset that was predicted"
        )
    rankings = count_votes(predictions)
    return Outcome(predictions, rankings, score(rankings, tasks), accuracy, step_answers)


def metrics(outcome: Outcome) -> dict[str, float]:
    """The outcome's figures by name, as metrics files and W&B show them."""
    figures: dict[str, float] = {}
    if outcome.scores is not None:
        over = outcome.scores
        figures |= {f"pass@{k}": value for k, value in over.over_tasks.items()}
        figures |= {f"pass@{k}_test_inputs": v for k, v in over.over_test_inputs.items()}
    if outcome.accuracy is not None and outcome.accuracy.num_scored:
        exact, cell = (
            sums / outcome.accuracy.num_scored
            for sums in (outcome.accuracy.exact, outcome.accuracy.cell)
        )
        figures |= {"exact_accuracy": float(exact[-1]), "cell_accuracy": float(cell[-1])}
        figures |= {f"exact_accuracy_step{s}": float(v) for s, v in enumerate(exact, start=1)}
    return figures
