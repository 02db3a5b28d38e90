"""Run a model over a test set: every chosen variant of every test input, S steps, argmax.

On windows (`canvas`; by default where the model was trained on them) a variant shows the cells
around its input and around the largest output among the task's demonstrations; where the answer
reaches the edge of that window, it is predicted once more on the whole canvas. The solution plays
no part in either.

Variants are packed up to a budget of tokens; on a GPU every batch is filled up to it, so that all
have one shape. Answers are put back onto whole canvases on the device.

Shape letters: B sequences, S steps, L canvas cells, K metrics.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from common.distributed import Ranks
from common.progress import EXAMPLE, follow
from common.settings import Settings
from dataset.canvas import Canvases, canvas_side, read_extents
from dataset.loading import BatchMaker, Capacity, HostBatch, Plan, cut, one_ahead
from dataset.storage import BLANK_IDENTIFIER
from dataset.windows import Boxes
from evaluation.metrics import StepMetrics, metric_names
from evaluation.test_set import Rows, TestSet
from models.objective import log_stablemax
from models.steps import TrainedModel

TYPICAL_TOKENS = 128
"""A batch has room for as many windows as if they were so long."""

Item = TypeVar("Item")
Batch = tuple[Rows, "PendingResult"]
Progress = Callable[[Iterable[Batch], int], Iterable[Batch]]
"""Wraps batches of so many rows in all in a progress bar."""


class PredictConfig(Settings):
    """Which variants are predicted, with which weights."""

    batch_tokens: int = Field(
        131_072,
        gt=0,
        description="most tokens (cells and prefixes) that a rank predicts at a time",
    )
    max_variants: int | None = Field(
        None, gt=0, description="variants of each task that vote, the original first; null: all"
    )
    canvas: Literal["auto", "whole", "window"] = Field(
        "auto", description="cells that the network sees, see data.canvas; auto: as in training"
    )
    weights: Literal["auto", "raw", "ema"] = Field(
        "auto",
        description="which weights are scored; auto: the running mean if there is one, else raw",
    )
    split: Literal["auto", "validation", "test"] = Field(
        "auto",
        description="which split of the dataset is scored; auto: test, but while training "
        "validation if the dataset has it, and in a recount what was predicted",
    )

    def resolved(self, trained_on: Literal["whole", "window"], split: str = "test") -> Self:
        """With the cells that are shown to a network that was trained on some, and with `split`.

        Unless others were asked for: there is no more "auto" in either.
        """
        choices = {"canvas": trained_on, "split": split}
        undecided = {key: choices[key] for key in choices if getattr(self, key) == "auto"}
        return self.model_copy(update=undecided)

    def at_most(self, tokens: int) -> Self:
        """With no more tokens at a time."""
        return self.model_copy(update={"batch_tokens": min(self.batch_tokens, tokens)})


class EvalConfig(PredictConfig):
    """What is predicted, and how."""

    num_supervision_steps: int | None = Field(
        None, gt=0, description="improvement steps at test time; null: as many as trained"
    )
    guidance_weight: float = Field(
        1.0, description="w in (1-w) l_u + w l_c (DIS eq. 5); 1 is plain decoding"
    )
    puzzle_id: Literal["own", "blank"] = Field(
        "own",
        description="which puzzle the network is told that it sees; blank: none, whose vector is "
        "zero (an ablation: what does it know without?)",
    )
    diagnostics: bool = Field(
        False,
        description="also measure after each step how far the answers are from solution and "
        "target, how many cells changed, and the advantage margin (models/diagnostics.py)",
    )


@dataclass(frozen=True)
class Answers:
    """What a model answered, for n rows of a test set."""

    rows: Rows
    """[n]"""
    canvases: Canvases
    """[n, L] after the last step."""
    confidence: npt.NDArray[np.float32]
    """[n] mean probability of the last answer's tokens; 0 where a canvas shows no grid."""
    metric_names: tuple[str, ...]
    """[K]"""
    metrics: npt.NDArray[np.float32]
    """[n, S, K], see `evaluation.metrics`; NaN where the solution is hidden."""
    followed: Rows
    """[m] those of the rows that `TestSet.is_followed` marks ..."""
    steps: npt.NDArray[np.uint8]
    """... and their answers [m, S, L] after each step."""
    whole_canvas_again: int = 0
    """Rows whose answer outgrew its window."""


