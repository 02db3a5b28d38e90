"""Run a model over the test split: every chosen variant of every test input, S steps, argmax.

Where the model was trained on windows, a variant shows the cells around its input and around the
largest output among the task's demonstrations; where the answer reaches the edge of that window, it
is predicted once more on the whole canvas. The solution plays no part in either.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from common.settings import Settings
from dataset.canvas import PAD, canvas_side, read_extents
from dataset.loading import HostSegment, SegmentMaker, one_ahead
from dataset.windows import areas, choose_cells, lengths_for
from evaluation.predictions import Predictions, concatenate
from evaluation.test_set import EvaluationSet, Rows
from evaluation.voting import grid_mask
from models.objective import log_stablemax
from models.supervision import ImprovementSteps

Item = TypeVar("Item")
Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Wraps an iterable of known length in a progress bar."""


class EvalConfig(Settings):
    """What is predicted, and how."""

    batch_size: int = Field(
        gt=0,
        description="variants predicted at a time on each rank; in windows, as many cells as these "
        "have on the whole canvas",
    )
    max_variants: int | None = Field(
        gt=0, description="variants of each task that vote, the original first; null: all"
    )
    canvas: Literal["auto", "whole", "window"] = Field(
        description="cells that the network sees, see data.canvas; auto: as in training"
    )
    voting: Literal["full", "exact", "sequential"] = Field(
        description="full: all variants vote; exact: voting on a test input stops when no outcome "
        "of the rest can change its first two answers; sequential: when they are known but for "
        "voting_error"
    )
    voting_error: float = Field(
        gt=0,
        lt=1,
        description="with voting=sequential: probability that the first two answers are not those "
        "of full voting, for each test input",
    )
    voting_min_share: float = Field(
        ge=0,
        lt=1,
        description="with voting=sequential: share of the votes below which a second answer need "
        "not be known, as noise decides which it is; 0: it must be known however small",
    )
    voting_seed: int = Field(
        ge=0, description="with voting=exact or sequential: of the order in which variants vote"
    )
    num_supervision_steps: int | None = Field(
        gt=0, description="improvement steps at test time; null: as many as trained"
    )
    guidance_weight: float = Field(
        description="w in (1-w) l_u + w l_c (DIS eq. 5); 1 is plain decoding"
    )
    weights: Literal["auto", "raw", "ema"] = Field(
        description="which weights are scored; auto: the running mean if there is one, else raw"
    )

    def canvas_for(self, trained: str) -> str:
        """The cells that are shown ("whole" or "window") to a network that was trained on some."""
        return trained if self.canvas == "auto" else self.canvas


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


class Answers(NamedTuple):
    """What the network said of n rows."""

    canvas: npt.NDArray[np.uint8]
    """[n, S, cells] after each step."""
    confidence: npt.NDArray[np.float32]
    """[n] mean probability of the last answer over the grid that it shows; 0 without one."""
    share_right: npt.NDArray[np.float32]
    """[n, S] right cells among those of the solution that are not PAD; NaN if it is hidden."""


