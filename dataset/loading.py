"""From sampled rows to segments on the device, one batch ahead of the network.

    layout    on the host, in a thread                       on the device
    full      read canvases, find windows, cut               widen uint8 to int64
    compact   look up recipes, find windows                  expand the cells that are wanted

Targets from a file of trajectories are made on the host in either.

Both layouts give the same interface, a `CanvasSource`: `select` examples, ask for their boxes, and
`take` those of a segment.
"""

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.errors import UserError
from common.segments import Segment
from dataset.batches import DataConfig, Sample, TrainingBatches
from dataset.canvas import VOCAB_SIZE, canvas_side
from dataset.compact import CompactSplit, Recipes, expand
from dataset.import_trajectories import Trajectories
from dataset.splits import Split, require_square
from dataset.storage import PuzzleSplit
from dataset.windows import (
    Boxes,
    Extents,
    areas,
    boxes_around,
    choose_cells,
    cut_into_segments,
    lengths_for,
    shown_boxes,
    shown_extents,
    widen,
)

SEGMENT_COST = {"cpu": 16, "cuda": 16384}
"""What one more segment costs, in cells: kernel launches, which a GPU cannot hide. Estimates."""

Item = TypeVar("Item")

Parts = tuple[Tensor, ...]
"""What a source moves to the device."""


class SelectedExamples(Protocol):
    """Some examples, as far as the host makes them."""

    @property
    def origins(self) -> npt.NDArray[np.int64]:
        """Row and column [n, 2] of their grids' top-left on the canvas."""
        ...

    def boxes(self) -> Boxes:
        """What must be seen of each for training, see `dataset.windows`."""
        ...

    def take(self, positions: npt.NDArray[np.int64], cells: npt.NDArray[np.int64] | None) -> Parts:
        """Those at `positions` [n], at `cells` [n, L] (None: all)."""
        ...


