"""The test split of a dataset, and what each of its rows means."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from dataset.augmentation import parse_variant_name, transformed_sizes
from dataset.batches import select_test_examples
from dataset.canvas import canvas_side, read_back
from dataset.splits import open_split, require_square
from dataset.storage import TEST_PUZZLES_FILE, load_identifiers
from dataset.tasks import NUM_COLOURS, Task, load_tasks
from dataset.windows import boxes_around

Rows = npt.NDArray[np.int64]
"""Rows of an `EvaluationSet`."""


class EvaluationSet:
    """The test split of a dataset and the meaning of each row; open once, predict often."""

    def __init__(self, dataset_path: Path, max_variants: int | None) -> None:
        self.split = split = open_split(dataset_path, "test")
        require_square(split, "evaluation")
        self.examples = select_test_examples(split, max_variants)
        names = load_identifiers(dataset_path)
        if len(names) != split.metadata.num_puzzle_identifiers:
            raise UserError(
                f"{dataset_path}: identifiers.json names {len(names)} puzzles, dataset.json counts "
                f"{split.metadata.num_puzzle_identifiers}: the files are of different datasets"
            )
        parsed = [parse_variant_name(names[puzzle]) for puzzle in self.examples.puzzle_ids]
        self.task_ids = np.array([task_id for task_id, _, _ in parsed])
        self.dihedrals = np.array([dihedral for _, dihedral, _ in parsed], dtype=np.int8)
        self.permutations = np.array([permutation for _, _, permutation in parsed])
        self.tasks = load_tasks(dataset_path / TEST_PUZZLES_FILE)
        self._check_against_tasks(dataset_path)
        side = canvas_side(split.metadata.seq_len)
        origins = np.zeros((len(self), 2), dtype=np.int64)
        self.boxes = boxes_around(origins, self._window_extents(), side)

    def __len__(self) -> int:
        return len(self.examples.rows)

    def _check_against_tasks(self, dataset_path: Path) -> None:
        """The split and `test_puzzles.json` must mean the same tasks, or scores mean nothing."""
        rows = zip(self.task_ids.tolist(), self.examples.test_indices.tolist(), strict=True)
        named = list(rows)
        inputs = {
            (task.task_id, index): pair.input
            for task in self.tasks
            for index, pair in enumerate(task.test)
        }
        advice = "the files are of different datasets, or of a builder with other puzzle names"
        if different := set(named) ^ set(inputs):
            task_id, index = min(different)
            raise UserError(
                f"{dataset_path}: test input {index} of task '{task_id}' is in only one of the "
                f"test split and {TEST_PUZZLES_FILE}; {advice}"
            )
        for row in np.flatnonzero(self.is_original(np.arange(len(self)))):
            (canvas,), _ = self.split.read(self.examples.rows[[row]])
            shown = read_back(canvas)
            if shown is None or not np.array_equal(shown, inputs[named[row]]):
                raise UserError(
                    f"{dataset_path}: test input {named[row][1]} of task '{named[row][0]}' is "
                    f"another in the test split than in {TEST_PUZZLES_FILE}; {advice}"
                )

    def _window_extents(self) -> npt.NDArray[np.int64]:
        """Rows and columns [N, 2] that a window must hold: of the input and of known outputs."""
        upright = {
            (task.task_id, index): np.maximum(pair.input.shape, _largest_demonstrated_output(task))
            for task in self.tasks
            for index, pair in enumerate(task.test)
        }
        rows = zip(self.task_ids.tolist(), self.examples.test_indices.tolist(), strict=True)
        extents = np.array([upright[row] for row in rows])
        return transformed_sizes(extents, self.dihedrals)

    def is_original(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of the given rows show a test input unaugmented."""
        identity = (self.permutations[rows] == np.arange(NUM_COLOURS)).all(axis=1)
        return identity & (self.dihedrals[rows] == 0)


def _largest_demonstrated_output(task: Task) -> npt.NDArray[np.int64]:
    shapes = [pair.output.shape for pair in task.train if pair.output is not None]
    return np.max([(0, 0), *shapes], axis=0)