def predict(
    trained: TrainedModel,
    test_set: TestSet,
    config: EvalConfig,
    ranks: Ranks,
    what: str | None = None,
    rows: Rows | None = None,
) -> Answers | None:
    """Answer a test set, each rank its share; all ranks must call it.

    Args:
        trained: the model.
        test_set: what is predicted.
        config: how, see `PredictConfig.resolved`.
        ranks: that share the work.
        what: this is, while it is shown how far it is; None: that is not shown.
        rows: which of the test set's rows, in order; None: all.

    Returns:
        The answers in the order of the test set on the main rank, None elsewhere.
    """
    rows = np.arange(len(test_set)) if rows is None else rows
    share = rows[ranks.rank :: ranks.world_size]
    each = ranks.world_size  # All ranks have as many rows.

    def progress(batches: Iterable[Batch], num_rows: int) -> Iterable[Batch]:
        return follow(
            batches, what or "", EXAMPLE, num_rows * each,
            lambda batch: len(batch[0]) * each, what is not None and ranks.is_main,
        )  # fmt: skip

    parts = ranks.gather_objects(Predictor(trained, test_set, config).answer(share, progress))
    return None if parts is None else join(parts)


class Predictor:
    """Answers rows of a test set; see `predict` for the arguments.

    `static`: fill batches up to one shape; None: on CUDA.
    """

    def __init__(
        self,
        trained: TrainedModel,
        test_set: TestSet,
        config: EvalConfig,
        static: bool | None = None,
    ) -> None:
        assert config.canvas != "auto", "to be resolved by what the model was trained on"
        self.trained = trained
        self.test_set = test_set
        self.config = config
        self.boxes = test_set.boxes if config.canvas == "window" else None
        self.num_steps = config.num_supervision_steps or trained.trained_steps
        self.maker = BatchMaker(test_set.split, trained.model.config.prefix_length, trained.device)
        self.num_cells = test_set.split.metadata.seq_len
        # Always room for one whole canvas, and for a token that fills up.
        tokens = max(config.batch_tokens, self.maker.longest + 1)
        typical = TYPICAL_TOKENS if self.boxes is not None else self.maker.longest
        self.most_sequences = max(1, tokens // typical)
        self.capacity: Capacity | None = None
        if trained.device.type == "cuda" if static is None else static:
            self.capacity = self.maker.capacity(tokens, self.most_sequences)
        self.most_tokens = tokens - 1

    def answer(self, rows: Rows, progress: Progress | None = None) -> Answers:
        """Answer the given rows [n]; the result is in their order."""
        followed = rows[self.test_set.is_followed[rows]]
        names = metric_names(self.config.diagnostics)
        answers = Answers(
            rows,
            np.zeros((len(rows), self.num_cells), np.uint8),
            np.zeros(len(rows), np.float32),
            names,
            np.zeros((len(rows), self.num_steps, len(names)), np.float32),
            followed,
            np.zeros((len(followed), self.num_steps, self.num_cells), np.uint8),
        )
        whole = np.tile(np.array(self.maker.whole), (len(rows), 1))
        if self.boxes is None:
            self._fill(answers, np.arange(len(rows)), whole, progress)
            return answers
        boxes = self.boxes[rows]
        self._fill(answers, np.arange(len(rows)), boxes, progress)
        side = canvas_side(self.num_cells)
        outgrown = np.flatnonzero(_outgrows(answers.canvases, boxes[:, 2:], side))
        self._fill(answers, outgrown, whole[outgrown], progress)
        return replace(answers, whole_canvas_again=len(outgrown))

    def _fill(
        self, answers: Answers, places: Rows, boxes: Boxes, progress: Progress | None
    ) -> None:
        """Answer the rows at `places` [n], showing `boxes` [n, 4] of them; write them in."""
        is_followed = self.test_set.is_followed[answers.rows]
        place_in_steps = np.cumsum(is_followed) - 1
        # Equally long sequences stand together, for kernels that take these at once.
        order = np.argsort(-self.maker.lengths(boxes), kind="stable")
        places, boxes = places[order], boxes[order]
        runs = cut(self.maker.lengths(boxes), self.most_tokens, self.most_sequences)
        prepared = (
            (places[run], self._prepare(answers.rows[places[run]], boxes[run])) for run in runs
        )
        started = (
            (batch, self._start(host, len(batch), np.flatnonzero(is_followed[batch])))
            for batch, host in one_ahead(prepared)
        )
        pending: Iterable[Batch] = one_behind(started)
        if progress and runs:
            pending = progress(pending, len(places))
        for batch, result in pending:
            canvases, probability, metrics, steps = result.wait()
            answers.canvases[batch] = canvases
            inside = self.test_set.answer_cells(canvases)
            answers.confidence[batch] = _mean_inside(probability, inside)
            answers.metrics[batch] = metrics
            answers.steps[place_in_steps[batch[is_followed[batch]]]] = steps

    def _prepare(self, rows: Rows, boxes: Boxes) -> HostBatch:
        """What is shown of the rows."""
        examples = self.test_set.examples.take(rows)
        origins = np.zeros((len(rows), 2), dtype=np.int64)
        puzzle_ids = examples.puzzle_ids
        if self.config.puzzle_id == "blank":
            puzzle_ids = np.full_like(puzzle_ids, BLANK_IDENTIFIER)
        plan = Plan(examples.rows, puzzle_ids, rows, origins, boxes)
        return self.maker.pack(plan, self.capacity)

    def _start(self, host_batch: HostBatch, count: int, followed: Rows) -> "PendingResult":
        """Answer a batch, whose first `count` sequences are variants.

        Answers after each step are kept of those at `followed`. On a GPU this only queues the work.
        """
        config, maker = self.config, self.maker
        batch = maker.to_device(host_batch)
        labels = maker.whole_labels(host_batch)
        kept = maker.pin(torch.from_numpy(followed)).to(maker.device, non_blocking=True)
        colours, weight = self.test_set.colours, config.guidance_weight
        measured = StepMetrics(batch, labels, self.trained, colours, weight, config.diagnostics)
        shown: list[Tensor] = []
        # Not inference_mode, whose tensors are of another kind: training's graphs serve here.
        with torch.no_grad():
            for step in self.trained.improve(batch, self.num_steps, weight, config.diagnostics):
                answer = batch.to_canvas(step.logits.argmax(dim=-1), self.num_cells)
                measured.add(step, answer)
                shown.append(answer.to(torch.uint8)[kept])
            probability = log_stablemax(step.logits).amax(dim=-1).exp()
        return PendingResult(
            answer[:count].to(torch.uint8),
            batch.to_canvas(probability, self.num_cells)[:count],
            measured.values()[:count],
            torch.stack(shown, dim=1),
        )


def join(parts: list[Answers]) -> Answers:
    """The answers of several ranks or shards, ordered by row."""
    order = np.argsort(np.concatenate([part.rows for part in parts]))
    followed = np.argsort(np.concatenate([part.followed for part in parts]))

    def joined(name: str, order: npt.NDArray[np.int64]) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])[order]

    return Answers(
        metric_names=parts[0].metric_names,
        **{name: joined(name, order) for name in ("rows", "canvases", "confidence", "metrics")},
        **{name: joined(name, followed) for name in ("followed", "steps")},
        whole_canvas_again=sum(part.whole_canvas_again for part in parts),
    )


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each when the next is made: a GPU works on that one while this one is used."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