class CanvasSource(Protocol):
    """The canvases of a split, whatever its layout."""

    def select(
        self, examples: npt.NDArray[np.int64], shifts: npt.NDArray[np.float64]
    ) -> SelectedExamples:
        """The given examples [n]; where the layout leaves it open, moved by `shifts` [n, 2]."""
        ...

    def finish(self, parts: Parts, cells: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inputs and labels int64 [n, L] of what was taken, once it is on the device."""
        ...


class StoredSource:
    """The full layout: canvases are read."""

    def __init__(self, split: PuzzleSplit) -> None:
        self.split = split

    def select(
        self, examples: npt.NDArray[np.int64], shifts: npt.NDArray[np.float64]
    ) -> "_StoredExamples":
        return _StoredExamples(self.split, examples, *self.split.read(examples))

    def finish(self, parts: Parts, cells: Tensor | None) -> tuple[Tensor, Tensor]:
        inputs, labels = parts
        return inputs.long(), labels.long()


class _StoredExamples(NamedTuple):
    split: PuzzleSplit
    examples: npt.NDArray[np.int64]
    inputs: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]

    @property
    def origins(self) -> npt.NDArray[np.int64]:
        return self._shown()[:, :2]

    def boxes(self) -> Boxes:
        side = canvas_side(self.inputs.shape[1])
        shown = self._shown()
        outputs = boxes_around(shown[:, :2], _largest_outputs(self.split, self.examples), side)
        return np.concatenate([shown[:, :2], np.maximum(shown[:, 2:], outputs[:, 2:])], axis=1)

    def take(self, positions: npt.NDArray[np.int64], cells: npt.NDArray[np.int64] | None) -> Parts:
        canvases = [self.inputs[positions], self.labels[positions]]
        if cells is not None:
            canvases = [np.take_along_axis(canvas, cells, axis=1) for canvas in canvases]
        return tuple(torch.from_numpy(canvas) for canvas in canvases)

    def _shown(self) -> Boxes:
        return shown_boxes(self.inputs, self.labels, canvas_side(self.inputs.shape[1]))


def _largest_outputs(split: PuzzleSplit, examples: npt.NDArray[np.int64]) -> Extents:
    """Largest rows and columns [n, 2] among all outputs of each example's puzzle."""
    offsets = split.puzzle_indices
    puzzles, which = np.unique(
        np.searchsorted(offsets, examples, side="right") - 1, return_inverse=True
    )
    sizes = offsets[puzzles + 1] - offsets[puzzles]
    starts = np.cumsum(sizes) - sizes
    rows = np.repeat(offsets[puzzles] - starts, sizes) + np.arange(sizes.sum())
    extents = shown_extents(split.labels[rows], canvas_side(split.labels.shape[1]))
    return np.maximum.reduceat(extents, starts)[which]


class CompactSource:
    """The compact layout: canvases are made on the device, moved afresh each time."""

    def __init__(self, split: CompactSplit, device: torch.device) -> None:
        self.split = split
        self.originals = split.originals.to(device)

    def select(
        self, examples: npt.NDArray[np.int64], shifts: npt.NDArray[np.float64]
    ) -> "_CompactExamples":
        side = canvas_side(self.split.metadata.seq_len)
        extents = self.split.extents(examples).max(axis=1)
        origins = np.floor(shifts * (side - extents + 1)).astype(np.int64)
        return _CompactExamples(self.split, examples, extents, origins)

    def finish(self, parts: Parts, cells: Tensor | None) -> tuple[Tensor, Tensor]:
        return expand(self.originals, Recipes(*parts), cells)


class _CompactExamples(NamedTuple):
    split: CompactSplit
    examples: npt.NDArray[np.int64]
    extents: Extents
    origins: npt.NDArray[np.int64]

    def boxes(self) -> Boxes:
        largest = np.maximum(self.extents, self.split.largest_outputs(self.examples))
        return boxes_around(self.origins, largest, canvas_side(self.split.metadata.seq_len))

    def take(self, positions: npt.NDArray[np.int64], cells: npt.NDArray[np.int64] | None) -> Parts:
        return tuple(self.split.recipes(self.examples[positions], self.origins[positions]))


def canvas_source(split: Split, device: torch.device) -> CanvasSource:
    """The canvases of a split in either layout."""
    if isinstance(split, CompactSplit):
        return CompactSource(split, device)
    return StoredSource(split)


class HostSegment(NamedTuple):
    """A segment before it is on the device."""

    parts: Parts
    puzzle_ids: Tensor
    rows: Tensor
    cells: Tensor | None
    path: Tensor | None


class SegmentMaker:
    """Makes segments of a split's examples: `take` on the host, then `to_device`."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self.device = device
        self.source = canvas_source(split, device)

    def take(
        self,
        selected: SelectedExamples,
        positions: npt.NDArray[np.int64],
        puzzle_ids: npt.NDArray[np.int32],
        rows: npt.NDArray[np.int64],
        cells: npt.NDArray[np.int64] | None,
        path: npt.NDArray[np.uint8] | None = None,
    ) -> HostSegment:
        """Those of the `selected` examples at `positions` [B], at `cells` [B, L] (None: all).

        `path` [B, S, all cells] are their targets, if these come from a file.
        """
        return HostSegment(
            tuple(map(self.pin, selected.take(positions, cells))),
            self.pin(torch.from_numpy(puzzle_ids)),
            self.pin(torch.from_numpy(rows)),
            None if cells is None else self.pin_cells(cells),
            None if path is None else self.pin(torch.from_numpy(path)),
        )

    def pin_cells(self, cells: npt.NDArray[np.int64]) -> Tensor:
        """Cells as they travel to the device: int16, as there are few."""
        return self.pin(torch.from_numpy(cells.astype(np.int16)))

    def pin(self, tensor: Tensor) -> Tensor:
        """A page-locked copy where that makes the transfer to the device asynchronous."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def to_device(self, segment: HostSegment) -> Segment:
        """The segment as the network takes it; the host does not wait for it."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        cells = None if segment.cells is None else move(segment.cells).long()
        inputs, labels = self.source.finish(tuple(map(move, segment.parts)), cells)
        path = None if segment.path is None else move(segment.path)
        puzzle_ids = move(segment.puzzle_ids).long()
        return Segment(inputs, labels, puzzle_ids, move(segment.rows), cells, path)


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each made in a thread while the one before it is in use."""
    iterator = iter(items)
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, iterator, end)
        while (item := upcoming.result()) is not end:
            upcoming = thread.submit(next, iterator, end)
            yield item


