"""Answers to puzzles on boards, scored by the rules as well.

A board has no variants that vote. Besides the accuracy against the stored solution, an answer is
scored by what matters: is it valid, and does it keep the given cells. N-Queens boards and mazes may
have several right answers, so even the best one is often not the stored one: `exact_ceiling` is the
share that the best possible answers would reach, in expectation (the Bayes ceiling).
"""

import numpy as np
import numpy.typing as npt

from common.tokens import PAD
from dataset.boards import keeps_given, rules_of
from evaluation.predict import Answers
from evaluation.test_set import BoardTestSet


def board_metrics(test_set: BoardTestSet, answers: Answers) -> dict[str, float]:
    """Scores by the puzzle's rules after each step; none where the puzzle is not known.

    `solved` is the share of answers that are valid and keep what is given.
    """
    if test_set.puzzle is None:
        return {}
    rules = rules_of(test_set.puzzle)
    inputs, _ = test_set.split.read(test_set.examples.rows[answers.rows])
    metrics = {}
    for s in range(1, answers.steps.shape[1] + 1):
        boards = answers.steps[:, s - 1]
        valid, kept = rules.is_valid(inputs, boards), keeps_given(rules, inputs, boards)
        metrics[f"solved_step{s}"] = float((valid & kept).mean())
    return metrics | {
        "solved": metrics[f"solved_step{s}"],
        "valid": float(valid.mean()),
        "keeps_given": float(kept.mean()),
        "exact_ceiling": float(rules.exact_ceiling(inputs).mean()),
    }


def is_solved(test_set: BoardTestSet, answers: Answers) -> npt.NDArray[np.bool_]:
    """Which last answers [n] are the stored solution, or right by the rules."""
    inputs, labels = test_set.split.read(test_set.examples.rows[answers.rows])
    is_known = labels != PAD
    solved = np.all((answers.canvases == labels) | ~is_known, axis=1) & is_known.any(axis=1)
    if test_set.puzzle is not None:
        rules = rules_of(test_set.puzzle)
        valid = rules.is_valid(inputs, answers.canvases)
        solved |= valid & keeps_given(rules, inputs, answers.canvases)
    return solved
