"""One evaluation from end to end: predict on all ranks, join, vote, score."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from common.distributed import Ranks
from common.errors import UserError
from dataset.tasks import Task
from evaluation.figures import StepFigures
from evaluation.predict import (
    EvalConfig,
    Predictor,
    Progress,
)
from evaluation.predictions import Predictions
from evaluation.results import StepAnswers, join
from evaluation.rounds import predict_until_decided
from evaluation.scoring import ATTEMPTS, PASS_AT, Scores, score
from evaluation.stopping import ExactRule, SequentialRule, StoppingRule
from evaluation.test_set import EvaluationSet
from evaluation.voting import Ranking, TestInput, count_votes
from models.steps import ImprovementSteps


class Outcome(NamedTuple):
    """What one evaluation found."""

    predictions: Predictions
    rankings: Mapping[TestInput, Ranking]
    scores: Scores | None
    """None where no solution is known."""
    figures: StepFigures | None
    """None where votes were recounted without a model."""
    step_answers: StepAnswers | None
    """How the answers to the unaugmented test inputs developed, as far as they were predicted."""
    stopped_early: bool
    """Whether voting stopped where it was decided: only the first places mean something then."""
    passes: Mapping[str, float]
    """Shares of variants: those predicted at all, and of these those that outgrew their window."""


def evaluate(
    steps: ImprovementSteps,
    test_set: EvaluationSet,
    config: EvalConfig,
    canvas: str,
    ranks: Ranks,
    progress: Progress | None = None,
) -> Outcome | None:
    """Predict this rank's share; the main rank gets the outcome over all ranks, others None.

    Args:
        steps: the model and its loop.
        test_set: what is predicted.
        config: how.
        canvas: "whole" or "window", see `EvalConfig.canvas_for`.
        ranks: that share the work.
        progress: shows batches, or where voting stops, test inputs.
    """
    predictor = Predictor(steps, test_set, config.batch_size, canvas, config.diagnostics)
    rule = stopping_rule(config)
    if rule is None:
        rows = np.arange(ranks.rank, len(test_set), ranks.world_size)
        result = predictor.predict(rows, progress)
    else:
        result = predict_until_decided(predictor, rule, config.voting_seed, ranks, progress)
    results = ranks.gather_objects(result)
    if results is None:
        return None
    joined = join(results)
    outcome = vote(joined.predictions, test_set.tasks)
    return outcome._replace(
        figures=joined.figures,
        step_answers=joined.step_answers,
        stopped_early=rule is not None,
        passes={
            "predicted_share": len(joined.predictions) / len(test_set),
            "whole_canvas_again": joined.whole_canvas_again / max(len(joined.predictions), 1),
        },
    )


def stopping_rule(config: EvalConfig) -> StoppingRule | None:
    """The rule that `eval.voting` names; None where every variant votes."""
    if config.voting == "exact":
        return ExactRule()
    if config.voting == "sequential":
        return SequentialRule(config.voting_error, min_share=config.voting_min_share)
    return None


def vote(predictions: Predictions, tasks: Sequence[Task]) -> Outcome:
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
    return Outcome(predictions, rankings, score(rankings, tasks), None, None, False, {})


def metrics(outcome: Outcome) -> dict[str, float]:
    """The outcome's figures by name, as metrics files and W&B show them.

    Where voting stopped early, places beyond the first two are not what they would be, and
    accuracies over the variants that were predicted lean towards the inputs that are in doubt.
    """
    figures: dict[str, float] = {}
    places = [k for k in PASS_AT if k <= ATTEMPTS or not outcome.stopped_early]
    if outcome.scores is not None:
        over = outcome.scores
        figures |= {f"pass@{k}": over.over_tasks[k] for k in places}
        figures |= {f"pass@{k}_test_inputs": over.over_test_inputs[k] for k in places}
    is_fair = not outcome.stopped_early
    if is_fair and outcome.figures is not None and outcome.figures.num_scored:
        figures |= outcome.figures.means()
    return figures | dict(outcome.passes)
