"""Voting over augmentations, and scores (HRM, TRM): every variant's answer, mapped back, is a vote.

For each test input the canvases are read back, the augmentation is inverted, and identical grids
are counted. Answers are ranked by votes, ties by mean confidence, and what is still equal by the
grid itself: the result depends neither on the order of the predictions nor on how they were split
over ranks.

pass@k: a test input is solved if its solution is among the first k answers; a task scores the
share of its test inputs that are solved; the result is the mean over tasks. The mean over test
inputs stands beside it, since published figures mix the two.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from einops import rearrange

from common.errors import UserError
from dataset.augmentation import INVERSE_DIHEDRAL, transform
from dataset.canvas import COLOUR_OFFSET, canvas_side, grid_mask
from dataset.tasks import NUM_COLOURS, Grid, Task
from evaluation.predictions import Predictions

TestInput = tuple[str, int]
"""Task id and index of one of its test inputs."""

PASS_AT = (1, 2, 5, 10, 100, 1000)
OUTSIDE = NUM_COLOURS
"""Marks the cells of a square that are not part of the grid at its top-left."""


class Voters(NamedTuple):
    """The predictions that voted for an answer to one test input: who said what."""

    variant: npt.NDArray[np.int64]
    """[n] place of the variant among those predicted, by identifier: 0 is the original."""
    answer: npt.NDArray[np.int64]
    """[n] its answer, as a row of the ranking."""
    confidence: npt.NDArray[np.float64]
    """[n]"""
    cell_order: npt.NDArray[np.int64]
    """[K] place of each row of the ranking among the answers ordered by their cells."""


class Ranking(NamedTuple):
    """Distinct answers to one test input, best first."""

    grids: list[Grid]
    votes: npt.NDArray[np.int64]
    """[K] predictions that gave each answer."""
    confidences: npt.NDArray[np.float64]
    """[K] mean confidence of those predictions."""
    voters: Voters | None = None
    """None where only the result is known."""


Votes = dict[TestInput, Ranking]
"""What was counted: the answers to every test input that has predictions."""


def count_votes(predictions: Predictions, tasks: Sequence[Task]) -> Votes:
    """Count and rank the answers to every test input.

    Raises:
        UserError: the predictions are of other tasks.
    """
    ids, indices = predictions.task_id, predictions.test_index
    order = np.lexsort((indices, ids))
    changes = (ids[order][1:] != ids[order][:-1]) | (indices[order][1:] != indices[order][:-1])
    ends = [0, *(np.flatnonzero(changes) + 1).tolist(), len(order)]
    of_inputs = [order[start:end] for start, end in pairwise(ends) if end > start]
    # One test input at a time: vectorised over its variants, in the memory of its variants.
    votes = {
        (str(ids[rows[0]]), int(indices[rows[0]])): rank_answers(predictions.select(rows))
        for rows in of_inputs
    }
    if unknown := votes.keys() - {(t.task_id, i) for t in tasks for i in range(len(t.test))}:
        task_id, index = min(unknown)
        raise UserError(
            f"test input {index} of task '{task_id}' was predicted and is not in the test set: "
            f"data.path must name the dataset that was predicted, and eval.split its split"
        )
    return votes


def rank_answers(predictions: Predictions) -> Ranking:
    """Rank the answers to one test input; canvases that show no grid do not vote."""
    squares = invert_canvases(
        predictions.canvas, predictions.dihedral, predictions.colour_permutation
    )
    _, variant = np.unique(predictions.identifier, return_inverse=True)
    shown = squares[:, 0, 0] != OUTSIDE
    squares, confidence = squares[shown], predictions.confidence[shown].astype(np.float64)
    side = squares.shape[1]
    # A row of bytes is one item, so that equal squares are equal items.
    items = np.ascontiguousarray(squares).reshape(len(squares), side * side).view(f"V{side * side}")
    distinct, answer_of = np.unique(items.ravel(), return_inverse=True)
    votes, means = _tally(answer_of, confidence, len(distinct))
    best_first = np.lexsort((np.arange(len(distinct)), -means, -votes))
    answers = distinct[best_first].view(np.uint8).reshape(-1, side, side)
    place = np.empty_like(best_first)
    place[best_first] = np.arange(len(distinct))
    voters = Voters(variant[shown], place[answer_of], confidence, best_first)
    return Ranking(
        [_crop(square) for square in answers], votes[best_first], means[best_first], voters
    )


def _tally(
    answer: npt.NDArray[np.int64], confidence: npt.NDArray[np.float64], num_answers: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Votes [K] for each answer, and the mean confidence [K] of those who gave it."""
    votes = np.bincount(answer, minlength=num_answers)
    # Sorted before they are summed: the mean is then the same to the last bit in any order.
    order = np.argsort(confidence)
    total = np.bincount(answer[order], weights=confidence[order], minlength=num_answers)
    return votes, total / np.maximum(votes, 1)


