"""The compact layout: original pairs and a table of variants, expanded when a batch is made.

    OUT/{train,test}/originals__inputs.npy        uint8 [pairs, cells], task by task, unaugmented
    OUT/{train,test}/originals__labels.npy        uint8 [pairs, cells], grids at the top-left
    OUT/{train,test}/variants__dihedrals.npy      uint8 [puzzles]
    OUT/{train,test}/variants__permutations.npy   uint8 [puzzles, 10]

These stand in place of `all__inputs.npy` and `all__labels.npy`; all other files but `build.json`
are those of the full layout, byte for byte (see `dataset.storage`); OUT/validation/, where there is
one, is as OUT/test/. Examples are counted as if they were stored: a puzzle's are its task's pairs,
one after another. `expand` makes them, on any device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.augmentation import DIHEDRALS, NUM_DIHEDRALS, transformed_sizes
from dataset.canvas import COLOUR_OFFSET, EOS, canvas_side, place, read_extents
from dataset.storage import (
    ORIGINALS,
    VARIANTS,
    DatasetMetadata,
    SplitIndex,
    array_path,
    open_array,
    open_canvases,
    open_index,
    require,
    require_tokens,
)
from dataset.tasks import NUM_COLOURS, Grid


class Originals(NamedTuple):
    """Pairs of a split's tasks, unaugmented."""

    inputs: Tensor
    """uint8 [pairs, L] tokens, the grid at the top-left."""
    labels: Tensor
    """uint8 [pairs, L]."""
    sizes: Tensor
    """int64 [pairs, 2, 2]: (input, label) x (rows, columns); 0 and 0 for a hidden label."""

    def to(self, device: torch.device | str) -> "Originals":
        return Originals(*(tensor.to(device) for tensor in self))


class Recipes(NamedTuple):
    """How n examples are made from original pairs."""

    pairs: Tensor
    """int64 [n], rows of the originals."""
    dihedrals: Tensor
    """int64 [n], 0-7."""
    permutations: Tensor
    """uint8 or int64 [n, 10]: colour c becomes permutations[i, c]."""
    origins: Tensor
    """int64 [n, 2], row and column of the grids' top-left on the canvas."""


def expand(
    originals: Originals, recipes: Recipes, example: Tensor, cells: Tensor
) -> tuple[Tensor, Tensor]:
    """Inputs and labels, int64 [N], at canvas cells [N] of the examples [N], 0 .. n-1.

    What `dataset.build_arc_dataset.render` makes, as plain index arithmetic: no loop, and nothing
    for which the host would have to wait. Grids must lie inside the canvas; where a cell is below
    0, both tokens are PAD.
    """
    num_cells = originals.inputs.shape[1]
    side = canvas_side(num_cells)
    # Relative to the grid's top-left.
    rows, cols = cells // side, cells % side
    rows, cols = rows - recipes.origins[:, 0][example], cols - recipes.origins[:, 1][example]
    dihedral = recipes.dihedrals[example]
    transpose, flip_rows, flip_cols = ((mask >> dihedral) & 1 for mask in _DIHEDRAL_MASKS)
    # In the flat original one cell down and one to the right in the variant are steps of +-1 and
    # +-side, from a corner that depends on the flips.
    row_step, col_step = side * (1 - 2 * flip_rows), 1 - 2 * flip_cols
    transposed = transpose.bool()
    down = torch.where(transposed, col_step, row_step)
    right = torch.where(transposed, row_step, col_step)
    offsets = down * rows + right * cols
    # Only colours are looked up; PAD and EOS are set below, where the variant has them.
    colours = F.pad(recipes.permutations + COLOUR_OFFSET, (COLOUR_OFFSET, 0))
    sizes = originals.sizes[recipes.pairs]
    pair = recipes.pairs[example] * num_cells

    def show(tokens: Tensor, size: Tensor) -> Tensor:
        height, width = size[:, 0][example], size[:, 1][example]
        corner = pair + flip_rows * (height - 1) * side + flip_cols * (width - 1)
        shown_height = torch.where(transposed, width, height)
        shown_width = torch.where(transposed, height, width)
        in_rows, in_cols = _within(rows, shown_height), _within(cols, shown_width)
        inside = in_rows & in_cols
        below, beside = (rows == shown_height) & in_cols, in_rows & (cols == shown_width)
        found = tokens.reshape(-1)[torch.where(inside, offsets + corner, 0)]
        recoloured = colours[example, found.long()]
        return torch.where(inside, recoloured, EOS * (below | beside)).long()

    return show(originals.inputs, sizes[:, 0]), show(originals.labels, sizes[:, 1])


def expand_whole(originals: Originals, recipes: Recipes) -> tuple[Tensor, Tensor]:
    """Inputs and labels, int64 [n, L], on whole canvases."""
    count, num_cells = len(recipes.pairs), originals.inputs.shape[1]
    cells = torch.arange(num_cells, device=recipes.pairs.device).repeat(count)
    example = torch.arange(count, device=cells.device).repeat_interleave(num_cells)
    inputs, labels = expand(originals, recipes, example, cells)
    return inputs.view(count, num_cells), labels.view(count, num_cells)


def _within(places: Tensor, extent: Tensor) -> Tensor:
    return (places >= 0) & (places < extent)


# The columns of the table as numbers whose bit d is the entry for dihedral d: a look-up that
# needs no table on the device.
_DIHEDRAL_MASKS = tuple(
    sum(bit << dihedral for dihedral, bit in enumerate(column))
    for column in zip(*DIHEDRALS, strict=True)
)


