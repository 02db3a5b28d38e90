"""From a dataset on disk to batches of numpy arrays.

Sampling for training follows TRM: an epoch permutes the groups; each group gives one random
variant, whose pairs are all appended, shuffled, until the global batch is full. The order is a
pure function of (seed, pass number), so a run resumes at its exact batch, on any number of ranks.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from common.errors import UserError
from common.settings import AnyPath, Settings
from dataset.storage import BLANK_IDENTIFIER, PuzzleSplit


class DataConfig(Settings):
    """Which dataset, and how an epoch is laid out."""

    path: AnyPath | None = Field(description="dataset folder, as the builder wrote it")
    epochs_per_pass: int = Field(
        ge=1,
        description="epochs whose group orders are concatenated before they are cut into batches; "
        "the partial batch at the end of a pass is dropped",
    )


class Batch(NamedTuple):
    """One rank's share of a global batch."""

    inputs: npt.NDArray[np.uint8]
    """[B, L] tokens."""
    labels: npt.NDArray[np.uint8]
    """[B, L] tokens, PAD where there is nothing to predict."""
    puzzle_ids: npt.NDArray[np.int32]
    """[B] identifiers."""


class TrainingBatches:
    """Endless iterator over this rank's batches.

    `position` is the pass and the batch within it that comes next; setting it goes there.
    """

    def __init__(
        self,
        split: PuzzleSplit,
        global_batch_size: int,
        epochs_per_pass: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if global_batch_size % world_size:
            raise UserError(
                f"train.global_batch_size={global_batch_size} is not divisible by the {world_size} "
                f"ranks: choose a multiple of {world_size}"
            )
        # The fewest examples that a pass can hold: every group gives its smallest variant.
        sizes = np.diff(split.puzzle_indices)
        fewest = int(np.minimum.reduceat(sizes, split.group_indices[:-1]).sum())
        if fewest * epochs_per_pass < global_batch_size:
            raise UserError(
                f"data.epochs_per_pass={epochs_per_pass}: a pass over {split.path} holds "
                f"{fewest * epochs_per_pass} examples, fewer than train.global_batch_size="
                f"{global_batch_size}; set data.epochs_per_pass to at least "
                f"{-(-global_batch_size // fewest)}"
            )
        self.split = split
        self.global_batch_size = global_batch_size
        self.epochs_per_pass = epochs_per_pass
        self.seed = seed
        local = global_batch_size // world_size
        self._slice = slice(rank * local, (rank + 1) * local)
        self.position = (0, 0)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            pass_index, first = self.position
            examples, puzzles = self._draw_pass(pass_index)
            for index in range(first, len(examples)):
                rows, of_puzzles = examples[index][self._slice], puzzles[index][self._slice]
                inputs, labels = self.split.read(rows)
                self.position = (pass_index, index + 1)
                yield Batch(inputs, labels, self.split.puzzle_identifiers[of_puzzles])
            self.position = (pass_index + 1, 0)

    def _draw_pass(
        self, pass_index: int
    ) -> tuple[list[npt.NDArray[np.int64]], list[npt.NDArray[np.int64]]]:
        """Example rows and puzzle rows of each full global batch of one pass."""
        rng = np.random.default_rng([self.seed, pass_index])
        group_indices, puzzle_indices = self.split.group_indices, self.split.puzzle_indices
        num_groups = len(group_indices) - 1
        groups = np.concatenate([rng.permutation(num_groups) for _ in range(self.epochs_per_pass)])
        chosen = rng.integers(group_indices[groups], group_indices[groups + 1])
        examples: list[npt.NDArray[np.int64]] = []
        puzzles: list[npt.NDArray[np.int64]] = []
        parts: list[tuple[npt.NDArray[np.int64], int]] = []
        filled = 0
        for puzzle in chosen.tolist():
            first, end = puzzle_indices[puzzle], puzzle_indices[puzzle + 1]
            pairs = first + rng.permutation(end - first)[: self.global_batch_size - filled]
            parts.append((pairs, puzzle))
            filled += len(pairs)
            if filled == self.global_batch_size:
                examples.append(np.concatenate([pairs for pairs, _ in parts]))
                puzzles.append(np.concatenate([np.full(len(p), puzzle) for p, puzzle in parts]))
                parts, filled = [], 0
        return examples, puzzles


class ExampleSelection(NamedTuple):
    """Which examples of the test split to predict, and what each of them is."""

    rows: npt.NDArray[np.int64]
    """[N] rows of the split."""
    puzzle_ids: npt.NDArray[np.int32]
    """[N] identifiers."""
    test_indices: npt.NDArray[np.int64]
    """[N] which of its task's test inputs an example is."""

    def take(self, positions: npt.NDArray[np.int64]) -> "ExampleSelection":
        """The examples at the given positions of this selection."""
        return ExampleSelection(
            self.rows[positions], self.puzzle_ids[positions], self.test_indices[positions]
        )


def select_test_examples(split: PuzzleSplit, max_variants: int | None) -> ExampleSelection:
    """All examples of the first `max_variants` variants (the original included) of each task."""
    sizes = np.diff(split.group_indices)
    rank_in_group = np.arange(len(split.puzzle_identifiers)) - np.repeat(
        split.group_indices[:-1], sizes
    )
    kept = rank_in_group < (np.inf if max_variants is None else max_variants)
    counts = np.where(kept, np.diff(split.puzzle_indices), 0)
    puzzles = np.repeat(np.arange(len(counts)), counts)
    starts = np.cumsum(counts) - counts
    test_indices = np.arange(len(puzzles)) - starts[puzzles]
    rows = split.puzzle_indices[puzzles] + test_indices
    return ExampleSelection(rows, split.puzzle_identifiers[puzzles], test_indices)


def padded_batches(
    split: PuzzleSplit, examples: ExampleSelection, batch_size: int
) -> Iterator[tuple[npt.NDArray[np.int64], Batch]]:
    """Batches of exactly `batch_size` rows, with the positions in `examples` that they hold.

    The last batch is filled up with blank puzzles, so that shapes are static; the positions say
    how many leading rows count.
    """
    for start in range(0, len(examples.rows), batch_size):
        positions = np.arange(start, min(start + batch_size, len(examples.rows)))
        inputs, labels = split.read(examples.rows[positions])
        puzzle_ids = examples.puzzle_ids[positions]
        missing = batch_size - len(positions)
        yield (
            positions,
            Batch(
                np.pad(inputs, ((0, missing), (0, 0))),
                np.pad(labels, ((0, missing), (0, 0))),
                np.pad(puzzle_ids, (0, missing), constant_values=BLANK_IDENTIFIER),
            ),
        )