def place_among_first(ranking: Ranking, row: int, num_variants: int) -> float:
    """Place, from 1, that a row of the ranking would have if only the first variants had voted.

    Infinite where none of these gave that answer.
    """
    assert ranking.voters is not None, "who voted is not known"
    variant, answer, confidence, cell_order = ranking.voters
    votes_now = variant < num_variants
    votes, means = _tally(answer[votes_now], confidence[votes_now], len(ranking.grids))
    if not votes[row]:
        return float("inf")
    order = np.lexsort((cell_order, -means, -votes))
    return float(np.flatnonzero(order == row)[0] + 1)


def invert_canvases(
    canvases: npt.NDArray[np.uint8],
    dihedrals: npt.NDArray[np.int8],
    permutations: npt.NDArray[np.uint8],
) -> npt.NDArray[np.uint8]:
    """Read back canvases [N, cells] and undo each one's augmentation.

    Returns [N, side, side]: the task's own colours with the grid at the top-left, OUTSIDE around
    it; OUTSIDE everywhere where a canvas shows no grid.
    """
    side = canvas_side(canvases.shape[1])
    inside = grid_mask(canvases)
    inverse = np.argsort(permutations, axis=1).astype(np.uint8)
    colours = np.where(inside, canvases - np.uint8(COLOUR_OFFSET), np.uint8(0))
    colours = np.take_along_axis(inverse, colours, axis=1)
    cells = np.where(inside, colours, np.uint8(OUTSIDE))
    squares = rearrange(cells, "n (row col) -> n row col", row=side)
    inverted = np.full_like(squares, OUTSIDE)
    for dihedral in np.unique(dihedrals):
        rows = np.flatnonzero(dihedrals == dihedral)
        turned = transform(squares[rows], INVERSE_DIHEDRAL[dihedral])
        inverted[rows] = _move_to_top_left(turned)
    return inverted


def _move_to_top_left(squares: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Shift each square [N, side, side] so that its grid starts in the first row and column."""
    side = squares.shape[1]
    shown = squares != OUTSIDE
    top, left = shown.any(axis=2).argmax(axis=1), shown.any(axis=1).argmax(axis=1)
    padded = np.pad(squares, ((0, 0), (0, side - 1), (0, side - 1)), constant_values=OUTSIDE)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    return windows[np.arange(len(squares)), top, left]


def _crop(square: npt.NDArray[np.uint8]) -> Grid:
    shown = square != OUTSIDE
    return square[: shown[:, 0].sum(), : shown[0].sum()].copy()


class Scores(NamedTuple):
    """How often the solution is among the first k answers, where it is known, and over how many."""

    num_tasks: int
    num_test_inputs: int
    over_tasks: dict[int, float]
    """k -> mean over tasks of the share of solved test inputs."""
    over_test_inputs: dict[int, float]
    """k -> share of solved test inputs."""

    def by_name(self) -> dict[str, float]:
        """As metrics files and W&B show them."""
        over_inputs = {f"pass@{k}_test_inputs": self.over_test_inputs[k] for k in PASS_AT}
        return {f"pass@{k}": self.over_tasks[k] for k in PASS_AT} | over_inputs


def score(votes: Mapping[TestInput, Ranking], tasks: Sequence[Task]) -> Scores | None:
    """Score every test input with a known solution; None if no solution is known.

    A test input without predictions counts as unsolved.
    """
    places = solution_places(votes, tasks)
    if not places:
        return None
    flat = [place for of_task in places.values() for place in of_task]
    return Scores(
        len(places),
        len(flat),
        over_tasks={k: float(np.mean([*shares_within(places, k).values()])) for k in PASS_AT},
        over_test_inputs={k: float(np.mean([place <= k for place in flat])) for k in PASS_AT},
    )


def solution_places(
    votes: Mapping[TestInput, Ranking], tasks: Sequence[Task]
) -> dict[str, list[float]]:
    """For each task, the places of those of its solutions that are known; none without such."""
    places = {
        task.task_id: [
            solution_place(votes.get((task.task_id, index)), pair.output)
            for index, pair in enumerate(task.test)
            if pair.output is not None
        ]
        for task in tasks
    }
    return {task_id: of_task for task_id, of_task in places.items() if of_task}


def shares_within(places: Mapping[str, Sequence[float]], k: int) -> dict[str, float]:
    """For each task, the share of its test inputs whose solution is among the first k answers."""
    return {task: float(np.mean([p <= k for p in of_task])) for task, of_task in places.items()}


def solution_place(ranking: Ranking | None, solution: Grid) -> float:
    """Place of the solution among the answers, counted from 1; infinite if it is not there."""
    for place, grid in enumerate(ranking.grids if ranking else [], start=1):
        if np.array_equal(grid, solution):
            return place
    return float("inf")
