"""Means of the training metrics by hand, over steps, batches and ranks."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from models.flops import step_flops
from models.recursive import ArchConfig
from models.supervision import StepResult
from tiny import ALONE, CPU
from training.metrics import MetricSums, TrainingMetrics, has_diverged

NAMES = ("cell_accuracy", "exact_accuracy")
BOTH = torch.tensor([True, True])


def step_result(steps: list[int], finished: list[bool], **metrics: list[float]) -> StepResult:
    nothing = torch.zeros(0)
    return StepResult(
        nothing,
        nothing,
        torch.tensor(steps),
        torch.tensor(finished),
        {name: torch.tensor(values) for name, values in metrics.items()},
    )


def of_all(step: int, cell: list[float], exact: list[float]) -> StepResult:
    """A batch of two whose examples take the same step, the second of two the last."""
    metrics = {"cell_accuracy": cell, "exact_accuracy": exact}
    return step_result([step] * 2, [step == 2] * 2, **metrics)


FLOPS = partial(step_flops, ArchConfig(hidden_size=4, num_heads=1, prefix_length=1), 12)


def add(sums: MetricSums, result: StepResult, is_example: Tensor = BOTH) -> None:
    """With sequences of 3, 4, ... tokens."""
    sums.add(result, is_example, 3 + torch.arange(len(is_example)))


def add_update(sums: MetricSums, loss: float, norm: float, is_finite: bool = True) -> None:
    sums.add_update(torch.tensor(loss), torch.tensor(norm), torch.tensor(is_finite))
    sums.num_steps += 1


def two_batches() -> MetricSums:
    sums = MetricSums(NAMES, num_supervision_steps=2, device=CPU, flops=FLOPS)
    for rows in (
        [(1, 4.0, [0.1, 0.3], [0, 0], 1.0), (2, 2.0, [0.5, 0.3], [0, 1], 3.0)],
        [(1, 6.0, [0.2, 0.6], [1, 0], 5.0), (2, 8.0, [1.0, 0.6], [1, 1], 7.0)],
    ):
        sums.begin_batch()
        for step, loss, cell, exact, norm in rows:
            add(sums, of_all(step, cell, exact))
            add_update(sums, loss, norm)
    return sums


def test_means_over_two_batches_by_hand_and_then_anew() -> None:
    sums = two_batches()
    means = sums.read(ALONE)
    assert means.loss == 5.0  # of 4, 2, 6, 8
    assert means.grad_norm == 4.0  # of 1, 3, 5, 7
    assert means.by_step["cell_accuracy"] == pytest.approx([0.3, 0.6])
    assert means.by_step["exact_accuracy"] == pytest.approx([0.25, 0.75])
    assert means.finished == pytest.approx({"cell_accuracy": 0.6, "exact_accuracy": 0.75})
    assert means.skipped_steps == 0
    assert sums.num_steps == 0
    sums.begin_batch()
    for step in (1, 2):
        add(sums, of_all(step, [1.0, 1.0], [1, 1]))
        add_update(sums, 1.0, 2.0)
    means = sums.read(ALONE)
    assert (means.loss, means.grad_norm) == (1.0, 2.0)
    assert means.by_step == {"cell_accuracy": [1.0, 1.0], "exact_accuracy": [1.0, 1.0]}
    assert means.finished == {"cell_accuracy": 1.0, "exact_accuracy": 1.0}


def test_what_fills_a_batch_up_counts_nowhere() -> None:
    sums = MetricSums(NAMES, num_supervision_steps=2, device=CPU, flops=FLOPS)
    sums.begin_batch()
    add(sums, of_all(2, [0.5, 0.9], [1, 0]), torch.tensor([True, False]))
    means = sums.read(ALONE)
    assert means.finished == {"cell_accuracy": 0.5, "exact_accuracy": 1.0}
    assert {name: values[1] for name, values in means.by_step.items()} == means.finished


def test_examples_at_steps_of_their_own_count_at_these_by_hand() -> None:
    """Three slots, two optimizer steps, up to three supervision steps: as with halting."""
    sums = MetricSums(("metric",), num_supervision_steps=3, device=CPU, flops=FLOPS)
    for steps, finished, values in (
        ([1, 3, 1], [False, True, True], [10.0, 20.0, 30.0]),
        ([2, 1, 1], [True, False, False], [40.0, 50.0, 60.0]),
    ):
        sums.begin_batch()
        add(sums, step_result(steps, finished, metric=values), torch.ones(3, dtype=torch.bool))
        add_update(sums, 1.0, 1.0)
    means = sums.read(ALONE)
    assert means.by_step == {"metric": [(10 + 30 + 50 + 60) / 4, 40, 20]}
    assert means.finished == {"metric": (20 + 30 + 40) / 3}


def test_what_no_example_took_or_finished_has_no_metric() -> None:
    sums = MetricSums(("metric",), num_supervision_steps=3, device=CPU, flops=FLOPS)
    sums.begin_batch()
    add(sums, step_result([2, 2], [False, False], metric=[1.0, 2.0]))
    add_update(sums, 1.5, 1.0)
    means = sums.read(ALONE)
    assert means.finished == {}
    assert means.by_step["metric"][1] == 1.5
    written = means.as_dict()
    assert {name for name in written if "metric" in name} == {"train/metric_step2"}
    assert all(math.isfinite(value) for value in written.values())
    assert written["train/examples_per_second"] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_steps_that_made_no_update_are_counted_and_part_of_no_mean(value: float) -> None:
    sums = two_batches()
    add_update(sums, value, 1.0, is_finite=False)
    add_update(sums, 1.0, value, is_finite=False)
    means = sums.read(ALONE)
    assert (means.loss, means.grad_norm, means.skipped_steps) == (5.0, 4.0, 2)
    add_update(sums, value, value, is_finite=False)
    means = sums.read(ALONE)
    assert math.isnan(means.loss) and math.isnan(means.grad_norm)
    assert means.skipped_steps == 1


def test_steps_that_made_no_update_are_said_and_a_run_without_any_has_diverged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not has_diverged(0, 7, 9)
    assert caplog.messages == []
    assert not has_diverged(2, 7, 9)
    assert has_diverged(3, 7, 9)
    said = [f"{n} of the optimizer steps 7 to 9 changed nothing" for n in (2, 3)]
    assert [line.split(",")[0] for line in caplog.messages] == said


class TwoRanks:
    """The other rank has taken the same steps, and got `other` where this one got something."""

    world_size = 2

    def __init__(self, other: float) -> None:
        self.other = other

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor.add_(self.other * tensor)


@pytest.mark.parametrize(("other", "examples"), [(0, 4), (1, 8)])
def test_metrics_are_means_over_the_examples_of_two_ranks_and_losses_known_to_both(
    monkeypatch: pytest.MonkeyPatch, other: float, examples: int
) -> None:
    """A rank that got nothing has zeros everywhere, and no examples.

    The rates count optimizer steps, which the ranks take together, and finished examples.
    """
    # One reading of the clock when the first of the two batches begins, one at the end.
    clock = iter([100.0, 108.0])
    monkeypatch.setattr("training.metrics.time.perf_counter", clock.__next__)
    ranks: Any = TwoRanks(other)
    means = two_batches().read(ranks)
    assert (means.loss, means.grad_norm) == (5.0, 4.0)
    assert means.by_step["exact_accuracy"] == pytest.approx([0.25, 0.75])
    assert means.finished["exact_accuracy"] == pytest.approx(0.75)
    assert (means.steps_per_second, means.examples_per_second) == (4 / 8, examples / 8)
    # Sequences of 3 and 4 tokens took two steps in each of two batches.
    ranks_worth = examples / 4
    assert means.tokens_per_second == ranks_worth * 4 * (3 + 4) / 8
    assert means.flops_per_second == ranks_worth * 4 * FLOPS(2, 3 + 4, 9 + 16) / 8


def test_the_names_of_the_metrics() -> None:
    means = TrainingMetrics(
        num_steps=6,
        loss=1.5,
        grad_norm=7.0,
        finished={"steps_taken": 2.5, "exact_accuracy": 0.4},
        by_step={"steps_taken": [1.0, 2.0, 3.0], "exact_accuracy": [0.3, math.nan, 0.5]},
        steps_per_second=8.0,
        examples_per_second=9.0,
        tokens_per_second=90.0,
        flops_per_second=1e9,
        skipped_steps=3,
    )
    assert means.as_dict() == {
        "train/loss": 1.5,
        "train/grad_norm": 7.0,
        "train/steps_per_second": 8.0,
        "train/examples_per_second": 9.0,
        "train/tokens_per_second": 90.0,
        "train/skipped_steps": 3,
        "train/exact_accuracy": 0.4,
        "train/steps_taken": 2.5,  # After each step it is the step's number: not said.
        "train/exact_accuracy_step1": 0.3,
        "train/exact_accuracy_step3": 0.5,
    }
