"""A batch as the network sees it: all sequences one after another, none of them filled up.

A sequence is the prefix and the cells of a canvas that are shown, each with its place there. On the
whole canvas all are equally long; what is cropped is shorter. So everything but attention works on
tokens [N, ...] and need not know where a sequence ends.

On a GPU shapes are static: sequences without an example stand at the end and fill the batch up.

Shape letters: N tokens, B sequences, S supervision steps, L cells of the whole canvas.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from common.tokens import PAD

NO_TOKEN: Final = -1
"""Stands in the prefix of a sequence, and in what fills a batch up."""


class PackedBatch(NamedTuple):
    """B sequences of N tokens in all, on the device."""

    inputs: Tensor
    """int64 [N] tokens; NO_TOKEN where there is no cell."""
    labels: Tensor
    """int64 [N] tokens, PAD where there is nothing to predict."""
    cells: Tensor
    """int64 [N] of the canvas; the positions of a prefix of length P have the cells -P .. -1."""
    sequence: Tensor
    """int64 [N] which sequence a token is of, 0 .. B-1."""
    offsets: Tensor
    """int32 [B + 1] where sequences begin and end; a sequence may be empty."""
    is_example: Tensor
    """bool [B]; False: the sequence only fills the batch up."""
    puzzle_ids: Tensor
    """int64 [B] identifiers."""
    rows: Tensor
    """int64 [B] places of the examples among all that are drawn or predicted together."""
    path: Tensor | None = None
    """uint8 [B, S, L] targets from a file, MISSING for an example without; None: no file."""

    @property
    def num_sequences(self) -> int:
        return len(self.rows)

    @property
    def is_cell(self) -> Tensor:
        """bool [N] whether a token is a cell's."""
        return self.inputs != NO_TOKEN

    def to_canvas(self, values: Tensor, num_cells: int, fill: int = 0) -> Tensor:
        """Values [N] at their cells of whole canvases [B, num_cells] that are `fill` elsewhere."""
        size = self.num_sequences * num_cells
        # What is no cell's goes to one place more, which is cut off.
        index = torch.where(self.is_cell, self.sequence * num_cells + self.cells, size)
        canvases = values.new_full((size + 1,), fill).scatter_(0, index, values)
        return canvases[:-1].view(self.num_sequences, num_cells)

    def from_canvas(self, canvases: Tensor, fill: int) -> Tensor:
        """Whole canvases [B, ..., L] at the cells of the tokens [..., N], `fill` where is none."""
        num_cells = canvases.shape[-1]
        index = (self.sequence * num_cells + self.cells).clamp(min=0)
        taken = canvases.movedim(0, -2).flatten(-2).index_select(-1, index)
        return taken.masked_fill(~self.is_cell, fill)


def pack_whole(canvases: Tensor, prefix_length: int) -> PackedBatch:
    """Canvases int64 [B, L], all cells shown, nothing to predict known; puzzle b is number b."""
    count, num_cells = canvases.shape
    device = canvases.device
    cells = torch.arange(-prefix_length, num_cells, device=device)
    rows = torch.arange(count, device=device)
    prefix = canvases.new_full((count, prefix_length), NO_TOKEN)
    inputs = torch.cat([prefix, canvases], dim=1).flatten()
    return PackedBatch(
        inputs=inputs,
        labels=torch.full_like(inputs, PAD),
        cells=cells.repeat(count),
        sequence=rows.repeat_interleave(len(cells)),
        offsets=torch.arange(0, len(inputs) + 1, len(cells), dtype=torch.int32, device=device),
        is_example=torch.ones_like(rows, dtype=torch.bool),
        puzzle_ids=rows,
        rows=rows,
    )
