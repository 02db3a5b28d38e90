"""One learned vector per puzzle, which is a task's variant; two ways to come by it.

    table      a vector for each puzzle: by far the most parameters, trained sparsely (HRM, TRM)
    factored   a vector for the task, modulated by the dihedral transform and the permutation of
               colours: a thousand vectors in all, trained with the network

The table is kept out of the network and out of autograd: a batch touches a few hundred of up to a
million rows. `lookup` hands out a batch's rows as a leaf tensor; after the backward pass the
sign-SGD of `training.optimizers` applies that leaf's gradient to the table.

The factored embedding is a module of the network (the idea: CoSE of CHARM, arXiv 2609.33270; a
plain sum of the factors' vectors learned less, see RESULTS.md). Any variant of a task that was
trained on has a vector, whether it was seen in training or not.

Shape letters: B sequences, D width, P puzzles.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.puzzles import NO_TASK, PuzzleFactors
from models.layers import Embedding, Linear

NUM_DIHEDRALS = 8
NUM_COLOURS = 10
MODULATION_RANK = 32
VARIANT_STD = 0.02
"""At start, of the vectors of transforms and colours: small beside a task's once it is trained."""


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
    """The task's vector e, modulated by the variant's vector a; zero at start.

    a = e_dihedral + code, where the code is ten slots side by side: that of colour c holds the
    vector of the colour that c becomes, so renaming colours permutes the code. A puzzle has the
    vector (1 + gamma) * e + beta, where (gamma, beta) is a linear map of rank 32 of (e, a).
    """

    task_of: Tensor
    dihedral_of: Tensor
    permutation_of: Tensor

    def __init__(self, num_tasks: int, width: int) -> None:
        super().__init__()
        self.task = Embedding(num_tasks, width)
        self.dihedral = Embedding(NUM_DIHEDRALS, width)
        self.colour = Embedding(NUM_COLOURS, width // NUM_COLOURS)
        self.down = Linear(2 * width, MODULATION_RANK)
        self.up = Linear(MODULATION_RANK, 2 * width)
        for map_to in (self.task, self.up):
            nn.init.zeros_(map_to.weight)  # As the table: at first all puzzles are alike.
        for table in (self.dihedral, self.colour):
            nn.init.normal_(table.weight, std=VARIANT_STD)
        nothing = torch.zeros(0, dtype=torch.int64)
        for name in ("task_of", "dihedral_of", "permutation_of"):
            # No part of the weights: which puzzles there are is the dataset's.
            self.register_buffer(name, nothing, persistent=False)

    def use(self, factors: PuzzleFactors) -> None:
        """Take the puzzles of a dataset, whose tasks are numbered as they are here."""
        device = self.task.weight.device
        self.task_of = factors.tasks.to(device)
        self.dihedral_of = factors.dihedrals.to(device)
        self.permutation_of = factors.permutations.to(device)

    def lookup(self, puzzle_ids: Tensor) -> Tensor:
        """Vectors [B, D] of `puzzle_ids` [B], through which gradients reach the factors.

        What is no puzzle (the blank identifier) has the vector zero.
        """
        tasks = self.task_of[puzzle_ids]
        task = self.task(tasks)
        code = self.colour(self.permutation_of[puzzle_ids]).flatten(1)
        variant = self.dihedral(self.dihedral_of[puzzle_ids])
        variant = variant + F.pad(code, (0, variant.shape[1] - code.shape[1]))
        gamma, beta = self.up(self.down(torch.cat([task, variant], dim=1))).chunk(2, dim=1)
        vectors: Tensor = (1 + gamma) * task + beta
        return vectors * (tasks != NO_TASK).unsqueeze(1)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
