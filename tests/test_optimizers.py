"""Schedule, optimizers, average against scalar arithmetic; sign-SGD against a dense reference."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ALONE, random_table, tiny_model, tiny_optim
from torch import Tensor, nn

from models.layers import Linear
from models.puzzle_embedding import PuzzleEmbedding
from training.optimizers import (
    AdamAtan2,
    SparseSignSGD,
    WeightAverage,
    build_optimizer,
    lr_schedule,
    scale_lr,
    weights_in_place,
)

# ---- schedule ----

COSINE = (1, 0.9657458, 0.8681981, 0.7222076, 0.55, 0.3777924, 0.2318019, 0.1342542)
"""0.1 + 0.9 * (1 + cos(pi * i / 8)) / 2 for i = 0 ... 7; then it stays at 0.1."""


@pytest.mark.parametrize(
    ("total", "warmup", "min_ratio", "expected"),
    [
        (12, 4, 1.0, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (12, 4, 0.1, [0.25, 0.5, 0.75, 1, *COSINE, 0.1, 0.1]),
        (2, 0, 0.0, [1, 0.5, 0]),
        (3, 3, 0.5, [1 / 3, 2 / 3, 1, 1]),
        # A warm-up longer than the run never reaches the peak.
        (3, 10, 0.1, [0.1, 0.2, 0.3]),
    ],
)
def test_the_rate_rises_then_follows_half_a_cosine_to_its_floor(
    total: int, warmup: int, min_ratio: float, expected: list[float]
) -> None:
    factors = [lr_schedule(step, total, warmup, min_ratio) for step in range(len(expected))]
    assert factors == pytest.approx(expected, abs=1e-7)


def two_groups() -> torch.optim.Optimizer:
    """Two peaks, 0.4 and 0.1, as someone might add to `build_optimizer`."""
    groups = [
        {"params": [nn.Parameter(torch.ones(1))], "lr": peak, "initial_lr": peak}
        for peak in (0.4, 0.1)
    ]
    return AdamAtan2(groups, 9.0, (0.9, 0.95), 0.0)


def test_every_group_keeps_its_own_peak_through_the_schedule_and_a_checkpoint() -> None:
    # Two steps of warm-up, then a cosine to 0.5; after three steps the run is resumed.
    expected = [(0.2, 0.05), (0.4, 0.1), (0.4, 0.1), (0.3, 0.075), (0.2, 0.05)]
    optimizer, rates = two_groups(), []
    for step in range(5):
        if step == 3:
            stored = copy.deepcopy(optimizer.state_dict())
            optimizer = two_groups()
            optimizer.load_state_dict(stored)
        scale_lr(optimizer, lr_schedule(step, 4, 2, 0.5))
        rates += [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([rate for rates in expected for rate in rates])


# ---- the network's optimizers ----


def optimizer_of(parameter: nn.Parameter, lr: float, decay: float = 0.1) -> AdamAtan2:
    return AdamAtan2([{"params": [parameter]}], lr, (0.9, 0.95), decay)


def test_adam_atan2_follows_its_formula_also_from_a_stored_state() -> None:
    gradients = [0.5, -0.25, 0.125, 2.0, -1.0, 0.0, 0.3]
    parameter = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = optimizer_of(parameter, 0.01)
    value, mean, square = 2.0, 0.0, 0.0
    for step, gradient in enumerate(gradients, start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        update = math.atan2(mean / (1 - 0.9**step), math.sqrt(square / (1 - 0.95**step)))
        value = value * (1 - 0.01 * 0.1) - 0.01 * update
        if step == 4:  # Its state brings its hyperparameters, too.
            stored = copy.deepcopy(optimizer.state_dict())
            optimizer = optimizer_of(parameter, 9.0, 9.0)
            optimizer.load_state_dict(stored)
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        assert parameter.item() == pytest.approx(value, rel=1e-12)


def test_parameters_without_a_gradient_are_left_alone() -> None:
    used, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
    used.grad = torch.ones(2)
    AdamAtan2([{"params": [used, unused]}], 0.1, (0.9, 0.95), 0.1).step()
    assert unused.tolist() == [1, 1]
    assert (used < 1).all()


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam_atan2", AdamAtan2)]
)
def test_the_optimizer_has_the_configs_values_for_every_parameter(
    name: str, kind: type[torch.optim.Optimizer]
) -> None:
    model = tiny_model()
    config = tiny_optim(name=name, lr=0.3, beta1=0.8, beta2=0.7, weight_decay=0.6)
    optimizer = build_optimizer(config, model)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.3, (0.8, 0.7), 0.6)
    assert group["initial_lr"] == 0.3
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}


# ---- averaging ----


def filled(value: float) -> Linear:
    layer = Linear(2, 1)
    with torch.no_grad():
        layer.weight.fill_(value)
    return layer


def test_the_average_moves_by_1_minus_decay_of_the_way_by_hand() -> None:
    layer = filled(1.0)
    average = WeightAverage(layer, decay=0.75)
    assert average.weights["weight"].tolist() == [[1, 1]]
    with torch.no_grad():
        layer.weight.fill_(5.0)
    average.update(layer)
    assert average.weights["weight"].tolist() == [[2, 2]]  # 1 + (5 - 1) / 4
    average.update(layer)
    assert average.weights["weight"].tolist() == [[2.75, 2.75]]  # 2 + (5 - 2) / 4
    assert layer.weight.tolist() == [[5, 5]]


def test_the_average_covers_all_that_a_checkpoint_of_the_model_holds() -> None:
    model = tiny_model()
    average = WeightAverage(model, 0.9)
    assert set(average.weights) == set(model.state_dict())
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in average.weights.values()}


def test_averaged_weights_are_in_place_for_a_while_only_and_after_an_error_too() -> None:
    layer = filled(5.0)
    average = WeightAverage(filled(2.0), 0.75)

    def fail() -> None:
        with weights_in_place(layer, average):
            assert layer(torch.ones(1, 2)).item() == 4
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert layer(torch.ones(1, 2)).item() == 10
    assert average.weights["weight"].tolist() == [[2, 2]]
    with weights_in_place(layer, None):  # Without an average the own weights stay.
        assert layer.weight.tolist() == [[5, 5]]


# ---- sign-SGD of the puzzle embeddings ----


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
def test_a_sparse_step_equals_the_dense_reference(ids: list[int], seed: int, decay: float) -> None:
    table = random_table(seed, num_puzzles=5, width=3)
    # Whole numbers: their sums are exact in any order, and cancel now and then.
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randint(-2, 3, (len(ids), 3), generator=generator).float()
    expected = dense(table.weight, torch.tensor(ids), gradients, 0.5, decay)
    SparseSignSGD(table, decay, ALONE).step(torch.tensor(ids), gradients, 0.5)
    assert torch.allclose(table.weight, expected)


def test_a_sparse_step_by_hand() -> None:
    table = PuzzleEmbedding(4, 2)
    table.weight.copy_(torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]))
    before = table.weight.clone()
    # Puzzle 2 stands in the batch twice: its gradients, of any size, add up to (-1e20, 0).
    ids = torch.tensor([2, 1, 2])
    gradients = torch.tensor([[1e20, 1e-7], [7.0, -1e-30], [-2e20, -1e-7]])
    SparseSignSGD(table, weight_decay=0.5, ranks=ALONE).step(ids, gradients, lr=0.1)
    # Decay by 1 - 0.1 * 0.5 = 0.95, then 0.1 against the sign of the sum; the sum of 0 has none.
    expected = torch.tensor([[2 * 0.95 - 0.1, 2 * 0.95 + 0.1], [3 * 0.95 + 0.1, 3 * 0.95]])
    assert torch.allclose(table.weight[[1, 2]], expected)
    assert torch.equal(table.weight[2, 1], before[2, 1] * 0.95), "decay alone, bit for bit"
    assert torch.equal(table.weight[[0, 3]], before[[0, 3]]), "untouched rows, bit for bit"


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
