"""Training metrics, summed on the device: reading a number would make the host wait for it."""

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from common.distributed import Ranks
from models.supervision import StepResult


class TrainingMetrics(NamedTuple):
    """Means since the last reading, over all ranks."""

    loss: float
    """Over optimizer steps, weights applied."""
    grad_norm: float
    finished: dict[str, float]
    """Metrics of examples after their last supervision step; none if no example got there."""
    by_step: dict[str, list[float]]
    """Metrics after each supervision step; NaN where no example took it."""
    steps_per_second: float
    """Optimizer steps."""
    examples_per_second: float
    """Examples that took their last supervision step."""

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    def as_dict(self) -> dict[str, float]:
        """Under the names that metrics.jsonl and W&B use."""
        by_step = {
            f"{name}_step{s}": value
            for name, values in self.by_step.items()
            for s, value in enumerate(values, start=1)
            if not math.isnan(value) and name != "steps_taken"  # Of step s it is s.
        }
        metrics = {
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "steps_per_second": self.steps_per_second,
            "examples_per_second": self.examples_per_second,
            **self.finished,
            **by_step,
        }
        return {f"train/{name}": value for name, value in metrics.items()}


class MetricSums:
    """Collects what optimizer steps did."""

    def __init__(self, num_supervision_steps: int, device: torch.device) -> None:
        self._num_rows = num_supervision_steps + 1
        self._device = device
        self._names: list[str] = []
        # A row for each supervision step and one for what is finished; a column for each
        # metric, and one that counts examples.
        self._sums = torch.zeros(0)
        self._steps = torch.zeros(2, device=device)  # Loss and gradient norm.
        self._started = 0.0
        self.num_steps = 0

    def begin_batch(self) -> None:
        """Start the clock if this is the first batch since the last reading."""
        if self.num_steps == 0:
            self._started = time.perf_counter()

    def add(self, result: StepResult, grad_norm: Tensor) -> None:
        """Add one optimizer step of this rank's batch."""
        if not self._names:
            self._names = list(result.metrics)
            self._sums = torch.zeros(self._num_rows, len(self._names) + 1, device=self._device)
        self._steps += torch.stack([result.loss.detach(), grad_norm])
        columns = [*result.metrics.values(), torch.ones_like(result.finished, dtype=torch.float32)]
        rows = torch.stack(columns, dim=1)
        self._sums.index_add_(0, result.supervision_steps - 1, rows)
        self._sums[-1] += (rows * result.finished.unsqueeze(1)).sum(dim=0)
        self.num_steps += 1

    def read(self, ranks: Ranks) -> TrainingMetrics:
        """The means so far, and start anew. Waits for the device; all ranks must call it."""
        steps = ranks.sum(self._steps) / (self.num_steps * ranks.world_size)
        loss, grad_norm = steps.tolist()
        sums = ranks.sum(self._sums).cpu()
        # Without any example the mean is 0/0: NaN.
        means, counts = sums[:, :-1] / sums[:, -1:], sums[:, -1]
        seconds = time.perf_counter() - self._started
        num_finished = counts[-1].item()
        finished = dict(zip(self._names, means[-1].tolist(), strict=True)) if num_finished else {}
        metrics = TrainingMetrics(
            loss,
            grad_norm,
            finished,
            dict(zip(self._names, means[:-1].T.tolist(), strict=True)),
            steps_per_second=self.num_steps / seconds,
            examples_per_second=num_finished / seconds,
        )
        self._steps.zero_()
        self._sums.zero_()
        self.num_steps = 0
        return metrics
