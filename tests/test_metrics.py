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


def result(
    steps: list[int], finished: list[bool], loss: float, **figures: list[float]
) -> StepResult:
    nothing = torch.zeros(0)
    return StepResult(
        torch.tensor(loss, requires_grad=True),
        nothing,
        nothing,
        torch.tensor(steps),
        torch.tensor(finished),
        {name: torch.tensor(values) for name, values in figures.items()},
    )


def of_all(step: int, loss: float, cell: list[float], exact: list[float]) -> StepResult:
    """A batch of two whose examples take the same step, the second of two the last."""
    figures = {"cell_accuracy": cell, "exact_accuracy": exact}
    return result([step] * 2, [step == 2] * 2, loss, **figures)


def two_batches() -> MetricSums:
    sums = MetricSums(num_supervision_steps=2, device=CPU)
    for rows in (
        [(1, 4.0, [0.1, 0.3], [0, 0], 1.0), (2, 2.0, [0.5, 0.3], [0, 1], 3.0)],
        [(1, 6.0, [0.2, 0.6], [1, 0], 5.0), (2, 8.0, [1.0, 0.6], [1, 1], 7.0)],
    ):
        sums.begin_batch()
        for step, loss, cell, exact, norm in rows:
            sums.add(of_all(step, loss, cell, exact), torch.tensor(norm))
    return sums


def test_means_over_two_batches_by_hand() -> None:
    sums = two_batches()
    assert sums.num_steps == 4
    means = sums.read(ALONE)
    assert means.loss == 5.0  # of 4, 2, 6, 8
    assert means.grad_norm == 4.0  # of 1, 3, 5, 7
    assert means.by_step["cell_accuracy"] == pytest.approx([0.3, 0.6])
    assert means.by_step["exact_accuracy"] == pytest.approx([0.25, 0.75])
    assert means.finished == pytest.approx({"cell_accuracy": 0.6, "exact_accuracy": 0.75})
    assert means.is_finite


def test_examples_at_steps_of_their_own_count_at_these_by_hand() -> None:
    """Three slots, two optimizer steps, up to three supervision steps: as with halting."""
    sums = MetricSums(num_supervision_steps=3, device=CPU)
    for steps, finished, taken in (
        ([1, 3, 1], [False, True, True], [10.0, 20.0, 30.0]),
        ([2, 1, 1], [True, False, False], [40.0, 50.0, 60.0]),
    ):
        sums.begin_batch()
        sums.add(result(steps, finished, 1.0, figure=taken), torch.tensor(1.0))
    means = sums.read(ALONE)
    assert means.by_step == {"figure": [(10 + 30 + 50 + 60) / 4, 40, 20]}
    assert means.finished == {"figure": (20 + 30 + 40) / 3}


def test_a_step_that_no_example_took_has_no_figure_nor_has_what_none_finished() -> None:
    sums = MetricSums(num_supervision_steps=3, device=CPU)
    sums.begin_batch()
    sums.add(result([2, 2], [False, False], 1.5, figure=[1.0, 2.0]), torch.tensor(1.0))
    means = sums.read(ALONE)
    assert means.finished == {}
    assert means.by_step["figure"][1] == 1.5
    assert means.is_finite, "nothing has diverged"
    written = means.as_dict()
    assert {name for name in written if "figure" in name} == {"train/figure_step2"}
    assert all(math.isfinite(value) for value in written.values())
    assert written["train/examples_per_second"] == 0


def test_reading_starts_anew() -> None:
    sums = two_batches()
    sums.read(ALONE)
    assert sums.num_steps == 0
    sums.begin_batch()
    for step in (1, 2):
        sums.add(of_all(step, 1.0, [1.0, 1.0], [1, 1]), torch.tensor(2.0))
    means = sums.read(ALONE)
    assert (means.loss, means.grad_norm) == (1.0, 2.0)
    assert means.by_step == {"cell_accuracy": [1.0, 1.0], "exact_accuracy": [1.0, 1.0]}
    assert means.finished == {"cell_accuracy": 1.0, "exact_accuracy": 1.0}


class TwoRanks:
    """The other rank has taken the same steps, and got `other` where this one got something."""

    world_size = 2

    def __init__(self, other: float) -> None:
        self.other = other

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor.add_(self.other * tensor)


def test_the_means_are_over_all_ranks() -> None:
    """Losses are the mean of two ranks', figures that of all examples."""
    idle: Any = TwoRanks(other=0)  # Zeros everywhere, and no examples.
    means = two_batches().read(idle)
    assert (means.loss, means.grad_norm) == (2.5, 2.0)
    assert means.by_step["exact_accuracy"] == pytest.approx([0.25, 0.75])
    equal: Any = TwoRanks(other=1)
    means = two_batches().read(equal)
    assert (means.loss, means.grad_norm) == (5.0, 4.0)
    assert means.by_step["exact_accuracy"] == pytest.approx([0.25, 0.75])
    assert means.finished["exact_accuracy"] == pytest.approx(0.75)


def test_the_rates_count_optimizer_steps_and_finished_examples_since_the_first_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One reading of the clock when the first of the two batches begins, one at the end.
    clock = iter([100.0, 108.0, 200.0, 208.0])
    monkeypatch.setattr("training.metrics.time.perf_counter", lambda: next(clock))
    means = two_batches().read(ALONE)
    assert means.steps_per_second == 4 / 8
    assert means.examples_per_second == 4 / 8
    of_two_ranks: Any = TwoRanks(other=1)
    means = two_batches().read(of_two_ranks)
    assert means.steps_per_second == 4 / 8, "the ranks take the same steps"
    assert means.examples_per_second == 8 / 8


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_one_value_that_is_not_finite_is_noticed_among_many(what: str, value: float) -> None:
    sums = two_batches()
    sums.begin_batch()
    loss, norm = (value, 1.0) if what == "loss" else (1.0, value)
    sums.add(of_all(1, loss, [0.5] * 2, [0.5] * 2), torch.tensor(norm))
    sums.add(of_all(2, 1.0, [0.5] * 2, [0.5] * 2), torch.tensor(1.0))
    assert not sums.read(ALONE).is_finite


def test_the_names_of_the_figures() -> None:
    means = TrainingMetrics(
        loss=1.5,
        grad_norm=7.0,
        finished={"cell_accuracy": 0.2, "exact_accuracy": 0.4},
        by_step={"cell_accuracy": [0.1, math.nan, 0.2], "exact_accuracy": [0.3, math.nan, 0.5]},
        steps_per_second=8.0,
        examples_per_second=9.0,
    )
    assert means.as_dict() == {
        "train/loss": 1.5,
        "train/grad_norm": 7.0,
        "train/steps_per_second": 8.0,
        "train/examples_per_second": 9.0,
        "train/exact_accuracy": 0.4,
        "train/cell_accuracy": 0.2,
        "train/cell_accuracy_step1": 0.1,
        "train/cell_accuracy_step3": 0.2,
        "train/exact_accuracy_step1": 0.3,
        "train/exact_accuracy_step3": 0.5,
    }
