"""Run a model over the test split: every chosen variant of every test input, S steps, argmax.

Where the model was trained on windows, a variant shows the cells around its input and around the
largest output among the task's demonstrations; where the answer reaches the edge of that window, it
is predicted once more on the whole canvas. The solution plays no part in either.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from common.settings import Settings
from dataset.canvas import ARC_COLOURS, canvas_side, read_extents
from dataset.loading import HostSegment, SegmentMaker, one_ahead
from dataset.windows import areas, choose_cells, lengths_for
from evaluation.figures import Measurement, figure_names, sum_figures
from evaluation.predictions import Predictions
from evaluation.results import RankResult, StepAnswers
from evaluation.test_set import EvaluationSet, Rows
from evaluation.voting import grid_mask
from models.objective import log_stablemax
from models.steps import ImprovementSteps

Item = TypeVar("Item")
Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Wraps an iterable of known length in a progress bar."""


class PredictConfig(Settings):
    """Which variants are predicted, with which weights."""

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
    weights: Literal["auto", "raw", "ema"] = Field(
        description="which weights are scored; auto: the running mean if there is one, else raw"
    )

    def canvas_for(self, trained: str) -> str:
        """The cells that are shown ("whole" or "window") to a network that was trained on some."""
        return trained if self.canvas == "auto" else self.canvas


class EvalConfig(PredictConfig):
    """What is predicted, how, and which of it votes."""

    voting: Literal["full", "exact", "sequential"] = Field(
        description="full: all variants vote; exact: voting on a test input stops when no outcome "
        "of the rest can change its first two answers; sequential: when they are known but for "
        "voting_error, which of them is the first not included"
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
    diagnostics: bool = Field(
        description="also measure after each step how far the answers are from solution and "
        "target, how many cells changed, and the advantage margin (models/diagnostics.py)"
    )

    @model_validator(mode="after")
    def _means_are_over_all_variants(self) -> "EvalConfig":
        if self.diagnostics and self.voting != "full":
            raise ValueError(
                f"eval.diagnostics=true and eval.voting={self.voting}: diagnostics are means over "
                f"all variants, which voting that stops does not predict; use eval.voting=full"
            )
        return self


class Answers(NamedTuple):
    """What the network said of n rows."""

    canvas: npt.NDArray[np.uint8]
    """[n, S, cells] after each step."""
    confidence: npt.NDArray[np.float32]
    """[n] mean probability of the last answer over the grid that it shows; 0 without one."""
    figures: npt.NDArray[np.float32]
    """[n, S, K], see `evaluation.figures`; NaN if the solution is hidden."""


class Predictor:
    """Predicts rows of a test set.

    Args:
        steps: the model and its loop.
        test_set: whose rows are predicted.
        batch_size: see `EvalConfig`.
        canvas: "whole" or "window".
        diagnostics: also measure distances and margins, see `models.diagnostics`.
    """

    def __init__(
        self,
        steps: ImprovementSteps,
        test_set: EvaluationSet,
        batch_size: int,
        canvas: str,
        diagnostics: bool = False,
    ) -> None:
        self.steps = steps
        self.test_set = test_set
        self.batch_size = batch_size
        self.canvas = canvas
        self.diagnostics = diagnostics
        self.maker = SegmentMaker(test_set.split, steps.device)
        self.num_cells = test_set.split.metadata.seq_len
        self.side = canvas_side(self.num_cells)
        # Cells around a window fill it up in a random order, as in training, but always the same.
        self.priorities = np.random.default_rng(0).random((1, self.num_cells), dtype=np.float32)

    def predict(self, rows: Rows, progress: Progress | None = None) -> RankResult:
        """Predict the given rows [N]; the result is in their order."""
        last = np.zeros((len(rows), self.num_cells), dtype=np.uint8)
        confidence = np.zeros(len(rows), dtype=np.float32)
        figures = np.zeros(
            (len(rows), self.steps.num_steps, len(figure_names(self.diagnostics))), np.float32
        )
        is_original = self.test_set.is_original(rows)
        place = np.cumsum(is_original) - 1  # Of an original among the originals.
        developed = np.zeros(
            (is_original.sum(), self.steps.num_steps, self.num_cells), dtype=np.uint8
        )

        def run(lengths: npt.NDArray[np.int64], members: Rows) -> None:
            batches = list(self._batches(lengths, members))
            prepared = ((batch, self._prepare(rows[batch], length)) for batch, length in batches)
            started = (
                (batch, self._start(segment, cells, len(batch)))
                for batch, (segment, cells) in one_ahead(prepared)
            )
            answered: Iterable[tuple[Rows, _OnTheWay]] = one_behind(started)
            if progress and batches:
                answered = progress(answered, len(batches))
            for batch, on_the_way in answered:
                answers = on_the_way.arrive()
                last[batch] = answers.canvas[:, -1]
                confidence[batch] = answers.confidence
                figures[batch] = answers.figures
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
            sum_figures(figures, self.diagnostics),
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

    def _prepare(self, rows: Rows, length: int) -> tuple[HostSegment, Tensor | None]:
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
        boxes = self.test_set.boxes[padded]
        return segment, self.maker.pin_cells(
            choose_cells(boxes, length, self.side, self.priorities)
        )

    def _start(self, host_segment: HostSegment, chosen: Tensor | None, count: int) -> "_OnTheWay":
        """Predict the first `count` rows of a batch; the others fill it up.

        On a GPU this only queues the work.
        """
        segment = self.maker.to_device(host_segment)
        cells = None
        if chosen is not None:
            cells = chosen.to(self.maker.device, non_blocking=True).long()
        inputs = segment.inputs if cells is None else segment.inputs.gather(1, cells)
        measured = Measurement(segment, self.steps, ARC_COLOURS, self.diagnostics)
        shown: list[Tensor] = []
        # Not inference_mode, whose tensors are of another kind: training's graphs serve here.
        with torch.no_grad():
            for step in self.steps.run(inputs, segment.puzzle_ids, cells, self.diagnostics):
                answer = _on_canvas(step.logits.argmax(dim=-1), cells, self.num_cells)
                measured.add(answer, step, cells)
                shown.append(answer.to(torch.uint8))
            certainty = log_stablemax(step.logits).amax(dim=-1).exp()
        return _OnTheWay(
            torch.stack(shown, dim=1)[:count],
            _on_canvas(certainty, cells, self.num_cells)[:count],
            measured.values()[:count],
        )

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


class _OnTheWay:
    """Results of a batch, from the device to the host."""

    def __init__(self, answers: Tensor, probability: Tensor, figures: Tensor) -> None:
        """Start copying answers [n, S, cells], probabilities [n, cells], figures [n, S, K]."""
        self._tensors = [answers, probability, figures]
        self._arrived = None
        if answers.is_cuda:
            # Page-locked, and an event of their own: waiting for the copies is not to wait for the
            # next batch, which is queued behind them.
            self._tensors = [
                torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
                for t in self._tensors
            ]
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def arrive(self) -> Answers:
        """Wait for the results."""
        if self._arrived is not None:
            self._arrived.synchronize()
        canvases, probability, figures = (tensor.numpy() for tensor in self._tensors)
        return Answers(canvases, _mean_inside(probability, canvases[:, -1]), figures)


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


def _mean_inside(
    probability: npt.NDArray[np.float32], canvases: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    """Mean probability [N] over the cells of the grid that each canvas shows; 0 without a grid."""
    inside = grid_mask(canvases)
    mean: npt.NDArray[np.float32] = (probability * inside).sum(axis=1) / np.maximum(
        inside.sum(axis=1), 1
    ).astype(np.float32)
    return mean
