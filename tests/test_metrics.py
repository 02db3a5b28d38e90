"""Means of the training metrics by hand, over steps, batches and ranks."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from common.distributed import Ranks
from models.supervision import StepResult
from training.metrics import MetricSums, TrainingMetrics

CPU = torch.device("cpu")
ALONE = Ranks(rank=0, world_size=1, device=CPU)


def result(step: int, loss: float, cell: float, exact: float) -> StepResult:
    nothing = torch.zeros(0)
    return StepResult(
        step,
        torch.tensor(loss, requires_grad=True),
        nothing,
        nothing,
        torch.tensor(cell),
        torch.tensor(exact),
    )


def two_batches() -> MetricSums:
    sums = MetricSums(num_supervision_steps=2, device=CPU)
    for rows in (
        [(1, 4.0, 0.2, 0.0, 1.0), (2, 2.0, 0.4, 0.5, 3.0)],
        [(1, 6.0, 0.4, 0.5, 5.0), (2, 8.0, 0.8, 1.0, 7.0)],
    ):
        sums.begin_batch()
        for step, loss, cell, exact, norm in rows:
            sums.add(result(step, loss, cell, exact), torch.tensor(norm))
    return sums


def test_means_over_two_batches_by_hand() -> None:
    sums = two_batches()
    assert sums.num_batches == 2
    means = sums.read(ALONE)
    assert means.loss == 5.0  # of 4, 2, 6, 8
    assert means.grad_norm == 4.0  # of 1, 3, 5, 7
    assert means.cell_accuracy == pytest.approx([0.3, 0.6])
    assert means.exact_accuracy == pytest.approx([0.25, 0.75])
    assert means.is_finite


def test_reading_starts_anew() -> None:
    sums = two_batches()
    sums.read(ALONE)
    assert sums.num_batches == 0
    sums.begin_batch()
    for step in (1, 2):
        sums.add(result(step, 1.0, 1.0, 1.0), torch.tensor(2.0))
    means = sums.read(ALONE)
    assert (means.loss, means.grad_norm, means.exact_accuracy) == (1.0, 2.0, [1.0, 1.0])


def test_the_means_are_over_all_ranks() -> None:
    class TwoRanks:
        """The other rank adds nothing but zeros."""

        world_size = 2

        def sum(self, tensor: Tensor) -> Tensor:
            return tensor

    ranks: Any = TwoRanks()
    means = two_batches().read(ranks)
    assert (means.loss, means.grad_norm) == (2.5, 2.0)


def test_the_rate_counts_optimizer_steps_since_the_first_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One reading of the clock when the first of the two batches begins, one at the end.
    clock = iter([100.0, 108.0])
    monkeypatch.setattr("training.metrics.time.perf_counter", lambda: next(clock))
    assert two_batches().read(ALONE).steps_per_second == 4 / 8


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_one_value_that_is_not_finite_is_noticed_among_many(what: str, value: float) -> None:
    sums = two_batches()
    sums.begin_batch()
    loss, norm = (value, 1.0) if what == "loss" else (1.0, value)
    sums.add(result(1, loss, 0.5, 0.5), torch.tensor(norm))
    sums.add(result(2, 1.0, 0.5, 0.5), torch.tensor(1.0))
    assert not sums.read(ALONE).is_finite


def test_the_names_of_the_figures() -> None:
    means = TrainingMetrics(
        loss=1.5,
        cell_accuracy=[0.1, 0.2],
        exact_accuracy=[0.3, 0.4],
        grad_norm=7.0,
        steps_per_second=8.0,
    )
    assert means.as_dict() == {
        "train/loss": 1.5,
        "train/exact_accuracy": 0.4,
        "train/cell_accuracy": 0.2,
        "train/grad_norm": 7.0,
        "train/steps_per_second": 8.0,
        "train/exact_accuracy_step1": 0.3,
        "train/exact_accuracy_step2": 0.4,
    }
