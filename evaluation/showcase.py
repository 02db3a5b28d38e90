"""A few test inputs, always the same, whose answers are shown after every evaluation of a run.

They are pictures in `RUN/answers/step_N/`, and a table of how they were answered: for the eye, for
W&B, and for a resumed run that records its history again.

    question   step 1   step 2  ...   solution   attempt 1   attempt 2
               target   target                   votes       votes
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from common.errors import UserError
from common.files import atomic_directory, named_in_errors, remove_directory
from common.media import Media, Table
from common.tokens import PAD
from dataset.canvas import Canvases, canvas_side, read_back
from dataset.tasks import Grid
from evaluation.grids import visible
from evaluation.metrics import targets_at_test_time
from evaluation.predict import Answers
from evaluation.predictions import predictions_of
from evaluation.strips import Frame, draw_strip
from evaluation.submission import ATTEMPTS
from evaluation.test_set import ArcTestSet, BoardTestSet, Rows
from evaluation.voting import rank_answers, solution_place
from models.supervision import SupervisionConfig

FOLDER = "answers"
TABLE_FILE = "table.json"
NUM_SHOWN = 8
COLUMNS = ("test input", "attempt 1, votes", "attempt 2, votes", "votes", "solution is attempt")

NOT_WHAT_WAS_RECORDED = (OSError, ValueError, SyntaxError, TypeError)
"""What comes of reading pictures and a table that are not there, or damaged."""


@dataclass(frozen=True)
class Ranked:
    """The first answers to a test input."""

    grids: Sequence[Grid]
    votes: Sequence[int]
    total: int
    place: int | None
    """Of the solution among all answers, from 1; None: it is not there, or hidden."""


class Showcase:
    """The test inputs that a run shows, and what it has shown.

    Args:
        run_dir: of the run; a folder in it holds the pictures.
        test_set: that is evaluated.
        supervision: of the training, which says what steps are trained towards.
        num_steps: S.
        task_ids: the tasks; None for a few, evenly spread; of boards the first ones.

    Raises:
        UserError: a task is not in the test set.
    """

    def __init__(
        self,
        run_dir: Path,
        test_set: ArcTestSet | BoardTestSet,
        supervision: SupervisionConfig,
        num_steps: int,
        task_ids: Sequence[str] | None,
    ) -> None:
        self.folder = run_dir / FOLDER
        self.test_set = test_set
        self.supervision = supervision
        self.num_steps = num_steps
        self.rows = _chosen_rows(test_set, task_ids)

    def record(self, step: int, answers: Answers) -> None:
        """Draw what was answered at an optimizer step."""
        if not len(self.rows):
            return
        path = self._path_of(step)
        if path.exists():  # Of a process that was lost before it recorded the score.
            remove_directory(path)
        with atomic_directory(path) as folder:
            table = []
            for number, row in enumerate(self.rows):
                image, line = self._show(row, answers)
                with named_in_errors(folder / f"{number}.png"):
                    image.save(folder / f"{number}.png", optimize=True)
                table.append(line)
            (folder / TABLE_FILE).write_text(json.dumps(table))

    def media(self, step: int) -> Media:
        """What was recorded at a step, for W&B; nothing where nothing was, or it is damaged."""
        folder = self._path_of(step)
        images: list[Image.Image] = []
        try:
            lines = json.loads((folder / TABLE_FILE).read_text())
            for number, (name, *_) in enumerate(lines):
                with Image.open(folder / f"{number}.png") as image:
                    image.load()
                image.info["caption"] = name
                images.append(image)
        except NOT_WHAT_WAS_RECORDED:
            return {}
        rows = [(*line, image) for line, image in zip(lines, images, strict=True)]
        return {"answers/table": Table((*COLUMNS, "steps"), rows), "answers/steps": images}

    def _path_of(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _show(self, row: int, answers: Answers) -> tuple[Image.Image, list[Any]]:
        """The picture of a test input, and its line of the table."""
        test_set = self.test_set
        inputs, labels = test_set.split.read(test_set.examples.rows[[row]])
        steps = answers.steps[np.searchsorted(answers.followed, row)]
        if isinstance(test_set, ArcTestSet):
            index = int(test_set.examples.test_indices[row])
            name = f"{test_set.task_ids[row]}, test input {index + 1}"
            question, solution = read_back(inputs[0]), read_back(labels[0])
            ranked = self._rank(row, answers, solution)
            step_grids = [read_back(canvas) for canvas in steps]
            shape = None if solution is None else solution.shape
        else:
            name = f"board {row + 1}"
            question = _board(inputs[0])
            solution = None if (labels[0] == PAD).all() else _board(labels[0])
            ranked = None
            step_grids = [_board(canvas) for canvas in steps]
            shape = question.shape
        line: list[Any] = [name, None, None, None, None]
        attempts = []
        if ranked is not None:
            counts = [int(votes) for votes in ranked.votes]
            first, second, *_ = [*counts, 0, 0]
            line = [name, first, second, ranked.total, ranked.place]
            attempts = [
                Frame(f"attempt {n}", grid, note=f"{count} of {ranked.total} votes")
                for n, (grid, count) in enumerate(zip(ranked.grids, counts, strict=True), 1)
            ]
        targets: list[Grid | None] = [None] * len(steps)
        if solution is not None and shape is not None:
            targets = [self._shown(canvas, shape) for canvas in self._targets(row, inputs, labels)]
        frames = [
            Frame("question", question),
            *(
                Frame(f"step {s}", grid, below=target)
                for s, (grid, target) in enumerate(zip(step_grids, targets, strict=True), 1)
            ),
            Frame("solution", solution, empty="hidden"),
            *attempts,
        ]
        return draw_strip(frames), line

    def _targets(self, row: int, inputs: Canvases, labels: Canvases) -> Canvases:
        """What the steps of a row are trained towards [S, cells]; below 0 where nothing counts."""
        question, solution = (torch.from_numpy(c.astype(np.int64)) for c in (inputs, labels))
        targets = targets_at_test_time(
            self.supervision,
            self.num_steps,
            question,
            solution,
            torch.tensor([row]),
            self.test_set.colours,
        )
        return targets[0, 1:].numpy()

    def _shown(self, canvas: Canvases, shape: tuple[int, ...]) -> Grid:
        """A target as a grid of the solution's shape, blank where it has no colour."""
        if isinstance(self.test_set, BoardTestSet):
            return _board(canvas)
        return visible(canvas, shape)

    def _rank(self, row: int, answers: Answers, solution: Grid | None) -> Ranked:
        """The votes for a test input's answers, of all its variants."""
        test_set = self.test_set
        assert isinstance(test_set, ArcTestSet)
        is_same = (test_set.task_ids == test_set.task_ids[row]) & (
            test_set.examples.test_indices == test_set.examples.test_indices[row]
        )
        ranking = rank_answers(predictions_of(test_set, answers).select(is_same[answers.rows]))
        place = None if solution is None else solution_place(ranking, solution)
        is_there = place is not None and np.isfinite(place)
        return Ranked(
            ranking.grids[:ATTEMPTS],
            ranking.votes[:ATTEMPTS].tolist(),
            int(ranking.votes.sum()),
            int(place) if place is not None and is_there else None,
        )


