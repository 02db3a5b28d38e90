"""One learned vector per puzzle, which is a task's variant; two ways to come by it.

    table      a vector for each puzzle: by far the most parameters, trained sparsely (HRM, TRM)
    factored   the sum of a vector for the task, one for the dihedral transform and one for each
               colour and the colour it becomes: a thousand vectors, trained with the network

The table is kept out of the network and out of autograd: a batch touches a few hundred of up to a
million rows. `lookup` hands out a batch's rows as a leaf tensor; after the backward pass the
sign-SGD of `training.optimizers` applies that leaf's gradient to the table.

The factored embedding is a module of the network (the idea: CHARM, arXiv 2609.33270). Any variant
of a task that was trained on has a vector, whether it was seen in training or not.

Shape letters: B sequences, D width, P puzzles.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from common.puzzles import NO_TASK, PuzzleFactors
from models.layers import Embedding

NUM_DIHEDRALS = 8
NUM_COLOURS = 10


class PuzzleEmbedding(Protocol):
    """Where supervision and prediction get the puzzles' vectors from."""

    def lookup(self, puzzle_ids: Tensor) -> Tensor:
        """Vectors [B, D] of `puzzle_ids` [B]."""
        ...

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        ...


class PuzzleTable:
    """Table [P, D] in fp32, zero at start."""

    def __init__(self, num_puzzles: int, width: int, device: torch.device | str = "cpu") -> None:
        self.weight = torch.zeros(num_puzzles, width, device=device)

    def lookup(self, puzzle_ids: Tensor) -> Tensor:
        """Rows [B, D] of `puzzle_ids` [B], as a leaf that collects its own gradient."""
        return self.weight[puzzle_ids].requires_grad_()

    @property
    def num_parameters(self) -> int:
        return self.weight.numel()


class FactoredPuzzleEmbedding(nn.Module):
    """e_task + e_dihedral[d] + sum over colours c of e_colour[c, permutation(c)]; zero at start."""

    task_of: Tensor
    dihedral_of: Tensor
    recolouring_of: Tensor

    def __init__(self, num_tasks: int, width: int) -> None:
        super().__init__()
        self.task = Embedding(num_tasks, width)
        self.dihedral = Embedding(NUM_DIHEDRALS, width)
        self.colour = Embedding(NUM_COLOURS**2, width)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)  # As the table: at first all puzzles are alike.
        nothing = torch.zeros(0, dtype=torch.int64)
        for name in ("task_of", "dihedral_of", "recolouring_of"):
            # No part of the weights: which puzzles there are is the dataset's.
            self.register_buffer(name, nothing, persistent=False)

    def use(self, factors: PuzzleFactors) -> None:
        """Take the puzzles of a dataset, whose tasks are numbered as they are here."""
        device = self.task.weight.device
        first_of_colour = NUM_COLOURS * torch.arange(NUM_COLOURS)
        is_none = factors.tasks == NO_TASK
        recolourings = first_of_colour + factors.permutations
        self.task_of = factors.tasks.to(device)
        # An index below 0 adds nothing, so what is no puzzle has the vector zero.
        self.dihedral_of = factors.dihedrals.masked_fill(is_none, -1).to(device)
        self.recolouring_of = recolourings.masked_fill(is_none.unsqueeze(1), -1).to(device)

    def lookup(self, puzzle_ids: Tensor) -> Tensor:
        """Vectors [B, D] of `puzzle_ids` [B], through which gradients reach the factors."""
        vectors: Tensor = (
            self.task(self.task_of[puzzle_ids])
            + self.dihedral(self.dihedral_of[puzzle_ids])
            + self.colour(self.recolouring_of[puzzle_ids]).sum(dim=1)
        )
        return vectors

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
