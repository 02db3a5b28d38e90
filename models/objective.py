"""Loss of one step and the formulas around it: stablemax and guidance.

Stablemax (arXiv 2501.04697) replaces the exponential of softmax by a function that grows linearly:
s(v) = v + 1 for v >= 0 and 1 / (1 - v) for v < 0.

Shape letters: N tokens, B sequences, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.tokens import PAD

IGNORE = -100
"""Target of a cell that is not counted."""


def counted_solution(labels: Tensor) -> Tensor:
    """Labels [...] with IGNORE where they are PAD: there is nothing to predict there."""
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
    """Of each token [N]; what stands where it is not counted means nothing.

    Args:
        logits: [N, V] fp32.
        targets: int64 [N], IGNORE where not counted.
    """
    return -_of_tokens(log_stablemax(logits), targets)


def mixture_cross_entropy(
    logits: Tensor, solution: Tensor, question: Tensor, certainty: Tensor
) -> Tensor:
    """Of each token [N] against one of two tokens, in expectation; see `stablemax_cross_entropy`.

    Cross-entropy is linear in the target, so this is also that against their mixture.

    Args:
        logits: [N, V] fp32.
        solution: int64 [N] the target with probability `certainty` ...
        question: int64 [N] ... and otherwise.
        certainty: [N]
    """
    log_p = log_stablemax(logits)
    right, unchanged = (_of_tokens(log_p, tokens) for tokens in (solution, question))
    return -(certainty * right + (1 - certainty) * unchanged)


def _of_tokens(values: Tensor, tokens: Tensor) -> Tensor:
    """The values [N, V] of the tokens int64 [N]; where these are below 0, of any."""
    return values.gather(-1, tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1)


def per_sequence(values: Tensor, offsets: Tensor) -> Tensor:
    """Sums [..., B], fp32, of the tokens' values [..., N] between the offsets int [B + 1].

    As differences of a running sum: adding by index would be slow on CUDA, where thousands of
    tokens wait for one number, and in any order. Sums of whole numbers are exact.
    """
    running = F.pad(values.double().cumsum(dim=-1), (1, 0))
    return running[..., offsets.long()].diff(dim=-1).float()


def shares_of_mean(targets: Tensor, sequence: Tensor, offsets: Tensor) -> Tensor:
    """What each token counts for in the mean over the counted cells of its sequence.

    Args:
        targets: int64 [..., N], IGNORE where not counted.
        sequence: int64 [N] which sequence a token is of.
        offsets: int [B + 1] where sequences begin and end.

    Returns:
        [..., N] fp32: 1 / counted, 0 where not counted; so a sum over all tokens is the sum of the
        sequences' means, and a sequence without any counted cell adds nothing.
    """
    counted = targets != IGNORE
    counts = per_sequence(counted, offsets).clamp(min=1)
    return counted / counts[..., sequence]


def guided_logits(reference: Tensor, conditional: Tensor, guidance_weight: float) -> Tensor:
    """l_w = (1 - w) l_u + w l_c (DIS eq. 5): w=1 is plain decoding, w>1 overshoots the step."""
    return torch.lerp(reference, conditional, guidance_weight)
