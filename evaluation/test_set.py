"""The split that is scored: which examples are predicted, and what each of them means.

That is a dataset's test split, or its validation split, which holds the test inputs of tasks that
are not in the public test set: what is chosen while training need not be chosen by the latter.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from common.puzzles import PuzzleFactors
from dataset.augmentation import parse_variant_names, transformed_sizes
from dataset.batches import select_test_examples
from dataset.boards import puzzle_of, solution_tokens
from dataset.canvas import VOCAB_SIZE, Canvases, canvas_side, grid_mask, read_back
from dataset.compact import CompactSplit
from dataset.factors import puzzle_factors
from dataset.splits import open_split, require_square
from dataset.storage import fingerprint, load_identifiers, puzzles_file
from dataset.task_files import load_tasks
from dataset.tasks import NUM_COLOURS, Task
from dataset.windows import Boxes, boxes_around

Rows = npt.NDArray[np.int64]
"""Rows of a `TestSet`."""


class TestSet:
    """What is predicted; open once, predict often.

    Args:
        path: of the dataset.
        max_variants: variants of each task that are predicted, the original first; None: all.
        split_name: "validation" or "test".
    """

    __test__ = False  # Its name does not make it one of pytest's.
    boxes: Boxes | None = None
    """[N, 4] the window that each row may be predicted in; None: only on the whole canvas."""

    def __init__(self, path: Path, max_variants: int | None, split_name: str = "test") -> None:
        self.path = path
        self.split_name = split_name
        self.split = open_split(path, split_name)
        self.examples = select_test_examples(self.split, max_variants)
        self.fingerprint = fingerprint(path, self.split.metadata)
        self.colours = solution_tokens(path, self.split.metadata.vocab_size)
        self.is_followed = np.ones(len(self), dtype=bool)
        """[N] whether the answers after each step are kept, not only the last."""

    def __len__(self) -> int:
        return len(self.examples.rows)

    def puzzle_factors(self) -> PuzzleFactors:
        """Of which task each puzzle is a variant, and which."""
        return puzzle_factors(self.path, self.split.metadata)

    def answer_cells(self, canvases: Canvases) -> npt.NDArray[np.bool_]:
        """Which cells of predicted canvases [n, cells] belong to the answer."""
        return np.ones(canvases.shape, dtype=bool)


class BoardTestSet(TestSet):
    """Boards: nothing votes, and an answer is judged by its puzzle's rules too."""

    def __init__(self, path: Path, max_variants: int | None, split_name: str = "test") -> None:
        super().__init__(path, max_variants, split_name)
        self.puzzle = puzzle_of(path)


