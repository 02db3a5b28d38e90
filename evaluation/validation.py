"""The test half of any dataset: what a model answers there, and its figures."""

from pathlib import Path

from common.distributed import Ranks
from common.errors import UserError
from dataset.canvas import VOCAB_SIZE
from dataset.rules import puzzle_of
from dataset.splits import open_split
from evaluation import evaluator
from evaluation.boards import BoardAnswers, BoardSet, answer_boards, board_metrics
from evaluation.evaluator import Outcome
from evaluation.predict import EvalConfig, Progress
from evaluation.test_set import EvaluationSet
from models.steps import ImprovementSteps

TestSet = EvaluationSet | BoardSet
Answered = Outcome | BoardAnswers


def open_test_set(dataset_path: Path, config: EvalConfig) -> TestSet:
    """Tasks whose variants vote, or boards.

    Raises:
        UserError: a part is missing, damaged or does not fit the others, or is a board where the
            config is for grids.
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
    if config.canvas == "window":
        raise UserError(
            f"eval.canvas=window: boards, as those of {dataset_path}, are shown whole; use "
            f"eval.canvas=whole"
        )
    return BoardSet(dataset_path, config.max_variants)


def answer_test_set(
    steps: ImprovementSteps,
    test_set: TestSet,
    config: EvalConfig,
    canvas: str,
    ranks: Ranks,
    progress: Progress | None = None,
) -> Answered | None:
    """What the model answers, on the main rank; None elsewhere. All ranks must call it.

    Args:
        steps: the model and its loop.
        test_set: what is predicted.
        config: how.
        canvas: "whole" or "window", see `EvalConfig.canvas_for`; boards are always shown whole.
        ranks: that share the work.
        progress: shows batches, or where voting stops, test inputs.
    """
    if isinstance(test_set, BoardSet):
        return answer_boards(steps, test_set, config, ranks, progress)
    return evaluator.evaluate(steps, test_set, config, canvas, ranks, progress)


def figures_of(answered: Answered | None) -> dict[str, float]:
    """Figures by name of what `answer_test_set` returned; none of None."""
    if answered is None:
        return {}
    if isinstance(answered, BoardAnswers):
        return board_metrics(answered)
    return evaluator.metrics(answered)