class PendingResult:
    """Tensors of a batch while they are computed and copied from the device to the host."""

    def __init__(self, *tensors: Tensor) -> None:
        """Start copying."""
        self._tensors = tensors
        self._copied = None
        if tensors[0].is_cuda:
            # Page-locked, and an event of their own: waiting for the copies is not to wait for the
            # next batch, which is queued behind them.
            self._tensors = tuple(
                torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
                for t in tensors
            )
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> list[npt.NDArray[Any]]:
        """The tensors on the host, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return [tensor.numpy() for tensor in self._tensors]


def _outgrows(
    canvases: Canvases, extents: npt.NDArray[np.int64], side: int
) -> npt.NDArray[np.bool_]:
    """Whether the grid [n] that a canvas shows fills its window [n, 2] to an edge.

    There is no room for its EOS border then, unless the edge is the canvas's own.
    """
    grids = np.stack(read_extents(canvases), axis=1)
    return np.any((grids >= extents) & (extents < side), axis=1)


def _mean_inside(
    probability: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Mean probability [n] over the marked cells [n, cells]; 0 without any."""
    mean: npt.NDArray[np.float32] = (probability * inside).sum(axis=1) / np.maximum(
        inside.sum(axis=1), 1
    ).astype(np.float32)
    return mean
