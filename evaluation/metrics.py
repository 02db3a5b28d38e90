"""What each improvement step did to the answers of a batch, measured where the network computes.

Shape letters: B batch, N rows of a test set, S steps, L canvas cells, K metrics.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.segments import Segment
from models.diagnostics import ACCURACY, DIAGNOSTICS, accuracy, diagnose
from models.objective import IGNORE, counted_solution
from models.steps import Improvement, TrainedModel
from models.supervision import segment_targets

TARGET_SEED = 0
"""Of the random paths that answers at test time are compared with."""


class StepMetrics:
    """Follows the answers of one batch through its steps.

    Args:
        segment: whole canvases.
        trained: the model that answers them.
        colours: see `TargetRequest`.
        guidance_weight: that the answers are given with.
        diagnostics: also measure distances and margins.
    """

    def __init__(
        self,
        segment: Segment,
        trained: TrainedModel,
        colours: range,
        guidance_weight: float,
        diagnostics: bool,
    ) -> None:
        self.solution = counted_solution(segment.labels)
        self.guidance_weight = guidance_weight
        self.targets: Tensor | None = None
        if diagnostics:
            num_cells = segment.inputs.shape[1]
            self.targets = segment_targets(
                trained.supervision, segment, trained.trained_steps, num_cells, colours, TARGET_SEED
            )
        self._previous = segment.inputs
        self._rows: list[Tensor] = []

    def add(self, step: Improvement, answer: Tensor, cells: Tensor | None) -> None:
        """Measure one step.

        Args:
            step: what the answer was read from.
            answer: int64 [B, L] on the whole canvas.
            cells: which cells the step's logits are of; None: all, in order.
        """
        metrics = accuracy(answer, self.solution)
        if self.targets is not None:
            assert step.reference_logits is not None, "margins need it"
            # Beyond the steps that were trained, the target stays the solution.
            s = min(len(self._rows) + 1, self.targets.shape[1] - 1)
            metrics |= diagnose(
                self._previous,
                answer,
                self.targets[:, s],
                self.solution,
                step.reference_logits,
                step.conditional_logits,
                cells,
                self.guidance_weight,
            )
        self._previous = answer
        names = metric_names(diagnostics=self.targets is not None)
        self._rows.append(torch.stack([metrics[name] for name in names], dim=-1))

    def values(self) -> Tensor:
        """[B, S, K] in the order of `metric_names`, NaN where the solution is hidden."""
        is_known = (self.solution != IGNORE).any(dim=1)
        return torch.stack(self._rows, dim=1).masked_fill(~is_known.view(-1, 1, 1), float("nan"))


def metric_names(diagnostics: bool) -> tuple[str, ...]:
    """What `StepMetrics` measures."""
    return ACCURACY + DIAGNOSTICS if diagnostics else ACCURACY


def mean_metrics(values: npt.NDArray[np.float32], names: Sequence[str]) -> dict[str, float]:
    """Means of metrics [N, S, K] over the rows with a known solution; none without such a row.

    Each metric after the last step under its name, and after step s as `NAME_step{s}`.
    """
    known = values[~np.isnan(values[:, -1, 0])].astype(np.float64)
    if not len(known):
        return {}
    means = dict(zip(names, (known.sum(axis=0) / len(known)).T, strict=True))
    last = {name: float(by_step[-1]) for name, by_step in means.items()}
    return last | {
        f"{name}_step{s}": float(value)
        for name, by_step in means.items()
        for s, value in enumerate(by_step, start=1)
    }
