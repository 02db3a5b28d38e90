"""What predictions are collected into, and joined from several ranks or rounds."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

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


class StepAccuracy(NamedTuple):
    """Sums over predictions with a known solution; cells whose solution is PAD do not count."""

    num_scored: int
    exact: npt.NDArray[np.float64]
    """[S] predictions that are right in every cell after each step."""
    cell: npt.NDArray[np.float64]
    """[S] sum of the shares of right cells after each step."""


class RankResult(NamedTuple):
    """One rank's share of an evaluation."""

    predictions: Predictions
    step_answers: StepAnswers
    accuracy: StepAccuracy
    whole_canvas_again: int
    """Predictions whose answer outgrew its window."""


def accuracy_of(share_right: npt.NDArray[np.float32]) -> StepAccuracy:
    """Sums over the shares of right cells [N, S], NaN where the solution is hidden."""
    known = share_right[~np.isnan(share_right[:, -1])].astype(np.float64)
    return StepAccuracy(len(known), (known == 1).sum(axis=0), known.sum(axis=0))


def join(results: list[RankResult]) -> RankResult:
    """One result from those of several ranks or rounds, in order."""
    answers = [result.step_answers for result in results]
    accuracy = [result.accuracy for result in results]
    return RankResult(
        concatenate([result.predictions for result in results]),
        StepAnswers(
            np.concatenate([a.task_id for a in answers]),
            np.concatenate([a.test_index for a in answers]),
            np.concatenate([a.canvas for a in answers]),
        ),
        StepAccuracy(
            sum(a.num_scored for a in accuracy),
            np.sum([a.exact for a in accuracy], axis=0),
            np.sum([a.cell for a in accuracy], axis=0),
        ),
        sum(result.whole_canvas_again for result in results),
    )