class Predictor:
    """Predicts rows of a test set.

    Args:
        steps: the model and its loop.
        test_set: whose rows are predicted.
        batch_size: see `EvalConfig`.
        canvas: "whole" or "window".
    """

    def __init__(
        self, steps: ImprovementSteps, test_set: EvaluationSet, batch_size: int, canvas: str
    ) -> None:
        self.steps = steps
        self.test_set = test_set
        self.batch_size = batch_size
        self.canvas = canvas
        self.maker = SegmentMaker(test_set.split, steps.device)
        self.num_cells = test_set.split.metadata.seq_len
        self.side = canvas_side(self.num_cells)

    def predict(self, rows: Rows, progress: Progress | None = None) -> RankResult:
        """Predict the given rows [N]; the result is in their order."""
        last = np.zeros((len(rows), self.num_cells), dtype=np.uint8)
        confidence = np.zeros(len(rows), dtype=np.float32)
        share_right = np.zeros((len(rows), self.steps.num_steps), dtype=np.float32)
        is_original = self.test_set.is_original(rows)
        place = np.cumsum(is_original) - 1  # Of an original among the originals.
        developed = np.zeros(
            (is_original.sum(), self.steps.num_steps, self.num_cells), dtype=np.uint8
        )

        def run(lengths: npt.NDArray[np.int64], members: Rows) -> None:
            batches = list(self._batches(lengths, members))
            shown = progress(batches, len(batches)) if progress and batches else batches
            prepared = ((batch, self._prepare(rows[batch], length)) for batch, length in shown)
            started = (
                (batch, self._start(segment, cells, len(batch)))
                for batch, (segment, cells) in one_ahead(prepared)
            )
            for batch, tensors in one_behind(started):
                answers = _to_host(*tensors)
                last[batch] = answers.canvas[:, -1]
                confidence[batch] = answers.confidence
                share_right[batch] = answers.share_right
                chosen = is_original[batch]
                developed[place[batch[chosen]]] = answers.canvas[chosen]

        everything = np.arange(len(rows))
        outgrown = everything[:0]
        if self.canvas == "window":
            ladder = lengths_for(self.num_cells)
            boxes = self.test_set.boxes[rows]
            run(ladder[np.searchsorted(ladder, areas(boxes))], everything)
            outgrown = np.flatnonzero(_outgrows(last, boxes[:, 2:], self.side))
            run(np.full(len(outgrown), self.num_cells), outgrown)
        else:
            run(np.full(len(rows), self.num_cells), everything)
        return RankResult(
            self._predictions(rows, last, confidence),
            self._step_answers(rows[is_original], developed),
            _accuracy(share_right),
            len(outgrown),
        )

    def _batches(self, lengths: npt.NDArray[np.int64], members: Rows) -> Iterator[tuple[Rows, int]]:
        """Batches of `members` [N] of one of their `lengths` [N], which is given beside them."""
        for length in np.unique(lengths).tolist():
            alike = members[lengths == length]
            size = self._rows_of(length)
            for start in range(0, len(alike), size):
                yield alike[start : start + size], length

    def _rows_of(self, length: int) -> int:
        return self.batch_size * self.num_cells // length

    def _prepare(self, rows: Rows, length: int) -> tuple[HostSegment, npt.NDArray[np.int64] | None]:
        """Whole canvases of the rows, and which cells of them to show (None: all).

        The last row is repeated up to a power of two or the batch's full size, so that shapes
        are few.
        """
        size = min(self._rows_of(length), 1 << (len(rows) - 1).bit_length())
        padded = np.pad(rows, (0, size - len(rows)), mode="edge")
        examples = self.test_set.examples.rows[padded]
        selected = self.maker.source.select(examples, np.zeros((len(padded), 2)))
        puzzle_ids = self.test_set.examples.puzzle_ids[padded]
        segment = self.maker.take(selected, np.arange(len(padded)), puzzle_ids, padded, None)
        if length == self.num_cells:
            return segment, None
        return segment, choose_cells(self.test_set.boxes[padded], length, self.side)

    def _start(
        self, host_segment: HostSegment, chosen: npt.NDArray[np.int64] | None, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Answers [count, S, cells], probabilities [count, cells] of the last, share right.

        Of the first `count` rows of a batch; the others fill it up. All stays on the device.
        """
        segment = self.maker.to_device(host_segment)
        cells = None if chosen is None else torch.from_numpy(chosen).to(segment.inputs.device)
        inputs = segment.inputs if cells is None else segment.inputs.gather(1, cells)
        shown: list[Tensor] = []
        # Not inference_mode, whose tensors are of another kind: training's graphs serve here.
        with torch.no_grad():
            for logits in self.steps.run(inputs, segment.puzzle_ids, cells):
                shown.append(_on_canvas(logits.argmax(dim=-1), cells, self.num_cells))
            probability = _on_canvas(
                log_stablemax(logits).amax(dim=-1).exp(), cells, self.num_cells
            )
            answers = torch.stack(shown, dim=1)[:count]
            share_right = _share_right(answers, segment.labels[:count])
        return answers.to(torch.uint8), probability[:count], share_right

    def _predictions(
        self, rows: Rows, canvas: npt.NDArray[np.uint8], confidence: npt.NDArray[np.float32]
    ) -> Predictions:
        test_set = self.test_set
        return Predictions(
            task_id=test_set.task_ids[rows],
            test_index=test_set.examples.test_indices[rows].astype(np.int32),
            identifier=test_set.examples.puzzle_ids[rows],
            dihedral=test_set.dihedrals[rows],
            colour_permutation=test_set.permutations[rows],
            canvas=canvas,
            confidence=confidence,
            checkpoint=np.zeros(len(rows), dtype=np.int16),
        )

    def _step_answers(self, originals: Rows, developed: npt.NDArray[np.uint8]) -> StepAnswers:
        test_indices = self.test_set.examples.test_indices[originals].astype(np.int32)
        return StepAnswers(self.test_set.task_ids[originals], test_indices, developed)


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each when the next is made: a GPU works on that one while this one is used."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def _to_host(answers: Tensor, probability: Tensor, share_right: Tensor) -> Answers:
    """What a batch was started for; waits for the device."""
    canvases = answers.cpu().numpy()
    confidence = _mean_inside(probability.cpu().numpy(), canvases[:, -1])
    return Answers(canvases, confidence, share_right.cpu().numpy())


def _on_canvas(values: Tensor, cells: Tensor | None, num_cells: int) -> Tensor:
    """Values [B, L] at their cells of canvases [B, num_cells] that are 0 (PAD) elsewhere."""
    if cells is None:
        return values
    return values.new_zeros(len(values), num_cells).scatter_(1, cells, values)


def _outgrows(
    canvases: npt.NDArray[np.uint8], extents: npt.NDArray[np.int64], side: int
) -> npt.NDArray[np.bool_]:
    """Whether the grid [N] that a canvas shows fills its window [N, 2] to an edge.

    There is no room for its EOS border then, unless the edge is the canvas's own.
    """
    grids = np.stack(read_extents(canvases), axis=1)
    return np.any((grids >= extents) & (extents < side), axis=1)


def _share_right(answers: Tensor, labels: Tensor) -> Tensor:
    """Right cells [n, S] of answers [n, S, cells], as a share of those that count; NaN if none."""
    counted = labels != PAD
    right = (answers == labels.unsqueeze(1)) & counted.unsqueeze(1)
    return right.sum(dim=2) / counted.sum(dim=1, keepdim=True)


def _mean_inside(
    probability: npt.NDArray[np.float32], canvases: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    """Mean probability [N] over the cells of the grid that each canvas shows; 0 without a grid."""
    inside = grid_mask(canvases)
    mean: npt.NDArray[np.float32] = (probability * inside).sum(axis=1) / np.maximum(
        inside.sum(axis=1), 1
    ).astype(np.float32)
    return mean


def _accuracy(share_right: npt.NDArray[np.float32]) -> StepAccuracy:
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
