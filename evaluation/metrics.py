"""What each improvement step did to the answers of a batch, measured where the network computes.

`loss` is the cross-entropy (stablemax) with the solution, whatever the model was trained towards;
with guidance, of the logits that give the answer.

Shape letters: B sequences, N rows of a test set, S steps, L canvas cells, K metrics.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.packed import PackedBatch
from models.diagnostics import ACCURACY, DIAGNOSTICS, accuracy, margins, movement
from models.objective import IGNORE, counted_solution, per_sequence, stablemax_cross_entropy
from models.randomness import CellRandom
from models.steps import Improvement, TrainedModel
from models.supervision import SupervisionConfig, step_targets
from models.targets import TargetRequest

TARGET_SEED = 0
"""Of the random paths that answers at test time are compared with."""
LOSS_NOT_SHOWN = 24 * math.log(2)
"""Loss of a cell of the solution that the network was not shown: 16.6. It gave no logits there, and
its answer is PAD. That is charged as certainty to the resolution of fp32, whose largest number
below 1 leaves 2**-24 to the right token."""


class StepMetrics:
    """Follows the answers of one batch through its steps.

    Answers are judged on the whole canvas, whatever was shown of it: what a solution has elsewhere
    is wrong, and costs LOSS_NOT_SHOWN.

    Args:
        batch: what is shown.
        labels: int64 [B, L] the solutions on whole canvases.
        trained: the model that answers.
        colours: see `TargetRequest`.
        guidance_weight: that the answers are given with.
        diagnostics: also measure distances and margins.
    """

    def __init__(
        self,
        batch: PackedBatch,
        labels: Tensor,
        trained: TrainedModel,
        colours: range,
        guidance_weight: float,
        diagnostics: bool,
    ) -> None:
        self.batch = batch
        self.solution = counted_solution(labels)
        self.shown_solution = batch.from_canvas(self.solution, fill=IGNORE)
        """int64 [N] at the cells that are shown."""
        self.guidance_weight = guidance_weight
        count, num_cells = labels.shape
        self.canvases = num_cells * torch.arange(count + 1, device=labels.device)
        """int64 [B + 1] where canvases begin and end, one after another."""
        self.targets: Tensor | None = None
        self._previous = batch.to_canvas(batch.inputs, num_cells)
        if diagnostics:
            self.targets = targets_at_test_time(
                trained.supervision,
                trained.trained_steps,
                self._previous,
                labels,
                batch.rows,
                colours,
            )
        self._rows: list[Tensor] = []

    def add(self, step: Improvement, answer: Tensor) -> None:
        """Measure one step, and the answer [B, L] on whole canvases that was read from it."""
        solution, answer = self.solution.flatten(), answer.flatten()
        metrics = accuracy(answer, solution, self.canvases)
        metrics["loss"] = self.solution_loss(step.logits)
        if self.targets is not None:
            assert step.reference_logits is not None, "margins need it"
            # Beyond the steps that were trained, the target stays the solution.
            s = min(len(self._rows) + 1, self.targets.shape[1] - 1)
            previous, target = self._previous.flatten(), self.targets[:, s].flatten()
            metrics |= movement(previous, answer, target, solution, self.canvases)
            metrics |= margins(
                step.reference_logits,
                step.conditional_logits,
                self.shown_solution,
                self.batch.offsets,
                self.guidance_weight,
            )
        self._previous = answer
        names = metric_names(diagnostics=self.targets is not None)
        self._rows.append(torch.stack([metrics[name] for name in names], dim=-1))

    def solution_loss(self, logits: Tensor) -> Tensor:
        """Mean cross-entropy [B] of logits [N, V] over the cells that count, shown or not."""
        is_shown = self.shown_solution != IGNORE
        losses = stablemax_cross_entropy(logits, self.shown_solution)
        total, num_shown = per_sequence(
            torch.stack([torch.where(is_shown, losses, 0.0), is_shown]), self.batch.offsets
        )
        num_counted = (self.solution != IGNORE).sum(dim=1)
        return (total + LOSS_NOT_SHOWN * (num_counted - num_shown)) / num_counted.clamp(min=1)

    def values(self) -> Tensor:
        """[B, S, K] in the order of `metric_names`, NaN where the solution is hidden."""
        is_known = (self.solution != IGNORE).any(dim=1)
        return torch.stack(self._rows, dim=1).masked_fill(~is_known.view(-1, 1, 1), float("nan"))


def targets_at_test_time(
    supervision: SupervisionConfig,
    trained_steps: int,
    inputs: Tensor,
    labels: Tensor,
    rows: Tensor,
    colours: range,
) -> Tensor:
    """What each step was trained towards [B, S + 1, L], see `models.supervision.step_targets`.

    A random path is one draw of many, the same at every evaluation; in place of trajectories from a
    file stands the linear path.

    Args:
        supervision: of the training.
        trained_steps: S.
        inputs: int64 [B, L] whole canvases.
        labels: int64 [B, L] the solutions.
        rows: int64 [B] places in the test set: what a random path depends on.
        colours: see `TargetRequest`.
    """
    cells = torch.arange(inputs.shape[1], device=inputs.device)
    random = CellRandom(TARGET_SEED, rows, cells)
    request = TargetRequest(
        inputs, labels, trained_steps, random, colours, path_power=supervision.path_power
    )
    return step_targets(supervision, request)


def metric_names(diagnostics: bool) -> tuple[str, ...]:
    """What `StepMetrics` measures."""
    return (*ACCURACY, "loss", *(DIAGNOSTICS if diagnostics else ()))


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
