"""Where a run stands: how far it is, at which rates it learns, what it has cost and still will."""

import logging

from common.distributed import Ranks, peak_memory
from common.progress import in_words
from models.flops import matmul_peak
from training.metrics import TrainingMetrics
from training.optimizers import OptimConfig, learning_rates, lr_schedule
from training.state import TrainingState

SETTLED_STEPS = 100
"""Optimizer steps after which a process says how long the run will take."""

log = logging.getLogger(__name__)


class Standing:
    """Of a run that a process is at work on.

    Args:
        state: what is trained.
        config: of the optimizers.
        ranks: whose devices the run takes.
        total_steps: optimizer steps of the whole run.
        max_minutes: its budget of training time; None: steps alone end it.
        examples_per_step: of a batch, shared among its optimizer steps.
    """

    def __init__(
        self,
        state: TrainingState,
        config: OptimConfig,
        ranks: Ranks,
        total_steps: int,
        max_minutes: float | None,
        examples_per_step: float,
    ) -> None:
        self.state = state
        self.config = config
        self.ranks = ranks
        self.total_steps = total_steps
        self.max_minutes = max_minutes
        self.examples_per_step = examples_per_step
        # Measured, not looked up: no list of cards is complete, and none knows a shared one.
        self.peak = matmul_peak(ranks.device, state.model.compute_dtype) * ranks.world_size
        self._settled = SETTLED_STEPS

    @property
    def lr_factor(self) -> float:
        """Of the optimizer step to come, on all peak learning rates."""
        return lr_schedule(self.config, self.state.step, self.total_steps, self.time_used)

    @property
    def time_used(self) -> float:
        """Share of the run's budget of training time; 0 without one."""
        return 0.0 if self.max_minutes is None else self.state.seconds / (60 * self.max_minutes)

    @property
    def is_done(self) -> bool:
        return self.state.step >= self.total_steps or self.time_used >= 1

    @property
    def axes(self) -> dict[str, float]:
        """What charts are drawn over, besides the step."""
        examples = round(self.state.step * self.examples_per_step)
        return {"examples": examples, "minutes": self.state.seconds / 60}

    def metrics(self, means: TrainingMetrics) -> dict[str, float]:
        """What is recorded beside the means: axes, learning rates, norms, cost."""
        seconds_left = self._seconds_left(means.steps_per_second)
        self._say_once_settled(means.num_steps, seconds_left)
        found = learning_rates(self.config, self.lr_factor) | self.state.norms()
        found |= {
            "share_of_matmul_peak": means.flops_per_second / self.peak,
            "peak_memory_gb": peak_memory(self.ranks.device) / 1e9,
            "device_hours": self._device_hours(self.state.seconds),
            "device_hours_left": self._device_hours(seconds_left),
        }
        return self.axes | {f"train/{name}": value for name, value in found.items()}

    def say_first_step(self, flops: float, is_prepared: bool) -> None:
        """Say how soon a run gets on, before it begins.

        Args:
            flops: model FLOPs of an optimizer step, on all ranks.
            is_prepared: whether the step is compiled or captured first.
        """
        seconds = flops / self.peak
        # A bound, and no estimate: small networks come to a tenth of the peak, large ones to half.
        took = f"{seconds:.2g} s" if seconds < 10 else in_words(seconds)
        start = "after up to a minute of compiling" if is_prepared else "nothing is compiled"
        log.info(
            "first step: %s, then at least %s a step, which its products take at the peak of this "
            "device", start, took,
        )  # fmt: skip

    def _seconds_left(self, steps_per_second: float) -> float:
        left = max(0, self.total_steps - self.state.step) / steps_per_second
        if self.max_minutes is None:
            return left
        return min(left, max(0.0, 60 * self.max_minutes - self.state.seconds))

    def _device_hours(self, seconds: float) -> float:
        return seconds * self.ranks.world_size / 3600

    def _say_once_settled(self, num_steps: int, seconds_left: float) -> None:
        """After the first steps, of which compiling is a part no longer."""
        before, self._settled = self._settled, self._settled - num_steps
        if before > 0 >= self._settled and not self.is_done:
            hours = f"{self._device_hours(seconds_left):.2g}"
            device = "GPU" if self.ranks.device.type == "cuda" else "process"
            log.info("At this speed training takes %s more (%s %s-hours), evaluations not counted",
                     in_words(seconds_left), hours, device)  # fmt: skip