def _chosen_rows(test_set: ArcTestSet | BoardTestSet, task_ids: Sequence[str] | None) -> Rows:
    """Rows of the unaugmented test inputs that are shown."""
    followed = np.flatnonzero(test_set.is_followed)
    if not isinstance(test_set, ArcTestSet):
        if task_ids:
            raise UserError("train.show_tasks names tasks, and the test set holds boards")
        num_cells = test_set.split.metadata.seq_len
        is_square = math.isqrt(num_cells) ** 2 == num_cells  # Else nothing says how to draw it.
        return followed[: NUM_SHOWN if task_ids is None and is_square else 0]
    ids = test_set.task_ids[followed]
    if task_ids is None:
        every = np.unique(ids)
        spread = np.linspace(0, len(every) - 1, min(NUM_SHOWN, len(every)))
        # Of each its first test input.
        return followed[[np.flatnonzero(ids == every[int(place)])[0] for place in spread]]
    if unknown := set(task_ids) - set(ids.tolist()):
        raise UserError(
            f"train.show_tasks: '{min(unknown)}' is not in the {test_set.split_name} split of "
            f"{test_set.path}"
        )
    return followed[np.isin(ids, task_ids)]


def _board(canvas: Canvases) -> Grid:
    # PAD and empty cells are black, what stands on the board has ARC's colours.
    side = canvas_side(len(canvas))
    return (np.maximum(canvas, 1) - 1).reshape(side, side)
