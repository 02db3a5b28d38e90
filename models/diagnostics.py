"""What a supervision step did: how correct the answer is, how far it moved, whether that helped.

    paper                      here
    y†_s, Hamming distance     distance_to_target, distance_to_solution
    margin (prop. 4.1)         advantage_margin

Metrics are of single examples [B], without gradient; means are taken by who collects them. Only
cells whose solution is known and not PAD count: on others, the answer is mostly left to chance.
(To the distance to a step's target count the cells that count in its loss.)

Shape letters: B batch, L canvas cells, V vocabulary.
"""

import torch
from torch import Tensor

from models.objective import IGNORE, guided_logits

Metrics = dict[str, Tensor]
"""Name -> one number for each example [B]."""

ACCURACY = ("cell_accuracy", "exact_accuracy")
"""Metrics of `accuracy`."""
DIAGNOSTICS = (
    "distance_to_solution",
    "distance_to_target",
    "cells_changed",
    "margin",
    "margin_positive",
)
"""Metrics of `diagnose`."""


def advantage_margin(
    reference_logits: Tensor,
    conditional_logits: Tensor,
    solution: Tensor,
    guidance_weight: float = 1.0,
) -> Tensor:
    """The step's advantage for the right token over the mean under the policy (DIS prop. 4.1).

    D[y*] - E_{a ~ softmax(l_w)} D[a] with D = l_c - l_u. Positive: the step helped. It is minus the
    derivative of -log softmax(l_w)[y*] with respect to w.

    Args:
        reference_logits: l_u [B, L, V].
        conditional_logits: l_c [B, L, V].
        solution: y* int64 [B, L], IGNORE where not counted.
        guidance_weight: w of l_w.

    Returns:
        [B, L]; what stands where the solution is not counted means nothing.
    """
    advantage = conditional_logits - reference_logits
    logits = guided_logits(reference_logits, conditional_logits, guidance_weight)
    # The softmax, by its definition: over a dozen tokens, PyTorch's own is slow on a CPU.
    policy = (logits - logits.logsumexp(dim=-1, keepdim=True)).exp()
    token = solution.clamp(min=0).unsqueeze(-1)
    return advantage.gather(-1, token).squeeze(-1) - (policy * advantage).sum(dim=-1)


def accuracy(answer: Tensor, solution: Tensor) -> Metrics:
    """Share of right cells, and whether all are (0 or 1), of answers [B, L]."""
    counted = solution != IGNORE
    right = (answer == solution) & counted
    num_counted, num_right = counted.sum(dim=1), right.sum(dim=1)
    exact = (num_right == num_counted) & (num_counted > 0)
    return {
        "cell_accuracy": num_right / num_counted.clamp(min=1),
        "exact_accuracy": exact.float(),
    }


def movement(previous: Tensor, answer: Tensor, target: Tensor, solution: Tensor) -> Metrics:
    """Hamming distances in cells.

    Args:
        previous: [B, L] the answer before the step; before the first, the input.
        answer: [B, L] the answer after it.
        target: [B, L] the step's target, IGNORE where not counted.
        solution: [B, L] IGNORE where not counted.
    """
    changed = (answer != previous) & (solution != IGNORE)
    return {
        "distance_to_solution": _distance(answer, solution),
        "distance_to_target": _distance(answer, target),
        "cells_changed": changed.sum(dim=1).float(),
    }


def margins(
    reference_logits: Tensor, conditional_logits: Tensor, solution: Tensor, guidance_weight: float
) -> Metrics:
    """Mean advantage margin over the counted cells, and the share of them where it is positive."""
    counted = solution != IGNORE
    margin = advantage_margin(reference_logits, conditional_logits, solution, guidance_weight)
    num_counted = counted.sum(dim=1).clamp(min=1)
    return {
        "margin": torch.where(counted, margin, 0.0).sum(dim=1) / num_counted,
        "margin_positive": ((margin > 0) & counted).sum(dim=1) / num_counted,
    }


def diagnose(
    previous: Tensor,
    answer: Tensor,
    target: Tensor,
    solution: Tensor,
    reference_logits: Tensor,
    conditional_logits: Tensor,
    cells: Tensor | None = None,
    guidance_weight: float = 1.0,
) -> Metrics:
    """`movement` and `margins` of one step.

    `cells` [B, l] are those of the canvas that the logits [B, l, V] are of; None: all, in order.
    """
    shown = solution if cells is None else solution.gather(1, cells)
    return movement(previous, answer, target, solution) | margins(
        reference_logits, conditional_logits, shown, guidance_weight
    )


def _distance(answer: Tensor, target: Tensor) -> Tensor:
    return ((answer != target) & (target != IGNORE)).sum(dim=1).float()
