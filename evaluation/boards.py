"""Answers to puzzles on boards (N-Queens, Sudoku): predict, and score by the rules as well.

A board has no variants that vote. Besides the accuracy against the stored solution, an answer is
scored by what matters: is it valid, and does it keep the given cells. N-Queens boards have several
right completions, so even the best answer is often not the stored one: `exact_ceiling` is the share
that the best possible answers would reach, in expectation (the Bayes ceiling).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from common.distributed import Ranks
from dataset.batches import select_test_examples
from dataset.boards import PAD, Boards, keeps_given
from dataset.loading import SegmentMaker
from dataset.rules import RULES, puzzle_of, solution_tokens
from dataset.splits import open_split
from dataset.tasks import Grid
from evaluation.figures import Measurement, StepFigures, add_figures, sum_figures
from evaluation.predict import EvalConfig, Progress
from evaluation.report import Attempt, ReportCase
from models.objective import log_stablemax
from models.steps import ImprovementSteps

REPORTED_BOARDS = 100
"""How many boards the page shows: the first ones."""


class BoardSet:
    """The test split of a dataset of boards; open once, predict often."""

    def __init__(self, dataset_path: Path, max_variants: int | None) -> None:
        self.split = open_split(dataset_path, "test")
        self.examples = select_test_examples(self.split, max_variants)
        self.puzzle = puzzle_of(dataset_path)
        self.colours = solution_tokens(dataset_path, self.split.metadata.vocab_size)

    def __len__(self) -> int:
        return len(self.examples.rows)


class BoardAnswers(NamedTuple):
    """What a model answered, board by board."""

    inputs: Boards
    labels: Boards
    answers: npt.NDArray[np.uint8]
    """[N, S, cells] after each step."""
    confidence: npt.NDArray[np.float32]
    """[N] mean probability of the last answer's tokens."""
    figures: StepFigures
    puzzle: str | None

    def save(self, path: Path) -> None:
        """Write the arrays to an .npz file."""
        np.savez_compressed(
            path,
            inputs=self.inputs,
            labels=self.labels,
            answers=self.answers,
            confidence=self.confidence,
        )


def answer_boards(
    steps: ImprovementSteps,
    board_set: BoardSet,
    config: EvalConfig,
    ranks: Ranks,
    progress: Progress | None = None,
) -> BoardAnswers | None:
    """Answer this rank's share; the main rank gets those of all ranks, in order, others None."""
    mine = np.arange(ranks.rank, len(board_set), ranks.world_size)
    batches: Iterable[npt.NDArray[np.int64]] = [
        mine[start : start + config.batch_size] for start in range(0, len(mine), config.batch_size)
    ]
    if progress:
        batches = progress(batches, -(-len(mine) // config.batch_size))
    maker = SegmentMaker(board_set.split, steps.device)
    parts = [_answer_batch(steps, board_set, maker, rows, config.diagnostics) for rows in batches]
    shares = ranks.gather_objects(parts)
    if shares is None:
        return None
    parts = [part for share in shares for part in share]
    # The shares are interleaved: back to the order of the split.
    order = np.argsort(
        np.concatenate(
            [np.arange(r, len(board_set), ranks.world_size) for r in range(ranks.world_size)]
        )
    )
    inputs, labels, answers, confidence = (
        np.concatenate([part[column] for part in parts])[order] for column in range(4)
    )
    figures = add_figures([part.figures for part in parts])
    return BoardAnswers(inputs, labels, answers, confidence, figures, board_set.puzzle)


def _answer_batch(
    steps: ImprovementSteps,
    board_set: BoardSet,
    maker: SegmentMaker,
    rows: npt.NDArray[np.int64],
    diagnostics: bool,
) -> BoardAnswers:
    """Answer the given rows of the set."""
    examples = board_set.examples.take(rows)
    selected = maker.source.select(examples.rows, np.zeros((len(rows), 2)))
    host_segment = maker.take(selected, np.arange(len(rows)), examples.puzzle_ids, rows, None)
    segment = maker.to_device(host_segment)
    measured = Measurement(segment, steps, board_set.colours, diagnostics)
    shown = []
    with torch.no_grad():
        for step in steps.run(segment.inputs, segment.puzzle_ids, with_reference=diagnostics):
            answer = step.logits.argmax(dim=-1)
            measured.add(answer, step, None)
            shown.append(answer.to(torch.uint8))
        confidence = log_stablemax(step.logits).amax(dim=-1).exp().mean(dim=-1)
    return BoardAnswers(
        segment.inputs.to(torch.uint8).cpu().numpy(),
        segment.labels.to(torch.uint8).cpu().numpy(),
        torch.stack(shown, dim=1).cpu().numpy(),
        confidence.cpu().numpy(),
        sum_figures(measured.values().cpu().numpy(), diagnostics),
        board_set.puzzle,
    )


def board_metrics(found: BoardAnswers) -> dict[str, float]:
    """Figures by name: against the stored solutions, and by the puzzle's rules after each step.

    `solved` is the share of answers that are valid and keep what is given.
    """
    metrics = found.figures.means() if found.figures.num_scored else {}
    if found.puzzle is None:
        return metrics
    rules = RULES[found.puzzle]
    for s in range(1, found.answers.shape[1] + 1):
        answers = found.answers[:, s - 1]
        valid, kept = rules.is_valid(answers), keeps_given(found.inputs, answers)
        metrics[f"solved_step{s}"] = float((valid & kept).mean())
    return metrics | {
        "solved": metrics[f"solved_step{s}"],
        "valid": float(valid.mean()),
        "keeps_given": float(kept.mean()),
        "exact_ceiling": float(rules.exact_ceiling(found.inputs).mean()),
    }


def board_cases(found: BoardAnswers) -> list[ReportCase]:
    """The first boards, for the page; an answer that is right by the rules counts as right."""
    side = round(found.inputs.shape[1] ** 0.5)
    answers = found.answers[:, -1]
    is_known = found.labels != PAD
    has_solution = is_known.any(axis=1)
    is_right = np.all((answers == found.labels) | ~is_known, axis=1) & has_solution
    if found.puzzle is not None:
        is_right |= RULES[found.puzzle].is_valid(answers) & keeps_given(found.inputs, answers)
    # PAD and empty cells are black, what stands on the board has ARC's colours.
    grids = np.maximum(found.answers, 1).reshape(*found.answers.shape[:2], side, side) - 1
    questions, solutions = (
        np.maximum(boards, 1).reshape(-1, side, side) - 1 for boards in (found.inputs, found.labels)
    )

    def solution(index: int) -> Grid | None:
        if is_right[index]:
            return grids[index, -1]
        return solutions[index] if has_solution[index] else None

    return [
        ReportCase(
            task_id=f"board {index + 1}",
            test_index=0,
            demonstrations=(),
            test_input=questions[index],
            solution=solution(index),
            attempts=(Attempt(grids[index, -1], 1, float(found.confidence[index])),),
            step_answers=tuple(grids[index]),
            num_attempts=1,
        )
        for index in range(min(len(answers), REPORTED_BOARDS))
    ]