class BatchLoader:
    """Endless iterator over training batches on the device, each a list of segments.

    `position` is that of the batch to come, as `TrainingBatches` counts; setting it before the
    iteration begins goes there.

    Args:
        batches: which examples.
        config: how much of them is shown.
        device: where the segments shall be.
        num_steps: supervision steps S; only needed for `config.trajectories`.

    Raises:
        UserError: windows or trajectories do not fit the split, see `dataset.import_trajectories`.
    """

    def __init__(
        self,
        batches: TrainingBatches,
        config: DataConfig,
        device: torch.device,
        *,
        num_steps: int | None = None,
    ) -> None:
        if config.canvas == "window":
            require_square(batches.split, "data.canvas=window")
            vocab_size = batches.split.metadata.vocab_size
            if vocab_size != VOCAB_SIZE:
                raise UserError(
                    f"data.canvas=window: windows are cut around ARC grids, of {VOCAB_SIZE} tokens;"
                    f" {batches.split.path} has {vocab_size}: use data.canvas=whole"
                )
        self.batches = batches
        self.config = config
        self.maker = SegmentMaker(batches.split, device)
        self.num_steps = num_steps
        self.trajectories = None
        if config.trajectories is not None:
            assert num_steps is not None, "a path has as many targets as there are steps"
            self.trajectories = Trajectories(config.trajectories, batches.split)
        self._position = batches.position

    @property
    def position(self) -> tuple[int, int]:
        return self._position

    @position.setter
    def position(self, position: tuple[int, int]) -> None:
        self._position = self.batches.position = position

    def __iter__(self) -> Generator[list[Segment], None, None]:
        # `batches.position` runs ahead of what has been handed out, so each batch brings its own.
        prepared = ((self._prepare(sample), self.batches.position) for sample in self.batches)
        for host_segments, position in one_ahead(prepared):
            self._position = position
            yield [self.maker.to_device(segment) for segment in host_segments]

    def _prepare(self, sample: Sample) -> list[HostSegment]:
        """What the host does for a batch."""
        selected = self.maker.source.select(sample.examples, sample.shifts)
        paths = None
        if self.trajectories is not None and self.num_steps is not None:
            paths = self.trajectories.targets(sample.examples, selected.origins, self.num_steps)
        segments = []
        for members, cells in self._cut(sample, selected):
            ids, rows = sample.puzzle_ids[members], sample.rows[members]
            path = None if paths is None else paths[members]
            segments.append(self.maker.take(selected, members, ids, rows, cells, path))
        return segments

    def _cut(
        self, sample: Sample, selected: SelectedExamples
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]]:
        """Positions in the batch and cells of each segment."""
        if self.config.canvas == "whole":
            yield np.arange(len(sample.examples)), None
            return
        num_cells = self.batches.split.metadata.seq_len
        side = canvas_side(num_cells)
        margins = np.floor(sample.edges * (self.config.window_margin + 1)).astype(np.int64)
        boxes = widen(selected.boxes(), margins, side)
        boxes[sample.coin < self.config.whole_canvas_share] = (0, 0, side, side)
        segment_cost = SEGMENT_COST[self.maker.device.type]
        for members, length in cut_into_segments(
            areas(boxes), lengths_for(num_cells), segment_cost
        ):
            cells = None
            if length < num_cells:
                cells = choose_cells(boxes[members], length, side, sample.priorities[members])
            yield members, cells
