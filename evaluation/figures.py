"""What each improvement step did to the answers of a batch, measured where the network computes.

Shape letters: B batch, S steps, L canvas cells, K figures.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.segments import Segment
from models.diagnostics import ACCURACY, DIAGNOSTICS, Figures, accuracy, margins, movement
from models.objective import IGNORE
from models.steps import Improvement, ImprovementSteps
from models.supervision import segment_targets
from models.targets.request import PAD

TARGET_SEED = 0
"""Of the random paths that answers at test time are compared with."""


class StepFigures(NamedTuple):
    """Sums over predictions with a known solution."""

    num_scored: int
    sums: dict[str, npt.NDArray[np.float64]]
    """Name -> [S], see `models.diagnostics`."""

    def means(self) -> dict[str, float]:
        """Each figure after the last step under its name, and after step s as `NAME_step{s}`."""
        means = {name: sums / self.num_scored for name, sums in self.sums.items()}
        last = {name: float(values[-1]) for name, values in means.items()}
        return last | {
            f"{name}_step{s}": float(value)
            for name, values in means.items()
            for s, value in enumerate(values, start=1)
        }


def figure_names(diagnostics: bool) -> tuple[str, ...]:
    """What `Measurement` measures."""
    return ACCURACY + DIAGNOSTICS if diagnostics else ACCURACY


def sum_figures(values: npt.NDArray[np.float32], diagnostics: bool) -> StepFigures:
    """Sums of figures [N, S, K], NaN where the solution is hidden."""
    known = values[~np.isnan(values[:, -1, 0])].astype(np.float64)
    names = figure_names(diagnostics)
    return StepFigures(len(known), dict(zip(names, known.sum(axis=0).T, strict=True)))


def add_figures(parts: list[StepFigures]) -> StepFigures:
    """Those of several ranks or rounds together."""
    names = parts[0].sums
    return StepFigures(
        sum(part.num_scored for part in parts),
        {name: np.sum([part.sums[name] for part in parts], axis=0) for name in names},
    )


class Measurement:
    """Follows the answers of one batch through its steps.

    Args:
        segment: whole canvases.
        steps: that answer them.
        colours: see `TargetRequest`.
        diagnostics: also measure distances and margins.
    """

    def __init__(
        self, segment: Segment, steps: ImprovementSteps, colours: range, diagnostics: bool
    ) -> None:
        self.solution = segment.labels.masked_fill(segment.labels == PAD, IGNORE)
        self.previous = segment.inputs
        self.diagnostics = diagnostics
        if diagnostics:
            self.guidance_weight = steps.guidance_weight
            num_cells = segment.inputs.shape[1]
            self.targets = segment_targets(
                steps.supervision, segment, steps.trained_steps, num_cells, colours, TARGET_SEED
            )
        self._taken: list[Figures] = []

    def add(self, answer: Tensor, step: Improvement, cells: Tensor | None) -> None:
        """Measure one step.

        Args:
            answer: int64 [B, L] on the whole canvas.
            step: what it was read from.
            cells: which cells the step's logits are of; None: all, in order.
        """
        figures = accuracy(answer, self.solution)
        if self.diagnostics:
            assert step.reference_logits is not None, "margins need it"
            # Beyond the steps that were trained, the target stays the solution.
            target = self.targets[:, min(len(self._taken) + 1, self.targets.shape[1] - 1)]
            shown = self.solution if cells is None else self.solution.gather(1, cells)
            figures |= movement(self.previous, answer, target, self.solution)
            figures |= margins(
                step.reference_logits, step.conditional_logits, shown, self.guidance_weight
            )
        self.previous = answer
        self._taken.append(figures)

    def values(self) -> Tensor:
        """Figures [B, S, K] in the order of `figure_names`, NaN where the solution is hidden."""
        names = figure_names(self.diagnostics)
        stacked = torch.stack(
            [torch.stack([figures[name] for name in names], dim=-1) for figures in self._taken],
            dim=1,
        )
        is_known = (self.solution != IGNORE).any(dim=1)
        return stacked.masked_fill(~is_known.view(-1, 1, 1), float("nan"))
