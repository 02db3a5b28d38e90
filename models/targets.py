"""Target generators: a target for every improvement step (DIS, arXiv 2511.16886 §4).

A generator maps an input canvas x and its solution y* to y†_1 ... y†_S with y†_S = y*, each at
least as close to y* as the one before (Hamming distance). To add one, write a class here (or in a
file of its own), give it a name in `TARGETS`, and select it with `supervision.targets=<name>`.

Shape letters: B batch, S supervision steps, L canvas cells.
"""

from typing import Protocol

import torch
from torch import Tensor

from models.randomness import CellRandom


class TargetGenerator(Protocol):
    """Phi: (x, y*) -> y†_1 ... y†_S."""

    def __call__(
        self, inputs: Tensor, solution: Tensor, num_steps: int, random: CellRandom
    ) -> Tensor:
        """Targets [B, S, L] from `inputs` and `solution` [B, L], any integer tokens."""
        ...


class LinearTargets:
    """The paper's Figure 7: cells turn into the solution's in random order, evenly over the steps.

    Of the k cells where x and y* differ, frame s has the first floor(s * k / S) replaced.
    """

    def __call__(
        self, inputs: Tensor, solution: Tensor, num_steps: int, random: CellRandom
    ) -> Tensor:
        differs = inputs != solution
        # Cells that differ come first, in random order, and have ranks 0 .. k-1.
        noise = random.uniform().masked_fill(~differs, 2.0)
        order = noise.argsort(dim=1)
        places = torch.arange(inputs.shape[1], device=inputs.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, places)
        steps = torch.arange(1, num_steps + 1, device=inputs.device)
        num_replaced = steps * differs.sum(dim=1, keepdim=True) // num_steps  # [B, S]
        replaced = rank.unsqueeze(1) < num_replaced.unsqueeze(2)  # [B, S, L]
        return torch.where(replaced, solution.unsqueeze(1), inputs.unsqueeze(1))


class FinalTargets:
    """The solution at every step: plain deep supervision, the ablation."""

    def __call__(
        self, inputs: Tensor, solution: Tensor, num_steps: int, random: CellRandom
    ) -> Tensor:
        return solution.unsqueeze(1).expand(-1, num_steps, -1)


TARGETS: dict[str, TargetGenerator] = {
    "linear": LinearTargets(),
    "final": FinalTargets(),
}
