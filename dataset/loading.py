"""From sampled examples to packed batches on the device, one batch ahead of the network.

    layout    on the host, in a thread                       on the device
    full      places; read canvases                          tokens at the cells
    compact   places; look up recipes, cut windows           tokens made at the cells

The host decides for each sequence which cells it shows (`Plan`), numbers per sequence alone. What
is as long as the batch has tokens is computed on the device from these. Targets from a file of
trajectories are made on the host in either layout.
"""

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.distributed import Ranks
from common.errors import UserError
from common.packed import NO_TOKEN, PackedBatch
from common.tokens import PAD
from dataset.batches import DataConfig, Sample, TrainingBatches, deal
from dataset.canvas import canvas_side
from dataset.compact import CompactSplit, Recipes, expand
from dataset.import_trajectories import Trajectories
from dataset.splits import Split
from dataset.storage import PuzzleSplit
from dataset.windows import Boxes, areas, boxes_around, widen

TOKEN_STEP = 128
"""A static capacity is a multiple of this: kernels work on blocks of so many tokens."""
NUM_FILLERS = 64
"""Sequences, beside as many as a whole batch would be, that are there to fill a batch up."""
MEASURED_BATCHES = 16
"""Batches whose sizes a static capacity is chosen by."""

Item = TypeVar("Item")

Parts = tuple[Tensor, ...]
"""What a source moves to the device."""


class Capacity(NamedTuple):
    """The static shape of a packed batch."""

    tokens: int
    """N"""
    sequences: int
    """B"""


class Plan(NamedTuple):
    """What each of n sequences shows, decided on the host."""

    examples: npt.NDArray[np.int64]
    """[n] rows of the split."""
    puzzle_ids: npt.NDArray[np.int32]
    """[n] identifiers."""
    rows: npt.NDArray[np.int64]
    """[n] places among all that are drawn or predicted together."""
    origins: npt.NDArray[np.int64]
    """[n, 2] row and column of the grids' top-left on the canvas; not used by the full layout."""
    boxes: Boxes
    """[n, 4] the cells that are shown."""
    path: npt.NDArray[np.uint8] | None = None
    """[n, S, L] targets from a file."""

    def take(self, places: npt.NDArray[np.int64] | slice) -> "Plan":
        """The sequences at the given places."""
        taken = (None if field is None else field[places] for field in self)
        return Plan(*taken)  # type: ignore[arg-type]


