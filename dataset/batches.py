"""Which examples make a batch, and the random numbers that go with them.

Sampling for training follows TRM: an epoch permutes the groups; each group gives one random
variant, whose pairs are all appended, shuffled, until the global batch is full. The order is a
pure function of (seed, pass number), so a run resumes at its exact batch, on any number of ranks.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from common.errors import UserError
from common.settings import AnyPath, Settings
from dataset.splits import Split
from dataset.storage import SplitIndex


class DataConfig(Settings):
    """Which dataset, how an epoch is laid out, and how much of a canvas the network sees."""

    path: AnyPath | None = Field(None, description="dataset folder, as the builder wrote it")
    trajectories: AnyPath | None = Field(
        None,
        description="file of target trajectories, as dataset.import_trajectories wrote it; null: "
        "none",
    )
    epochs_per_pass: int = Field(
        1,
        ge=1,
        description="epochs whose group orders are concatenated before they are cut into batches; "
        "the partial batch at the end of a pass is dropped",
    )
    canvas: Literal["whole", "window"] = Field(
        "whole",
        description="whole: every cell of the canvas; window: only the cells around input and "
        "output, which is quicker (see dataset/windows.py)",
    )
    window_margin: int = Field(
        1, ge=0, description="a window's four edges each move outwards by 0 to this many cells"
    )
    whole_canvas_share: float = Field(
        0.03,
        ge=0,
        le=1,
        description="with canvas=window: share of examples that still show the whole canvas, so "
        "that the network knows it when an answer outgrows its window",
    )


class Sample(NamedTuple):
    """One rank's share of a global batch, and the random numbers that rendering it takes."""

    examples: npt.NDArray[np.int64]
    """[B] rows of the split."""
    puzzle_ids: npt.NDArray[np.int32]
    """[B] identifiers."""
    rows: npt.NDArray[np.int64]
    """[B] places in the global batch."""
    shifts: npt.NDArray[np.float64]
    """[B, 2] in [0, 1): how far down and right the grids are moved, as a share of the room."""
    edges: npt.NDArray[np.float64]
    """[B, 4] in [0, 1): how far a window's edges move outwards, as a share of the margin."""
    coin: npt.NDArray[np.float64]
    """[B] in [0, 1): below `whole_canvas_share`, the whole canvas is shown."""
    priorities: npt.NDArray[np.float32]
    """[B, cells] in [0, 1): which cells around a window fill it up."""


class TrainingBatches:
    """Endless iterator over this rank's batches.

    `position` is the pass and the batch within it that comes next; setting it goes there.
    """

    def __init__(
        self,
        split: Split,
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

    def __iter__(self) -> Iterator[Sample]:
        while True:
            pass_index, first = self.position
            batches = self._draw_pass(pass_index)
            for index in range(first, len(batches)):
                self.position = (pass_index, index + 1)
                yield self._sample(batches[index], pass_index, index)
            self.position = (pass_index + 1, 0)

    def _draw_pass(self, pass_index: int) -> list[npt.NDArray[np.int64]]:
        """For each full global batch of one pass [3, B]: example, puzzle, whether it may move."""
        rng = np.random.default_rng([self.seed, pass_index])
        group_indices, puzzle_indices = self.split.group_indices, self.split.puzzle_indices
        num_groups = len(group_indices) - 1
        groups = np.concatenate([rng.permutation(num_groups) for _ in range(self.epochs_per_pass)])
        chosen = rng.integers(group_indices[groups], group_indices[groups + 1])
        first, end = puzzle_indices[chosen], puzzle_indices[chosen + 1]
        stays = rng.integers(first, end)
        batches: list[npt.NDArray[np.int64]] = []
        parts: list[npt.NDArray[np.int64]] = []
        filled = 0
        for puzzle, start, size, stay in zip(
            chosen.tolist(), first.tolist(), (end - first).tolist(), stays.tolist(), strict=True
        ):
            pairs = start + rng.permutation(size)[: self.global_batch_size - filled]
            parts.append(np.stack([pairs, np.full(len(pairs), puzzle), pairs != stay]))
            filled += len(pairs)
            if filled == self.global_batch_size:
                batches.append(np.concatenate(parts, axis=1))
                parts, filled = [], 0
        return batches

    def _sample(self, batch: npt.NDArray[np.int64], pass_index: int, batch_index: int) -> Sample:
        """This rank's share; random numbers are drawn for all ranks alike, then cut."""
        # Counted from 1: a trailing zero changes no seed, and [seed, pass] drew the pass's order.
        rng = np.random.default_rng([self.seed, pass_index, 1 + batch_index])
        mine = self._slice
        examples, puzzles, moves = batch[:, mine]
        size, cells = self.global_batch_size, self.split.metadata.seq_len
        uniform = rng.random((size, 7))[mine]
        return Sample(
            examples=examples,
            puzzle_ids=self.split.puzzle_identifiers[puzzles],
            rows=np.arange(mine.start, mine.stop),
            shifts=uniform[:, :2] * moves[:, None],
            edges=uniform[:, 2:6],
            coin=uniform[:, 6],
            priorities=rng.random((size, cells), dtype=np.float32)[mine],
        )


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


def select_test_examples(split: SplitIndex, max_variants: int | None) -> ExampleSelection:
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
