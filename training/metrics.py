"""Training metrics, summed on the device: reading a number would make the host wait for it."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from common.distributed import Ranks
from common.errors import UserError
from models.supervision import StepResult

log = logging.getLogger(__name__)


def is_of_the_machine(name: str) -> bool:
    """Whether a metric tells what the machine does, and nothing of what is learned."""
    return any(word in name for word in ("per_second", "minutes", "hours", "peak"))


class TrainingMetrics(NamedTuple):
    """Means since the last reading, over all ranks."""

    num_steps: int
    """Optimizer steps since then."""
    loss: float
    """Over the optimizer steps that made an update, weights applied; NaN if none did."""
    grad_norm: float
    finished: dict[str, float]
    """Metrics of examples after their last supervision step; none if no example got there."""
    by_step: dict[str, list[float]]
    """Metrics after each supervision step; NaN where no example took it."""
    steps_per_second: float
    """Optimizer steps."""
    examples_per_second: float
    """Examples that took their last supervision step."""
    tokens_per_second: float
    """Tokens, prefixes included, that took any supervision step."""
    flops_per_second: float
    """Model FLOPs of all ranks, see `models.flops`."""
    skipped_steps: int
    """Optimizer steps without an update, as loss or gradient were not finite."""

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
            "tokens_per_second": self.tokens_per_second,
            "skipped_steps": self.skipped_steps,
            **self.finished,
            **by_step,
        }
        return {f"train/{name}": value for name, value in metrics.items()}


class MetricSums:
    """Collects what optimizer steps did.

    Args:
        names: of the metrics of an example.
        num_supervision_steps: S.
        device: where they are summed.
        flops: of a supervision step of so many sequences, tokens and squares of lengths, see
            `models.flops.step_flops`.
    """

    def __init__(
        self,
        names: Sequence[str],
        num_supervision_steps: int,
        device: torch.device,
        flops: Callable[[float, float, float], float],
    ) -> None:
        self._names = names
        self._flops = flops
        # A row for each supervision step and one for what is finished; a column for each
        # metric, and three for examples, their tokens, and the squares of their lengths.
        self._sums = torch.zeros(num_supervision_steps + 1, len(names) + 3, device=device)
        self._updates = torch.zeros(3, device=device)  # Loss, gradient norm, number of updates.
        self._started = 0.0
        self.num_steps = 0

    def tensors(self) -> tuple[Tensor, Tensor]:
        """What the sums are in."""
        return self._sums, self._updates

    def begin_batch(self) -> None:
        """Start the clock if this is the first batch since the last reading."""
        if self.num_steps == 0:
            self._started = time.perf_counter()

    def add(self, result: StepResult, is_example: Tensor, lengths: Tensor) -> None:
        """Add one supervision step of a micro-batch.

        Args:
            result: of the step.
            is_example: bool [B] which sequences count.
            lengths: int [B] of the sequences in tokens, prefixes included.
        """
        tokens = lengths.float()
        metrics = [result.metrics[name] for name in self._names]
        values = torch.stack([*metrics, torch.ones_like(tokens), tokens, tokens.square()], dim=1)
        # Numbers of a step that is not finite would spoil those of all others in the products.
        values = values.nan_to_num(0.0, 0.0, 0.0) * is_example.unsqueeze(1)
        # By products, which are summed in one order, as adding by index on CUDA is not.
        steps = torch.arange(len(self._sums) - 1, device=values.device)
        took = (result.supervision_steps - 1 == steps[:, None]).float()
        self._sums[:-1] += took @ values
        self._sums[-1] += result.finished.float() @ values

    def add_update(self, loss: Tensor, grad_norm: Tensor, is_finite: Tensor) -> None:
        """Add one optimizer step, the same on all ranks."""
        values = torch.stack([loss, grad_norm, torch.ones_like(loss)])
        self._updates += torch.where(is_finite, values, 0.0)

    def read(self, ranks: Ranks) -> TrainingMetrics:
        """The means so far, and start anew. Waits for the device; all ranks must call it."""
        *totals, num_updates = self._updates.tolist()
        loss, grad_norm = (total / num_updates if num_updates else math.nan for total in totals)
        sums = ranks.sum(self._sums).cpu()
        num_names = len(self._names)
        # Without any example the mean is 0/0: NaN.
        means = sums[:, :num_names] / sums[:, num_names, None]
        seconds = time.perf_counter() - self._started
        num_finished = sums[-1, num_names].item()
        num_sequences, num_tokens, num_squared = sums[:-1, num_names:].sum(dim=0).tolist()
        finished = dict(zip(self._names, means[-1].tolist(), strict=True)) if num_finished else {}
        metrics = TrainingMetrics(
            self.num_steps,
            loss,
            grad_norm,
            finished,
            dict(zip(self._names, means[:-1].T.tolist(), strict=True)),
            steps_per_second=self.num_steps / seconds,
            examples_per_second=num_finished / seconds,
            tokens_per_second=num_tokens / seconds,
            flops_per_second=self._flops(num_sequences, num_tokens, num_squared) / seconds,
            skipped_steps=self.num_steps - round(num_updates),
        )
        self._updates.zero_()
        self._sums.zero_()
        self.num_steps = 0
        return metrics


def has_diverged(skipped_steps: int, first: int, last: int) -> bool:
    """Whether none of the optimizer steps `first` to `last` made an update; says how many did not.

    Nothing is learned any more then, but nothing is spoilt either: weights are those of before.
    """
    if skipped_steps:
        log.warning(
            "%d of the optimizer steps %d to %d changed nothing, as a loss or gradient was not "
            "finite", skipped_steps, first, last,
        )  # fmt: skip
    return skipped_steps == last - first + 1


def diverged(step: int) -> UserError:
    """What to do about it; `step` is the last, which is saved."""
    return UserError(
        f"training diverged: at none of the last optimizer steps were loss and gradient finite. "
        f"What was learned before is saved at step {step}: go on with resume=auto and a lower "
        f"optim.lr, optim.grad_clip=1.0 or a longer optim.warmup_steps, or from an earlier "
        f"checkpoint, without those after it"
    )
