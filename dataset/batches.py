"""Which examples make a batch, the random numbers that go with them, and who computes which.

Sampling for training follows TRM: an epoch permutes the groups; each group gives one random
variant (with `data.variants=cycled`, the next one in an order of its own), whose pairs are all
appended, shuffled. Epochs follow each other without end, and every `global_batch_size` examples are
a batch. A batch is a pure function of the seed and of its place in
that stream, whatever the ranks and the device: so a run resumes at its exact batch.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from common.errors import UserError
from common.settings import AnyPath, Settings
from dataset.splits import Split
from dataset.storage import SplitIndex

NUM_SHARDS = 8
"""Parts that a batch is dealt into; a rank takes one, two, four or all of them."""


CYCLES = 2**62
"""In the place of an epoch, a stream of random numbers of its own."""


class DataConfig(Settings):
    """Which dataset, and how much of a canvas the network sees."""

    path: AnyPath | None = Field(None, description="dataset folder, as the builder wrote it")
    trajectories: AnyPath | None = Field(
        None,
        description="file of target trajectories, as dataset.import_trajectories wrote it; null: "
        "none",
    )
    variants: Literal["drawn", "cycled"] = Field(
        "drawn",
        description="which variant a task shows in an epoch: drawn at random, or cycled through "
        "without repetition until all were seen",
    )
    translate: bool = Field(
        True,
        description="move grids about the canvas while training (compact layout; in the full one "
        "they are where they were built); false: all stay at the top-left, as at test time",
    )
    canvas: Literal["whole", "window"] = Field(
        "whole",
        description="whole: every cell of the canvas; window: only the cells around input and "
        "output, which is quicker (see dataset/windows.py) and needs the compact layout",
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
    """The examples of a global batch, and the random numbers that rendering them takes."""

    examples: npt.NDArray[np.int64]
    """[B] rows of the split."""
    puzzle_ids: npt.NDArray[np.int32]
    """[B] identifiers."""
    shifts: npt.NDArray[np.float64]
    """[B, 2] in [0, 1): how far down and right the grids are moved, as a share of the room."""
    edges: npt.NDArray[np.float64]
    """[B, 4] in [0, 1): how far a window's edges move outwards, as a share of the margin."""
    coin: npt.NDArray[np.float64]
    """[B] in [0, 1): below `whole_canvas_share`, the whole canvas is shown."""


class TrainingBatches:
    """Endless iterator over global batches.

    Args:
        split: whose examples.
        global_batch_size: of each batch.
        seed: of everything that is drawn.
        variants: see `DataConfig`.

    `position` is the epoch and the example within it that come next; setting it goes there.
    """

    def __init__(
        self,
        split: Split,
        global_batch_size: int,
        seed: int,
        variants: Literal["drawn", "cycled"] = "drawn",
    ) -> None:
        self.split = split
        self.variants = variants
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.position = (0, 0)

    def steps_in(self, epochs: int) -> int:
        """Optimizer steps as published runs count: one uses up a batch of an epoch."""
        return math.ceil(epochs * self.split.examples_per_epoch / self.global_batch_size)

    def __iter__(self) -> Iterator[Sample]:
        epoch, first = self.position
        drawn = self._draw_epoch(epoch)
        while True:
            # Counted from 1: a trailing zero changes no seed, and [seed, epoch] drew the order.
            rng = np.random.default_rng([self.seed, epoch, 1 + first])
            parts = []
            missing = self.global_batch_size
            while missing:
                part = drawn[:, first : first + missing]
                parts.append(part)
                missing -= part.shape[1]
                first += part.shape[1]
                if first >= drawn.shape[1]:
                    epoch, first = epoch + 1, 0
                    drawn = self._draw_epoch(epoch)
            self.position = epoch, first
            yield self._sample(np.concatenate(parts, axis=1), rng)

    def _draw_epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        """The examples of one epoch [3, E]: row, puzzle, whether its grids may move."""
        rng = np.random.default_rng([self.seed, epoch])
        group_indices, puzzle_indices = self.split.group_indices, self.split.puzzle_indices
        groups = rng.permutation(len(group_indices) - 1)
        if self.variants == "drawn":
            chosen = rng.integers(group_indices[groups], group_indices[groups + 1])
        else:
            sizes = np.diff(group_indices)
            chosen = (group_indices[:-1] + places_in_cycles(sizes, epoch, self.seed))[groups]
        first, end = puzzle_indices[chosen], puzzle_indices[chosen + 1]
        stays = rng.integers(first, end)
        sizes = end - first
        places = np.repeat(np.arange(len(chosen)), sizes)
        starts = np.cumsum(sizes) - sizes
        rows = first[places] + np.arange(sizes.sum()) - starts[places]
        # By puzzle, as they were drawn, and in a random order within each.
        rows = rows[np.lexsort((rng.random(len(rows)), places))]
        return np.stack([rows, chosen[places], rows != stays[places]])

    def _sample(self, batch: npt.NDArray[np.int64], rng: np.random.Generator) -> Sample:
        examples, puzzles, moves = batch
        uniform = rng.random((self.global_batch_size, 7))
        return Sample(
            examples=examples,
            puzzle_ids=self.split.puzzle_identifiers[puzzles],
            shifts=uniform[:, :2] * moves[:, None],
            edges=uniform[:, 2:6],
            coin=uniform[:, 6],
        )


def places_in_cycles(sizes: npt.NDArray[np.int64], epoch: int, seed: int) -> npt.NDArray[np.int64]:
    """Which of its `sizes` [G] variants each group shows in an epoch: each once in `size` epochs.

    From a random one on in random strides that have no factor in common with the size, so that the
    place is a function of the epoch and nothing has to be kept.
    """
    rng = np.random.default_rng([seed, CYCLES])
    first = rng.integers(0, sizes)
    stride = rng.integers(0, sizes)
    while (shared := np.gcd(stride, sizes) > 1).any():
        stride[shared] = rng.integers(0, sizes[shared])
    return (first + stride * epoch) % sizes


def require_shares(
    global_batch_size: int, world_size: int, key: str = "train.global_batch_size"
) -> None:
    """Raise UserError unless the ranks can share batches of this size, which `key` gives."""
    if NUM_SHARDS % world_size:
        raise UserError(
            f"--nproc_per_node: a batch is dealt into {NUM_SHARDS} parts, which {world_size} ranks "
            f"cannot share evenly: start 1, 2, 4 or {NUM_SHARDS}"
        )
    if global_batch_size % world_size:
        raise UserError(
            f"{key}={global_batch_size} is not divisible by the {world_size} ranks: choose a "
            f"multiple of {world_size}"
        )


def deal(sizes: npt.NDArray[np.int64], rank: int = 0, world_size: int = 1) -> npt.NDArray[np.int64]:
    """The places in a global batch of `sizes` [B] tokens that a rank computes, largest first.

    In order of size the examples go to the shards one by one, there and back, so that shards are
    about equally large; ranks have equally many examples (see `require_shares`).
    """
    order = np.argsort(-sizes, kind="stable")
    turn, shard = np.divmod(np.arange(len(sizes)), NUM_SHARDS)
    shard = np.where(turn % 2, NUM_SHARDS - 1 - shard, shard)
    return order[shard % world_size == rank]


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
