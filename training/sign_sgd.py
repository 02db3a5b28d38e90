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
        # A puzzle may stand in the batch several times: row i sums over all rows of its puzzle. A
        # product with a 0/1 matrix does that without waiting for the device, as torch.unique would,
        # and always in the same order, where index_add_ on CUDA is free to choose: a sum near zero
        # could else take another sign on another rank, and the ranks' tables drift apart.
        same = puzzle_ids[:, None] == puzzle_ids
        summed = same.to(gradients.dtype) @ gradients
        # All rows of a puzzle write the sum of its first one, so that they write the same.
        summed = summed[same.int().argmax(dim=1)]
        rows = self.embedding.weight[puzzle_ids]
        self.embedding.weight[puzzle_ids] = rows * (1 - lr * self.weight_decay) - lr * summed.sign()
