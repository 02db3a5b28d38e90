"""Stablemax and its cross-entropy by hand, at the edge of fp32, and by finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.objective import (
    IGNORE,
    counted_solution,
    guided_logits,
    log_stablemax,
    mixture_cross_entropy,
    per_sequence,
    shares_of_mean,
    stablemax_cross_entropy,
)

LARGEST = torch.finfo(torch.float32).max


def s(value: float) -> float:
    return value + 1 if value >= 0 else 1 / (1 - value)


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12))
@settings(max_examples=100)
def test_log_stablemax_is_the_log_of_s_over_its_sum(values: list[float]) -> None:
    total = sum(s(value) for value in values)
    expected = torch.tensor([math.log(s(value) / total) for value in values], dtype=torch.float64)
    answer = log_stablemax(torch.tensor(values, dtype=torch.float64))
    assert torch.allclose(answer, expected, rtol=1e-9, atol=1e-9)


def test_stablemax_by_hand() -> None:
    # s(0) = 1, s(1) = 2, s(-1) = 1/2, s(-3) = 1/4, s(3) = 4.
    probability = log_stablemax(torch.tensor([[0.0, 1.0, -1.0], [3.0, -3.0, -3.0]])).exp()
    expected = torch.tensor([[2 / 7, 4 / 7, 1 / 7], [8 / 9, 1 / 18, 1 / 18]])
    assert torch.allclose(probability, expected)


@pytest.mark.parametrize(
    "logits",
    [
        [1e30, -1e30, 0.0],
        [LARGEST, -LARGEST, 0.0],
        [LARGEST, LARGEST, LARGEST],
        [-LARGEST, -LARGEST, -LARGEST],
        [-LARGEST, -LARGEST, 1.0],
        [1e-40, -1e-40, 0.0],
    ],
)
def test_log_stablemax_and_its_gradient_are_finite_for_every_fp32_logit(
    logits: list[float],
) -> None:
    given_logits = torch.tensor(logits, requires_grad=True)
    answer = log_stablemax(given_logits)
    assert answer.isfinite().all()
    assert answer.exp().sum().item() == pytest.approx(1, rel=1e-4)
    answer[0].backward()
    assert given_logits.grad.isfinite().all()


def test_labels_that_are_pad_are_not_counted_and_no_others() -> None:
    labels = torch.tensor([[0, 1, 2], [11, 0, 0]])
    assert counted_solution(labels).tolist() == [[IGNORE, 1, 2], [11, IGNORE, IGNORE]]
    assert labels.tolist() == [[0, 1, 2], [11, 0, 0]], "they stay as they were"


SEQUENCE = torch.tensor([0, 0, 0, 1, 3, 3])
"""Which of four sequences six tokens are of; the third is empty."""
OFFSETS = torch.tensor([0, 3, 4, 4, 6], dtype=torch.int32)


def test_sums_over_sequences_by_hand() -> None:
    values = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 0, 0, 0, 1, 1]])
    sums = per_sequence(values, OFFSETS)
    assert sums.tolist() == [[6, 4, 0, 11], [1, 0, 0, 2]]
    assert sums.dtype == torch.float32
    assert per_sequence(values[0] > 2, OFFSETS).tolist() == [1, 1, 0, 2]


def test_a_sequences_counted_cells_share_its_mean_by_hand() -> None:
    targets = torch.tensor([[1, IGNORE, 0, IGNORE, 2, 2], [1, 1, 1, 1, IGNORE, 2]])
    shares = shares_of_mean(targets, SEQUENCE, OFFSETS)
    assert shares[0].tolist() == [0.5, 0, 0.5, 0, 0.5, 0.5]
    assert shares[1].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1, 0, 1])
    assert torch.equal(shares_of_mean(targets[0], SEQUENCE, OFFSETS), shares[0])


def test_the_cross_entropy_of_each_token_by_hand() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0], [3.0, -3.0, -3.0], [0.0, 0.0, 0.0]])
    losses = stablemax_cross_entropy(logits, torch.tensor([1, 2, IGNORE]))
    assert losses[:2].tolist() == pytest.approx([math.log(7 / 4), math.log(18)])
    assert losses[2].isfinite(), "or a share of 0 would not be nothing"


def test_the_cross_entropy_against_a_mixture_by_hand() -> None:
    """Of a solution in three cases of four; against a certain one it is the plain, bit for bit."""
    logits = torch.tensor([[0.0, 1.0, -1.0], [3.0, -3.0, -3.0], [0.0, 0.0, 0.0]])
    solution, question = torch.tensor([1, 2, IGNORE]), torch.tensor([0, 0, -1])
    losses = mixture_cross_entropy(logits, solution, question, torch.tensor([0.75, 0.75, 0.0]))
    by_hand = [
        0.75 * math.log(7 / 4) + 0.25 * math.log(7 / 2),
        0.75 * math.log(18) + 0.25 * math.log(9 / 8),
    ]
    assert losses[:2].tolist() == pytest.approx(by_hand)
    assert losses[2].isfinite(), "or a share of 0 would not be nothing"
    for certainty, target in ((1.0, solution), (0.0, question)):
        certain = mixture_cross_entropy(logits, solution, question, torch.full((3,), certainty))
        assert torch.equal(certain[:2], stablemax_cross_entropy(logits, target)[:2])


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    shares = shares_of_mean(targets, SEQUENCE, OFFSETS)
    return (stablemax_cross_entropy(logits, targets) * shares).sum()


def test_the_gradient_of_a_mean_agrees_with_finite_differences_and_is_0_where_none_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 4, IGNORE, IGNORE, 1, 3])
    logits.requires_grad_()
    assert torch.autograd.gradcheck(loss, (logits, targets))
    (gradient,) = torch.autograd.grad(loss(logits, targets), logits)
    assert (gradient != 0).any(dim=1).tolist() == [True, True, False, False, True, True]


def test_the_two_branches_of_s_meet_with_slope_1() -> None:
    """Of -log(s(v) / (s(v) + 1)) at v = 0, by either branch: -1 / (s(0) * 2) = -1/2."""
    for value in (0.0, -0.0, 1e-9, -1e-9):
        logits = torch.tensor([[value, 0.0]], dtype=torch.float64, requires_grad=True)
        stablemax_cross_entropy(logits, torch.tensor([0])).sum().backward()
        assert logits.grad.flatten().tolist() == pytest.approx([-0.5, 0.5], abs=1e-6)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(1.0, [3.0, -2.0]), (0.0, [1.0, 2.0]), (2.0, [5.0, -6.0]), (0.5, [2.0, 0.0])],
)
def test_guidance_1_is_the_conditional_0_the_reference_and_2_goes_as_far_again(
    weight: float, expected: list[float]
) -> None:
    guided = guided_logits(torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0]), weight)
    assert guided.tolist() == expected


def test_guidance_1_returns_the_conditional_logits_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    reference, conditional = torch.randn(2, 1000, generator=generator)
    assert torch.equal(guided_logits(1e3 * reference, conditional, 1.0), conditional)
