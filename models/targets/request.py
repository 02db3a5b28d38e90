"""What a target generator is asked, and what it has to answer (DIS, arXiv 2511.16886 §4).

    paper        here
    x, y*        `TargetRequest.inputs`, `.solution`
    Phi          `TargetGenerator`
    y†_1..y†_S   what it returns, [B, S, L]

Shape letters: B batch, S supervision steps, L canvas cells.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from models.randomness import CellRandom

PAD = 0
"""Token of cells without content, in every dataset of this family."""


class TargetRequest(NamedTuple):
    """Whole canvases to lay a path on."""

    inputs: Tensor
    """int64 [B, L] x."""
    solution: Tensor
    """int64 [B, L] y*; any number outside the vocabulary is a token like others here."""
    num_steps: int
    """S."""
    random: CellRandom
    """Random numbers [B, L], the same whenever this batch is seen."""
    colours: range
    """Tokens that cells with content may have: what random colours are drawn from."""
    stored: Tensor | None = None
    """uint8 [B, S, L] trajectories read from a file, MISSING throughout where there is none."""


class TargetGenerator(Protocol):
    """Phi: (x, y*) -> y†_1 ... y†_S."""

    def __call__(self, request: TargetRequest) -> Tensor:
        """Targets int64 [B, S, L].

        The last is y*, and each is at least as close to it (Hamming distance) as the one before.
        """
        ...


def path_to_solution(start: Tensor, solution: Tensor, priority: Tensor, num_steps: int) -> Tensor:
    """Cells of `start` turn into the solution's one after the other, evenly over the steps.

    Of the k cells where they differ, frame s has the first floor(s * k / S) replaced.

    Args:
        start: int64 [B, L] canvases before the first step.
        solution: int64 [B, L].
        priority: [B, L] the lowest are replaced first.
        num_steps: S.
    """
    differs = start != solution
    highest = torch.finfo if priority.is_floating_point() else torch.iinfo
    # Cells that differ come first and have ranks 0 .. k-1.
    order = priority.masked_fill(~differs, highest(priority.dtype).max).argsort(dim=1)
    places = torch.arange(start.shape[1], device=start.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    steps = torch.arange(1, num_steps + 1, device=start.device)
    num_replaced = steps * differs.sum(dim=1, keepdim=True) // num_steps  # [B, S]
    replaced = rank.unsqueeze(1) < num_replaced.unsqueeze(2)  # [B, S, L]
    return torch.where(replaced, solution.unsqueeze(1), start.unsqueeze(1))
