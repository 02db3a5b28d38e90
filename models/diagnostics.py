"""What a supervision step did: how correct the answer is, how far it moved, whether that helped.

    paper                      here
    y†_s, Hamming distance     distance_to_target, distance_to_solution
    margin (prop. 4.1)         advantage_margin

Metrics are of single examples [B], without gradient; means are taken by who collects them. Only
cells whose solution is known and not PAD count: on others, the answer is mostly left to chance.
(To the distance to a step's target count the cells that count in its loss.)

Shape letters: N tokens, B sequences, V vocabulary.
"""

import torch
from torch import Tensor

from models.objective import IGNORE, guided_logits, per_sequence

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
"""Metrics of `movement` and `margins`."""


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
        reference_logits: l_u [N, V].
        conditional_logits: l_c [N, V].
        solution: y* int64 [N], IGNORE where not counted.
        guidance_weight: w of l_w.

    Returns:
        [N]; what stands where the solution is not counted means nothing.
    """
    advantage = conditional_logits - reference_logits
    logits = guided_logits(reference_logits, conditional_logits, guidance_weight)
    # The softmax, by its definition: over a dozen tokens, PyTorch's own is slow on a CPU.
    policy = (logits - logits.logsumexp(dim=-1, keepdim=True)).exp()
    token = solution.clamp(min=0).unsqueeze(-1)
    return advantage.gather(-1, token).squeeze(-1) - (policy * advantage).sum(dim=-1)


def accuracy(answer: Tensor, solution: Tensor, offsets: Tensor) -> Metrics:
    """Share of right cells, and whether all are (0 or 1), of answers [N].

    Sequences begin and end at `offsets` int [B + 1].
    """
    counted = solution != IGNORE
    num_counted = per_sequence(counted, offsets)
    num_right = per_sequence((answer == solution) & counted, offsets)
    exact = (num_right == num_counted) & (num_counted > 0)
    return {
        "cell_accuracy": num_right / num_counted.clamp(min=1),
        "exact_accuracy": exact.float(),
    }


def movement(
    previous: Tensor, answer: Tensor, target: Tensor, solution: Tensor, offsets: Tensor
) -> Metrics:
    """Hamming distances in cells.

    Args:
        previous: [N] the answer before the step; before the first, the input.
        answer: [N] the answer after it.
        target: [N] the step's target, IGNORE where not counted.
        solution: [N] IGNORE where not counted.
        offsets: int [B + 1] where sequences begin and end.
    """
    return {
        "distance_to_solution": per_sequence((answer != solution) & (solution != IGNORE), offsets),
        "distance_to_target": per_sequence((answer != target) & (target != IGNORE), offsets),
        "cells_changed": per_sequence((answer != previous) & (solution != IGNORE), offsets),
    }


def margins(
    reference_logits: Tensor,
    conditional_logits: Tensor,
    solution: Tensor,
    offsets: Tensor,
    guidance_weight: float = 1.0,
) -> Metrics:
    """Mean advantage margin over the counted cells, and the share of them where it is positive."""
    counted = solution != IGNORE
    margin = advantage_margin(reference_logits, conditional_logits, solution, guidance_weight)
    num_counted = per_sequence(counted, offsets).clamp(min=1)
    return {
        "margin": per_sequence(torch.where(counted, margin, 0.0), offsets) / num_counted,
        "margin_positive": per_sequence((margin > 0) & counted, offsets) / num_counted,
    }
