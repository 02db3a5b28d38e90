"""Sparse sign-SGD against a dense reference, which has a gradient for every row of the table."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_table
from torch import Tensor

from common.distributed import Ranks
from training.sign_sgd import SparseSignSGD

ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


def dense(table: Tensor, ids: Tensor, gradients: Tensor, lr: float, decay: float) -> Tensor:
    """The table after one step: every gradient added up at its row, then the sign of the sum."""
    total = torch.zeros_like(table).index_add_(0, ids, gradients)
    updated = table * (1 - lr * decay) - lr * total.sign()
    touched = torch.isin(torch.arange(len(table)), ids).unsqueeze(1)
    return torch.where(touched, updated, table)


@given(
    ids=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    seed=st.integers(0, 2**31),
    decay=st.sampled_from([0.0, 0.1, 1.0]),
)
@settings(max_examples=100)
def test_a_step_equals_the_dense_reference(ids: list[int], seed: int, decay: float) -> None:
    table = random_table(seed, num_puzzles=5, width=3)
    # Whole numbers: their sums are exact in any order, and cancel now and then.
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randint(-2, 3, (len(ids), 3), generator=generator).float()
    expected = dense(table.weight, torch.tensor(ids), gradients, 0.5, decay)
    SparseSignSGD(table, decay, ALONE).step(torch.tensor(ids), gradients, 0.5)
    assert torch.allclose(table.weight, expected)


def test_a_step_by_hand() -> None:
    table = random_table(num_puzzles=4, width=2)
    table.weight.copy_(torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]))
    before = table.weight.clone()
    # Puzzle 2 stands in the batch twice: its gradients add up to (-1, 0).
    ids = torch.tensor([2, 1, 2])
    gradients = torch.tensor([[1.0, 0.5], [7.0, -0.001], [-2.0, -0.5]])
    SparseSignSGD(table, weight_decay=0.5, ranks=ALONE).step(ids, gradients, lr=0.1)
    # Decay by 1 - 0.1 * 0.5 = 0.95, then 0.1 against the sign of the sum; the sum of 0 has none.
    expected = torch.tensor([[2 * 0.95 - 0.1, 2 * 0.95 + 0.1], [3 * 0.95 + 0.1, 3 * 0.95]])
    assert torch.allclose(table.weight[[1, 2]], expected)
    assert torch.equal(table.weight[[0, 3]], before[[0, 3]]), "untouched rows, bit for bit"


def test_gradients_that_cancel_leave_decay_alone() -> None:
    table = random_table(num_puzzles=3, width=4)
    before = table.weight.clone()
    gradient = torch.tensor([0.3, -1e-7, 1e20, 5.0])
    ids = torch.tensor([1, 1])
    SparseSignSGD(table, 0.5, ALONE).step(ids, torch.stack([gradient, -gradient]), 0.1)
    assert torch.equal(table.weight[1], before[1] * (1 - 0.1 * 0.5))
    assert torch.equal(table.weight[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_a_gradient_does_not_matter(size: float) -> None:
    table = random_table(num_puzzles=2, width=2)
    table.weight.zero_()
    gradients = torch.tensor([[size, -size]])
    SparseSignSGD(table, 0.0, ALONE).step(torch.tensor([1]), gradients, lr=0.25)
    assert table.weight.tolist() == [[0, 0], [-0.25, 0.25]]


class OneOfTwo:
    """Stands in for `Ranks`: joins what the two ranks pass, by a list that knows both."""

    def __init__(self, both: list[tuple[Tensor, Tensor]]) -> None:
        ids, gradients = zip(*both, strict=True)
        self.joined = iter([torch.cat(ids), torch.cat(gradients)])

    def concatenate(self, tensor: Tensor) -> Tensor:
        joined = next(self.joined)
        assert tensor.dtype == joined.dtype
        return joined


def test_two_ranks_end_with_the_table_that_one_would_have() -> None:
    """Puzzle 3 stands on both ranks: alone, the second would step the other way."""
    ids, gradients = torch.tensor([3, 0, 3, 4]), torch.tensor([[5.0], [1.0], [-1.0], [-2.0]])
    alone = random_table(1, num_puzzles=5, width=1)
    SparseSignSGD(alone, 0.1, ALONE).step(ids, gradients, 0.01)
    both = [(ids[:2], gradients[:2]), (ids[2:], gradients[2:])]
    for of_rank in both:
        table = random_table(1, num_puzzles=5, width=1)
        ranks: Any = OneOfTwo(both)
        SparseSignSGD(table, 0.1, ranks).step(*of_rank, 0.01)
        assert torch.equal(table.weight, alone.weight)
