"""One learned vector per puzzle (a task's variant): by far the most parameters, trained sparsely.

The table is kept out of the network and out of autograd: a batch touches a few hundred of up to a
million rows. `lookup` hands out a batch's rows as a leaf tensor; after the backward pass the
sign-SGD of `training.optimizers` applies that leaf's gradient to the table.
"""

import torch
from torch import Tensor


class PuzzleEmbedding:
    """Table [num_puzzles, D] in fp32, zero at start."""

    def __init__(self, num_puzzles: int, width: int, device: torch.device | str = "cpu") -> None:
        self.weight = torch.zeros(num_puzzles, width, device=device)

    def lookup(self, puzzle_ids: Tensor) -> Tensor:
        """Rows [B, D] of `puzzle_ids` [B], as a leaf that collects its own gradient."""
        return self.weight[puzzle_ids].requires_grad_()
