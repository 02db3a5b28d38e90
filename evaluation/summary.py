"""From what a model answered to metrics by name, whatever the test set."""

from evaluation.boards import board_metrics
from evaluation.metrics import mean_metrics
from evaluation.predict import Answers
from evaluation.predictions import predictions_of
from evaluation.test_set import ArcTestSet, BoardTestSet
from evaluation.voting import count_votes, score

HEADLINES = (
    "pass@1",
    "pass@2",
    "solved",
    "valid",
    "keeps_given",
    "exact_accuracy",
    "exact_ceiling",
    "loss",
)
"""Metrics that say most: on the page, and in the log."""


def headline(metrics: dict[str, float]) -> str:
    """In one line."""
    shown = [f"{key} {metrics[key]:.3f}" for key in HEADLINES if key in metrics]
    return ", ".join(shown) or "no known solutions"


def summarise(test_set: ArcTestSet | BoardTestSet, answers: Answers | None) -> dict[str, float]:
    """What single answers are like, and the votes scored or the boards judged; nothing of None."""
    if answers is None:
        return {}
    metrics = answer_metrics(answers)
    if isinstance(test_set, BoardTestSet):
        return metrics | board_metrics(test_set, answers)
    votes = count_votes(predictions_of(test_set, answers), test_set.tasks)
    scores = score(votes, test_set.tasks)
    return (scores.by_name() if scores else {}) | metrics


def answer_metrics(answers: Answers) -> dict[str, float]:
    """Means over single answers; `whole_canvas_again` is the share that outgrew their window."""
    again = answers.whole_canvas_again / max(len(answers.rows), 1)
    return mean_metrics(answers.metrics, answers.metric_names) | {"whole_canvas_again": again}