class CanvasSource(Protocol):
    """The canvases of a split, whatever its layout."""

    def take(self, plan: Plan, count: int) -> Parts:
        """What of the planned examples goes to the device, as `count` rows."""
        ...

    def tokens(self, parts: Parts, sequence: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels, int64 [N], at `cells` [N] (below 0: any) of the sequences [N]."""
        ...


class StoredSource:
    """The full layout: canvases are read."""

    def __init__(self, split: PuzzleSplit) -> None:
        self.split = split

    def take(self, plan: Plan, count: int) -> Parts:
        return tuple(
            torch.from_numpy(_filled(canvas, count)) for canvas in self.split.read(plan.examples)
        )

    def tokens(self, parts: Parts, sequence: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        inputs, labels = (canvases[sequence, cells.clamp(min=0)].long() for canvases in parts)
        return inputs, labels


class CompactSource:
    """The compact layout: canvases are made on the device."""

    def __init__(self, split: CompactSplit, device: torch.device) -> None:
        self.split = split
        self.originals = split.originals.to(device)

    def take(self, plan: Plan, count: int) -> Parts:
        recipes = self.split.recipes(plan.examples, plan.origins)
        return tuple(torch.from_numpy(_filled(part.numpy(), count)) for part in recipes)

    def tokens(self, parts: Parts, sequence: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        return expand(self.originals, Recipes(*parts), sequence, cells)


def _filled(rows: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """`rows` [n, ...] with zeros at the end [count, ...]."""
    filled = np.zeros((count, *rows.shape[1:]), dtype=rows.dtype)
    filled[: len(rows)] = rows
    return filled


class HostBatch(NamedTuple):
    """A packed batch before it is on the device."""

    num_tokens: int
    offsets: Tensor
    is_example: Tensor
    puzzle_ids: Tensor
    rows: Tensor
    boxes: Tensor
    path: Tensor | None
    parts: Parts


class BatchMaker:
    """Makes packed batches of a split's examples: `pack` on the host, then `to_device`.

    Args:
        split: whose examples.
        prefix_length: positions P before the cells of a sequence.
        device: where the batches shall be.
    """

    def __init__(self, split: Split, prefix_length: int, device: torch.device) -> None:
        self.prefix_length = prefix_length
        self.device = device
        self.num_cells = split.metadata.seq_len
        self.source: CanvasSource = (
            CompactSource(split, device) if isinstance(split, CompactSplit) else StoredSource(split)
        )
        # The whole of any canvas, square or not, is one row of cells.
        self.columns = self.num_cells
        self.whole: tuple[int, int, int, int] = (0, 0, 1, self.num_cells)
        if isinstance(split, CompactSplit):
            self.columns = canvas_side(self.num_cells)
            self.whole = (0, 0, self.columns, self.columns)

    @property
    def longest(self) -> int:
        """Tokens of a sequence that shows the whole canvas."""
        return self.prefix_length + self.num_cells

    def lengths(self, boxes: Boxes) -> npt.NDArray[np.int64]:
        """Tokens [n] of sequences that show `boxes` [n, 4]."""
        return self.prefix_length + areas(boxes)

    def capacity(self, tokens: int, examples: int) -> Capacity:
        """A static shape for so many tokens, of so many examples at most."""
        return Capacity(tokens, examples + NUM_FILLERS + -(-tokens // self.longest))

    def pack(self, plan: Plan, capacity: Capacity | None = None) -> HostBatch:
        """The planned sequences one after another, filled up to `capacity` if there is one.

        What fills up are sequences that are shorter than the longest, and maybe empty ones.
        """
        lengths = self.lengths(plan.boxes)
        count = len(lengths)
        if capacity is not None:
            missing, fillers = capacity.tokens - int(lengths.sum()), capacity.sequences - count
            assert 0 < missing <= fillers * self.longest, "a part has room"
            # All about as long, as attention costs the square of a length.
            filling = np.full(fillers, missing // fillers)
            filling[: missing % fillers] += 1
            lengths = np.concatenate([lengths, filling])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        boxes = np.tile(np.array(self.whole), (len(lengths), 1))
        boxes[:count] = plan.boxes
        return HostBatch(
            int(offsets[-1]),
            self.pin(torch.from_numpy(offsets.astype(np.int32))),
            self.pin(torch.arange(len(lengths)) < count),
            self.pin(torch.from_numpy(_filled(plan.puzzle_ids, len(lengths)))),
            self.pin(torch.from_numpy(_filled(plan.rows, len(lengths)))),
            self.pin(torch.from_numpy(boxes)),
            None
            if plan.path is None
            else self.pin(torch.from_numpy(_filled(plan.path, len(lengths)))),
            tuple(map(self.pin, self.source.take(plan, len(lengths)))),
        )

    def to_device(self, host: HostBatch) -> PackedBatch:
        """The batch as the network takes it; the host does not wait for it."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        offsets, boxes, is_example = move(host.offsets), move(host.boxes), move(host.is_example)
        sequence = torch.repeat_interleave(
            torch.arange(len(boxes), device=self.device),
            offsets.diff(),
            output_size=host.num_tokens,
        )
        places = torch.arange(host.num_tokens, device=self.device) - offsets[sequence]
        index = places - self.prefix_length
        top, left, _, right = boxes.unbind(1)
        width = (right - left)[sequence]
        shown = (top[sequence] + index // width) * self.columns + left[sequence] + index % width
        cells = torch.where(index < 0, index, shown)
        inputs, labels = self.source.tokens(tuple(map(move, host.parts)), sequence, cells)
        is_token = (cells >= 0) & is_example[sequence]
        return PackedBatch(
            inputs.masked_fill(~is_token, NO_TOKEN),
            labels.masked_fill(~is_token, PAD),
            cells,
            sequence,
            offsets,
            is_example,
            move(host.puzzle_ids).long(),
            move(host.rows),
            None if host.path is None else move(host.path),
        )

    def whole_labels(self, host: HostBatch) -> Tensor:
        """int64 [B, L] the labels on whole canvases, whatever is shown of them."""
        count = len(host.boxes)
        cells = torch.arange(self.num_cells, device=self.device).repeat(count)
        sequence = torch.arange(count, device=self.device).repeat_interleave(self.num_cells)
        parts = tuple(part.to(self.device, non_blocking=True) for part in host.parts)
        _, labels = self.source.tokens(parts, sequence, cells)
        labels = labels.view(count, self.num_cells)
        is_example = host.is_example.to(self.device, non_blocking=True)
        return labels.masked_fill(~is_example.unsqueeze(1), PAD)

    def pin(self, tensor: Tensor) -> Tensor:
        """A page-locked copy where that makes the transfer to the device asynchronous."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor


def cut(
    lengths: npt.NDArray[np.int64], most_tokens: int, most_sequences: int | None = None
) -> list[slice]:
    """Cut sequences of `lengths` [n] into runs of at most `most_tokens` and `most_sequences`."""
    runs: list[slice] = []
    start = tokens = 0
    for place, length in enumerate(lengths.tolist()):
        assert length <= most_tokens, "there is room for one sequence at least"
        if tokens + length > most_tokens or place - start == most_sequences:
            runs.append(slice(start, place))
            start, tokens = place, 0
        tokens += length
    return [*runs, slice(start, len(lengths))] if len(lengths) else []


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each made in a thread while the one before it is in use."""
    iterator = iter(items)
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, iterator, end)
        while (item := upcoming.result()) is not end:
            upcoming = thread.submit(next, iterator, end)
            yield item


def require_compact(split: Split, config: DataConfig) -> None:
    """Raise UserError if the configuration asks for what only the compact layout can tell."""
    wanted = {
        "data.canvas=window": config.canvas == "window",
        "data.translate=false": not config.translate,
        f"data.trajectories={config.trajectories}": config.trajectories is not None,
    }
    for key in (key for key, is_wanted in wanted.items() if is_wanted):
        if not isinstance(split, CompactSplit):
            raise UserError(
                f"{key} needs ARC tasks in the compact layout, and {split.path} is in the full "
                f"one: build the dataset again with --layout compact, or leave {key} out"
            )


class BatchLoader:
    """Endless iterator over a rank's share of training batches, each a list of micro-batches.

    `position` is that of the batch to come, as `TrainingBatches` counts; setting it before the
    iteration begins goes there.

    Args:
        batches: which examples.
        config: how much of them is shown.
        ranks: among which a batch is dealt, and the device.
        prefix_length: positions P before the cells of a sequence.
        micro_batch_tokens: most tokens of a micro-batch.
        num_steps: supervision steps S; only needed for `config.trajectories`.
        static: fill micro-batches up to one shape; None: on CUDA.
        key: that gives `micro_batch_tokens`, for messages.

    Raises:
        UserError: windows or trajectories do not fit the split, see `dataset.import_trajectories`;
            a micro-batch has no room for a whole canvas.
    """

    def __init__(
        self,
        batches: TrainingBatches,
        config: DataConfig,
        ranks: Ranks,
        prefix_length: int,
        micro_batch_tokens: int,
        *,
        num_steps: int | None = None,
        static: bool | None = None,
        key: str = "train.micro_batch_tokens",
    ) -> None:
        split = batches.split
        require_compact(split, config)
        self.batches = batches
        self.config = config
        self.ranks = ranks
        self.maker = BatchMaker(split, prefix_length, ranks.device)
        if micro_batch_tokens <= self.maker.longest:
            raise UserError(
                f"{key}={micro_batch_tokens} has no room for the {self.maker.longest} of a whole "
                f"canvas: take {self.maker.longest + 1} or more"
            )
        self.micro_batch_tokens = micro_batch_tokens
        self.num_steps = num_steps
        self.trajectories = None
        if config.trajectories is not None:
            assert num_steps is not None, "a path has as many targets as there are steps"
            self.trajectories = Trajectories(config.trajectories, split)
        self.batch_tokens = self._measure()
        """Most tokens of this rank's share in the first batches of the run."""
        is_static = ranks.device.type == "cuda" if static is None else static
        self.capacity = self._choose_capacity() if is_static else None
        self._position = batches.position

    @property
    def tokens_at_a_time(self) -> int:
        """Of the largest micro-batch."""
        if self.capacity is not None:
            return self.capacity.tokens
        return min(self.batch_tokens, self.micro_batch_tokens)

    @property
    def position(self) -> tuple[int, int]:
        return self._position

    @position.setter
    def position(self, position: tuple[int, int]) -> None:
        self._position = self.batches.position = position

    def __iter__(self) -> Generator[list[PackedBatch], None, None]:
        # `batches.position` runs ahead of what has been handed out, so each batch brings its own.
        prepared = ((self.prepare(sample), self.batches.position) for sample in self.batches)
        for host_batches, position in one_ahead(prepared):
            self._position = position
            yield [self.maker.to_device(batch) for batch in host_batches]

    def prepare(self, sample: Sample) -> list[HostBatch]:
        """What the host does for a batch."""
        plan = self.share(sample)
        if self.trajectories is not None and self.num_steps is not None:
            path = self.trajectories.targets(plan.examples, plan.origins, self.num_steps)
            plan = plan._replace(path=path)
        most = self.micro_batch_tokens if self.capacity is None else self.capacity.tokens - 1
        runs = cut(self.maker.lengths(plan.boxes), most)
        return [self.maker.pack(plan.take(run), self.capacity) for run in runs]

    def share(self, sample: Sample) -> Plan:
        """What this rank's examples of a batch show, largest first."""
        origins, boxes = self._show(sample)
        mine = deal(self.maker.lengths(boxes), self.ranks.rank, self.ranks.world_size)
        return Plan(sample.examples, sample.puzzle_ids, np.arange(len(boxes)), origins, boxes).take(
            mine
        )

    def _show(self, sample: Sample) -> tuple[npt.NDArray[np.int64], Boxes]:
        """Where the grids of all examples of a batch are, and which cells are shown."""
        split, count = self.batches.split, len(sample.examples)
        boxes = np.tile(np.array(self.maker.whole), (count, 1))
        if not isinstance(split, CompactSplit):
            return np.zeros((count, 2), dtype=np.int64), boxes
        side = self.maker.columns
        extents = split.extents(sample.examples).max(axis=1)
        shifts = sample.shifts * self.config.translate
        origins = np.floor(shifts * (side - extents + 1)).astype(np.int64)
        if self.config.canvas == "window":
            largest = np.maximum(extents, split.largest_outputs(sample.examples))
            margins = np.floor(sample.edges * (self.config.window_margin + 1)).astype(np.int64)
            is_window = sample.coin >= self.config.whole_canvas_share
            windows = widen(boxes_around(origins, largest, side), margins, side)
            boxes[is_window] = windows[is_window]
        return origins, boxes

    def _measure(self) -> int:
        """By the first batches, wherever a run is resumed, so that it does not change."""
        split, batch_size = self.batches.split, self.batches.global_batch_size
        seed, variants = self.batches.seed, self.batches.variants
        stream = TrainingBatches(split, batch_size, seed, variants)
        plans = (self.share(sample) for sample in islice(stream, MEASURED_BATCHES))
        return max(int(self.maker.lengths(plan.boxes).sum()) for plan in plans)

    def _choose_capacity(self) -> Capacity:
        """The static shape of micro-batches: as few as `micro_batch_tokens` allows, all alike.

        Should a later batch need more, one more micro-batch is computed.
        """
        longest, limit = self.maker.longest, self.micro_batch_tokens
        # One token more than is needed, so that there is always something that fills up (see
        # `models.recursive`); of several parts each may also end before a sequence that does not
        # fit into it.
        count, room = 1, 1
        if self.batch_tokens + room > limit:
            count, room = -(-self.batch_tokens // max(limit - longest, longest)), longest
        tokens = -(-(-(-self.batch_tokens // count) + room) // TOKEN_STEP) * TOKEN_STEP
        # The first batches may happen to show no whole canvas.
        tokens = min(max(tokens, longest + 1), limit)
        examples = self.batches.global_batch_size // self.ranks.world_size
        return self.maker.capacity(tokens, examples)