@dataclass(frozen=True)
class CompactSplit(SplitIndex):
    """A split in the compact layout, opened and checked."""

    originals: Originals
    """On the CPU."""
    dihedrals: npt.NDArray[np.uint8]
    """[puzzles]."""
    permutations: npt.NDArray[np.uint8]
    """[puzzles, 10]."""
    pair_indices: npt.NDArray[np.int64]
    """[groups + 1], offsets of the groups' original pairs."""
    puzzle_groups: npt.NDArray[np.int64]
    """[puzzles], the group of each."""

    def recipes(self, examples: npt.NDArray[np.int64], origins: npt.NDArray[np.int64]) -> Recipes:
        """How to make the given examples [n] with their grids at origins [n, 2]."""
        puzzles, pairs = self._locate(examples)
        return Recipes(
            torch.from_numpy(pairs),
            torch.from_numpy(self.dihedrals[puzzles].astype(np.int64)),
            torch.from_numpy(self.permutations[puzzles]),
            torch.from_numpy(origins),
        )

    def extents(self, examples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows and columns [n, (input, label), 2] of the grids as their variants show them."""
        puzzles, pairs = self._locate(examples)
        return transformed_sizes(self.originals.sizes.numpy()[pairs], self.dihedrals[puzzles])

    def largest_outputs(self, examples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Most rows and most columns [n, 2] among the outputs of all pairs of each one's puzzle.

        As the puzzle, a variant, shows them; of the pairs in this split.
        """
        outputs = self.originals.sizes.numpy()[:, 1]
        largest = np.maximum.reduceat(outputs, self.pair_indices[:-1])
        puzzles, _ = self._locate(examples)
        return transformed_sizes(largest[self.puzzle_groups[puzzles]], self.dihedrals[puzzles])

    def read(
        self, examples: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Inputs and labels [n, L] of the given examples, their grids at the top-left."""
        recipes = self.recipes(examples, np.zeros((len(examples), 2), dtype=np.int64))
        inputs, labels = expand_whole(self.originals, recipes)
        return inputs.numpy().astype(np.uint8), labels.numpy().astype(np.uint8)

    def with_labels(self, labels: Sequence[Grid | None]) -> "CompactSplit":
        """The split with these labels of its original pairs.

        None, and what is larger than the canvas, is hidden.
        """
        tokens = torch.zeros_like(self.originals.labels)
        sizes = self.originals.sizes.clone()
        sizes[:, 1] = 0
        side = canvas_side(self.metadata.seq_len)
        for row, grid in enumerate(labels):
            if grid is not None and max(grid.shape) <= side:
                tokens[row] = torch.from_numpy(place(grid[None], side)[0])
                sizes[row, 1] = torch.tensor(grid.shape)
        return replace(self, originals=self.originals._replace(labels=tokens, sizes=sizes))

    def _locate(
        self, examples: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The puzzle and the original pair of each example."""
        puzzles = np.searchsorted(self.puzzle_indices, examples, side="right") - 1
        first = self.pair_indices[self.puzzle_groups[puzzles]]
        return puzzles, first + examples - self.puzzle_indices[puzzles]


def open_compact(path: Path, metadata: DatasetMetadata) -> CompactSplit:
    """Open a split's folder; all of it is read and checked, since it is small.

    Raises:
        UserError: a part is missing, truncated or inconsistent.
    """
    require(
        round(metadata.seq_len**0.5) ** 2 == metadata.seq_len,
        f"{path}: seq_len {metadata.seq_len} is no square, so there is no canvas of so many cells",
    )
    inputs, labels = (np.array(array) for array in open_canvases(path, metadata, ORIGINALS))
    require_tokens(path, metadata.vocab_size, inputs, labels)
    inputs, labels = inputs.astype(np.uint8, copy=False), labels.astype(np.uint8, copy=False)
    # [pairs, 2, 2] from ((rows, columns) of inputs, (rows, columns) of labels).
    sizes = np.array([read_extents(inputs), read_extents(labels)]).transpose(2, 0, 1)
    require(
        bool((sizes[:, 0] > 0).all()),
        f"{array_path(path, 'inputs', ORIGINALS)}: has a canvas without a grid at its top-left",
    )
    index = open_index(path, metadata, num_examples=None)
    puzzle_groups = np.repeat(np.arange(len(index.group_indices) - 1), np.diff(index.group_indices))
    pairs_of_puzzles = np.diff(index.puzzle_indices)
    pairs_of_groups = pairs_of_puzzles[index.group_indices[:-1]]
    require(
        len(inputs) == pairs_of_groups.sum()
        and bool((pairs_of_puzzles == pairs_of_groups[puzzle_groups]).all()),
        f"{array_path(path, 'puzzle_indices')}: must give all puzzles of a group equally many "
        f"examples, and one puzzle of each group {len(inputs)} in all, as there are originals",
    )
    num_puzzles = len(puzzle_groups)
    dihedrals = open_array(path, "dihedrals", (num_puzzles,), VARIANTS, NUM_DIHEDRALS)
    permutations = open_array(
        path, "permutations", (num_puzzles, NUM_COLOURS), VARIANTS, NUM_COLOURS
    )
    # Sets of colours as bits; much quicker than sorting a million rows.
    present = np.bitwise_or.reduce(np.left_shift(1, permutations, dtype=np.int64), axis=1)
    require(
        bool((present == 2**NUM_COLOURS - 1).all()),
        f"{array_path(path, 'permutations', VARIANTS)}: must hold permutations of the colours",
    )
    return CompactSplit(
        **vars(index),
        originals=Originals(*map(torch.from_numpy, (inputs, labels, sizes.astype(np.int64)))),
        dihedrals=np.array(dihedrals, dtype=np.uint8),
        permutations=np.array(permutations, dtype=np.uint8),
        pair_indices=np.concatenate([[0], np.cumsum(pairs_of_groups)]),
        puzzle_groups=puzzle_groups,
    )
