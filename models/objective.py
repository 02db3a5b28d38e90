"""Loss of one step and the formulas around it: stablemax and guidance.

Stablemax (arXiv 2501.04697) replaces the exponential of softmax by a function that grows linearly:
s(v) = v + 1 for v >= 0 and 1 / (1 - v) for v < 0.

Shape letters: B batch, L canvas cells, V vocabulary.
"""

import torch
from torch import Tensor

from common.segments import PAD

IGNORE = -100
"""Target of a cell that is not counted."""


def counted_solution(labels: Tensor) -> Tensor:
    """Labels [B, L] with IGNORE where they are PAD: there is nothing to predict there."""
    return labels.masked_fill(labels == PAD, IGNORE)


def log_stablemax(logits: Tensor) -> Tensor:
    """log(s(v) / sum s(v)) over the last axis, in the dtype of `logits`.

    Finite for every finite fp32 logit: s is at most linear, and its sum is taken in logs.
    """
    # Both branches of s in one: s(v) = (1 + |v|) ** sign(v), with sign(0) = 1 for the slope there.
    sign = torch.where(logits < 0, -1.0, 1.0)
    log_s = sign * (sign * logits).log1p()
    return log_s.log_softmax(dim=-1)


def stablemax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the counted cells of each example [B]; 0 for an example without any.

    Args:
        logits: [B, L, V] fp32.
        targets: [B, L] int64, IGNORE where not counted.
    """
    counted = targets != IGNORE
    index = targets.masked_fill(~counted, 0).unsqueeze(-1)
    losses = -log_stablemax(logits).gather(-1, index).squeeze(-1)
    return (losses * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def guided_logits(reference: Tensor, conditional: Tensor, guidance_weight: float) -> Tensor:
    """l_w = (1 - w) l_u + w l_c (DIS eq. 5): w=1 is plain decoding, w>1 overshoots the step."""
    return torch.lerp(reference, conditional, guidance_weight)
