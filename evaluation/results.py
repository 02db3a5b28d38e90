"""What predictions are collected into, and joined from several ranks or rounds."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from evaluation.figures import StepFigures, add_figures
from evaluation.predictions import Predictions, concatenate


@dataclass(frozen=True)
class StepAnswers:
    """How the answers to the unaugmented test inputs developed."""

    task_id: npt.NDArray[np.str_]
    """[M]"""
    test_index: npt.NDArray[np.int32]
    """[M]"""
    canvas: npt.NDArray[np.uint8]
    """[M, S, cells] the argmax after each supervision step."""

    def save(self, path: Path) -> None:
        """Write the three arrays to an .npz file."""
        np.savez_compressed(
            path, task_id=self.task_id, test_index=self.test_index, canvas=self.canvas
        )


class RankResult(NamedTuple):
    """One rank's share of an evaluation."""

    predictions: Predictions
    step_answers: StepAnswers
    figures: StepFigures
    whole_canvas_again: int
    """Predictions whose answer outgrew its window."""


def join(results: list[RankResult]) -> RankResult:
    """One result from those of several ranks or rounds, in order."""
    answers = [result.step_answers for result in results]
    return RankResult(
        concatenate([result.predictions for result in results]),
        StepAnswers(
            np.concatenate([a.task_id for a in answers]),
            np.concatenate([a.test_index for a in answers]),
            np.concatenate([a.canvas for a in answers]),
        ),
        add_figures([result.figures for result in results]),
        sum(result.whole_canvas_again for result in results),
    )
