"""The test half of any dataset, and its figures during training."""

from pathlib import Path

from common.distributed import Ranks
from common.errors import UserError
from dataset.canvas import VOCAB_SIZE
from dataset.rules import puzzle_of
from dataset.splits import open_split
from evaluation import evaluator
from evaluation.boards import BoardSet, answer_boards, board_metrics
from evaluation.predict import EvalConfig
from evaluation.test_set import EvaluationSet
from models.steps import ImprovementSteps

TestSet = EvaluationSet | BoardSet


def open_test_set(dataset_path: Path, config: EvalConfig) -> TestSet:
    """Tasks whose variants vote, or boards.

    Raises:
        UserError: a part is missing, damaged or does not fit the others, or asks boards to vote.
    """
    # Boards of other builders do not say whose rules hold, but their vocabulary is another.
    is_arc = open_split(dataset_path, "test").metadata.vocab_size == VOCAB_SIZE
    if puzzle_of(dataset_path) is None and is_arc:
        return EvaluationSet(dataset_path, config.max_variants)
    if config.voting != "full":
        raise UserError(
            f"eval.voting={config.voting}: nothing votes on boards, as those of {dataset_path}; "
            f"use eval.voting=full"
        )
    return BoardSet(dataset_path, config.max_variants)


def measure(
    steps: ImprovementSteps, test_set: TestSet, config: EvalConfig, canvas: str, ranks: Ranks
) -> dict[str, float] | None:
    """The model's figures by name on the main rank, None elsewhere; all ranks must call it.

    Args:
        steps: the model and its loop.
        test_set: what is predicted.
        config: how.
        canvas: "whole" or "window", see `EvalConfig.canvas_for`; boards are always shown whole.
        ranks: that share the work.
    """
    if isinstance(test_set, BoardSet):
        found = answer_boards(steps, test_set, config, ranks)
        return None if found is None else board_metrics(found)
    outcome = evaluator.evaluate(steps, test_set, config, canvas, ranks)
    return None if outcome is None else evaluator.metrics(outcome)
