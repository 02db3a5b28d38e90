"""Training metrics, summed on the device: reading a number would make the host wait for it."""

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from common.distributed import Ranks
from models.supervision import StepResult


class TrainingMetrics(NamedTuple):
    """Means over the optimizer steps since the last reading, and over all ranks."""

    loss: float
    """Over all supervision steps, weights applied."""
    cell_accuracy: list[float]
    """After each supervision step, share of counted solution cells."""
    exact_accuracy: list[float]
    """After each supervision step, share of examples right in every counted cell."""
    grad_norm: float
    steps_per_second: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    def as_dict(self) -> dict[str, float]:
        """Under the names that metrics.jsonl and W&B use."""
        by_step = {
            f"train/exact_accuracy_step{s}": value
            for s, value in enumerate(self.exact_accuracy, start=1)
        }
        return {
            "train/loss": self.loss,
            "train/exact_accuracy": self.exact_accuracy[-1],
            "train/cell_accuracy": self.cell_accuracy[-1],
            "train/grad_norm": self.grad_norm,
            "train/steps_per_second": self.steps_per_second,
            **by_step,
        }


class MetricSums:
    """Collects one row (loss, cell accuracy, exact accuracy, gradient norm) a supervision step."""

    def __init__(self, num_supervision_steps: int, device: torch.device) -> None:
        self._sums = torch.zeros(num_supervision_steps, 4, device=device)
        self._started = 0.0
        self.num_batches = 0

    def begin_batch(self) -> None:
        """Start the clock if this is the first batch since the last reading."""
        if self.num_batches == 0:
            self._started = time.perf_counter()

    def add(self, result: StepResult, grad_norm: Tensor) -> None:
        """Add one supervision step of this rank's batch."""
        row = [result.loss.detach(), result.cell_accuracy, result.exact_accuracy, grad_norm]
        self._sums[result.supervision_step - 1] += torch.stack(row)
        self.num_batches += result.supervision_step == len(self._sums)

    def read(self, ranks: Ranks) -> TrainingMetrics:
        """The means so far, and start anew. Waits for the device; all ranks must call it."""
        sums = ranks.sum(self._sums)
        means = (sums / (self.num_batches * ranks.world_size)).cpu()
        num_steps = self.num_batches * len(sums)
        self._sums.zero_()
        self.num_batches = 0
        return TrainingMetrics(
            loss=means[:, 0].mean().item(),
            cell_accuracy=means[:, 1].tolist(),
            exact_accuracy=means[:, 2].tolist(),
            grad_norm=means[:, 3].mean().item(),
            steps_per_second=num_steps / (time.perf_counter() - self._started),
        )