class ArcTestSet(TestSet):
    """Tasks whose variants vote."""

    def __init__(self, path: Path, max_variants: int | None, split_name: str = "test") -> None:
        super().__init__(path, max_variants, split_name)
        require_square(self.split, "evaluation")
        names = load_identifiers(path, self.split.metadata.num_puzzle_identifiers)
        task_ids, variants = parse_variant_names([names[i] for i in self.examples.puzzle_ids])
        self.task_ids = np.array(task_ids)
        self.dihedrals = variants.dihedrals.astype(np.int8)
        self.permutations = variants.permutations
        identity = (self.permutations == np.arange(NUM_COLOURS)).all(axis=1)
        self.is_followed = identity & (self.dihedrals == 0)  # The inputs that are unaugmented.
        self.tasks = load_tasks(path / puzzles_file(split_name))
        self._check_against_tasks()
        if isinstance(self.split, CompactSplit):
            origins = np.zeros((len(self), 2), dtype=np.int64)
            side = canvas_side(self.split.metadata.seq_len)
            self.boxes = boxes_around(origins, self._window_extents(), side)

    def answer_cells(self, canvases: Canvases) -> npt.NDArray[np.bool_]:
        """The cells of the grids that canvases [n, cells] show; none where one shows no grid."""
        return grid_mask(canvases)

    def reveal(self, tasks: Sequence[Task]) -> None:
        """Take the solutions of a test set that was built without: `tasks` are the same, with them.

        They say how good the answers are. What there was before could not tell of them.
        """
        assert [task.task_id for task in tasks] == [task.task_id for task in self.tasks], "the same"
        assert isinstance(self.split, CompactSplit), "the layout that keeps its labels in memory"
        self.tasks = list(tasks)
        self.split = self.split.with_labels([pair.output for task in tasks for pair in task.test])

    def _test_inputs(self) -> list[tuple[str, int]]:
        """Task and test input of each row."""
        rows = zip(self.task_ids.tolist(), self.examples.test_indices.tolist(), strict=True)
        return list(rows)

    def _check_against_tasks(self) -> None:
        """The split and its file of tasks must mean the same ones, or scores mean nothing."""
        split, file = f"{self.split_name} split", puzzles_file(self.split_name)
        named = self._test_inputs()
        inputs = {
            (task.task_id, index): pair.input
            for task in self.tasks
            for index, pair in enumerate(task.test)
        }
        advice = "the files are of different datasets, or of a builder with other puzzle names"
        if different := set(named) ^ set(inputs):
            task_id, index = min(different)
            raise UserError(
                f"{self.path}: test input {index} of task '{task_id}' is in only one of the "
                f"{split} and {file}; {advice}"
            )
        for row in np.flatnonzero(self.is_followed):
            (canvas,), _ = self.split.read(self.examples.rows[[row]])
            shown = read_back(canvas)
            if shown is None or not np.array_equal(shown, inputs[named[row]]):
                raise UserError(
                    f"{self.path}: test input {named[row][1]} of task '{named[row][0]}' is "
                    f"another in the {split} than in {file}; {advice}"
                )

    def _window_extents(self) -> npt.NDArray[np.int64]:
        """Rows and columns [N, 2] that a window must hold: of the input and of known outputs.

        The solution plays no part: only what the demonstrations show.
        """
        upright = {
            (task.task_id, index): np.maximum(pair.input.shape, _largest_demonstrated_output(task))
            for task in self.tasks
            for index, pair in enumerate(task.test)
        }
        extents = np.array([upright[test_input] for test_input in self._test_inputs()])
        return transformed_sizes(extents, self.dihedrals)


def split_while_training(path: Path) -> str:
    """Which split of a dataset is scored while training on it: validation where there is one."""
    return "validation" if (path / "validation").is_dir() else "test"


AnyTestSet = ArcTestSet | BoardTestSet


def open_test_set(
    path: Path, max_variants: int | None, canvas: str, split_name: str = "test"
) -> AnyTestSet:
    """Tasks whose variants vote, or boards.

    Args:
        path: of the dataset.
        max_variants: see `TestSet`.
        canvas: "whole" or "window", see `PredictConfig.resolved`.
        split_name: "validation" or "test", see there too.

    Raises:
        UserError: a part is missing, damaged or does not fit the others, or windows or a validation
            split are asked for where there are none.
    """
    if split_name == "validation" and not (path / split_name).is_dir():
        raise UserError(
            f"eval.split=validation: there is no folder {path / split_name}; use eval.split=test, "
            f"or build the dataset with 'python -m dataset.build_arc_dataset --validation-tasks N'"
        )
    # Boards of other builders do not say whose rules hold, but their vocabulary is another.
    is_arc = open_split(path, split_name).metadata.vocab_size == VOCAB_SIZE
    is_task = puzzle_of(path) is None and is_arc
    kind: type[ArcTestSet | BoardTestSet] = ArcTestSet if is_task else BoardTestSet
    test_set = kind(path, max_variants, split_name)
    if canvas == "window" and test_set.boxes is None:
        raise UserError(
            f"eval.canvas=window needs ARC tasks in the compact layout, as {path} has not: use "
            f"eval.canvas=whole"
        )
    return test_set


def _largest_demonstrated_output(task: Task) -> npt.NDArray[np.int64]:
    shapes = [pair.output.shape for pair in task.train if pair.output is not None]
    return np.max([(0, 0), *shapes], axis=0)
