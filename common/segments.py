"""A batch as the network sees it: segments of examples whose sequences are equally long.

On the whole canvas a batch is one segment. Where cells that do not matter are dropped, examples of
similar size form a segment each, so that no sequence needs padding or a mask.

Shape letters: B batch, S supervision steps, L cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    # Whoever needs only the tokens below, such as the builders of datasets, does without torch.
    from torch import Tensor

PAD: Final = 0
"""Token of a cell without content, in every dataset of this family: nothing is predicted there."""
MISSING = 255
"""In all cells of a path: the example has none."""


class Segment(NamedTuple):
    """B examples of L cells, on the device."""

    inputs: Tensor
    """int64 [B, L] tokens."""
    labels: Tensor
    """int64 [B, L] tokens, PAD where there is nothing to predict."""
    puzzle_ids: Tensor
    """int64 [B] identifiers."""
    rows: Tensor
    """int64 [B] places of the examples in the global batch."""
    cells: Tensor | None = None
    """int64 [B, L] which cells of the canvas these are; None: all of them, in order."""
    path: Tensor | None = None
    """uint8 [B, S, all cells of the canvas] targets from a file, MISSING for an example without;
    None: no file was named."""
