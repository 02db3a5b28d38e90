"""Sign-SGD for the puzzle embeddings, on the rows of the batch alone (HRM; TRM §5).

For each distinct puzzle of the global batch, with g the sum of its rows' gradients over the batch
and all ranks: row = row * (1 - lr * weight_decay) - lr * sign(g). Other rows are not touched.
There is no state: the sign needs none.
"""

import torch
from torch import Tensor

from common.distributed import Ranks
from models.puzzle_embedding import PuzzleEmbedding


class SparseSignSGD:
    """Updates a `PuzzleEmbedding`, alike on every rank."""

    def __init__(self, embedding: PuzzleEmbedding, weight_decay: float, ranks: Ranks) -> None:
        self.embedding = embedding
        self.weight_decay = weight_decay
        self.ranks = ranks

    @torch.no_grad()
    def step(self, puzzle_ids: Tensor, gradients: Tensor, lr: float) -> None:
        """Apply the gradients [B, D] of the rows `puzzle_ids` [B] that this rank looked up."""
        puzzle_ids = self.ranks.concatenate(puzzle_ids)
        gradients = self.ranks.concatenate(gradients)
        # A puzzle may stand in the batch several times. Number the distinct puzzles by sorting
        # (torch.unique would wait for the device to learn how many there are), sum into the
        # first rows of a buffer as large as the batch, and let every copy write the same result.
        ordered, order = puzzle_ids.sort(stable=True)
        is_new = torch.ones_like(ordered, dtype=torch.bool)
        is_new[1:] = ordered[1:] != ordered[:-1]
        slot = is_new.cumsum(0) - 1
        summed = torch.zeros_like(gradients).index_add_(0, slot, gradients[order])
        rows = self.embedding.weight[ordered]
        rows = rows * (1 - lr * self.weight_decay) - lr * summed[slot].sign()
        self.embedding.weight[ordered] = rows
