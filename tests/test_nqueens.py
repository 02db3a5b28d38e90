"""8-queens against a look at all arrangements, cell by cell, and the builder's two splits."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from boards import boards_of, contents, existing_folder_is_kept, opened, options_are_refused
from hypothesis import given
from hypothesis import strategies as st

from dataset.batches import DataConfig, TrainingBatches
from dataset.boards import keeps_given
from dataset.build_nqueens_dataset import BuildOptions, Summary, build, main, spread_evenly
from dataset.loading import BatchLoader
from dataset.nqueens import (
    EightQueens,
    draw_distinct_rows,
    draw_rows,
    partial_boards,
    solutions,
    symmetric_images,
)
from dataset.rules import RULES, puzzle_of

RULES_OF_QUEENS = EightQueens()
DIFFERENT_BOARDS = [1, 64, 1052, 4032, 6040, 5072, 2568, 736]
"""Boards with 0 to 7 queens that some solution contains, as counted here by brute force."""


def cells_of_queens(board: Any) -> list[tuple[int, int]]:
    return [divmod(cell, 8) for cell in range(64) if board[cell] == 2]


def is_right(board: Any) -> bool:
    """The rules, read out: eight queens, of which no two attack each other."""
    queens = cells_of_queens(board)
    if len(queens) != 8 or any(token not in (1, 2) for token in board):
        return False
    return not any(
        a == c or b == d or abs(a - c) == abs(b - d)
        for i, (a, b) in enumerate(queens)
        for c, d in queens[:i]
    )


def board_of(columns: Any) -> list[int]:
    """The board with a queen in the given column of each row."""
    return [2 if columns[row] == column else 1 for row in range(8) for column in range(8)]


@pytest.fixture(scope="module")
def right_boards() -> set[bytes]:
    """All solutions, by trying every way of a queen in each row and column."""
    return {
        bytes(board_of(columns))
        for columns in permutations(range(8))
        if all(abs(columns[i] - columns[j]) != i - j for i in range(8) for j in range(i))
    }


# ---- rules -----------------------------------------------------------------------------------


def test_there_are_92_solutions_and_they_are_those(right_boards: set[bytes]) -> None:
    assert len(right_boards) == len(solutions()) == 92
    assert {board.tobytes() for board in solutions()} == right_boards
    assert all(is_right(board) for board in solutions())


def test_the_empty_cell_and_the_queen_are_the_tokens_of_a_solution() -> None:
    assert list(RULES_OF_QUEENS.solution_tokens) == [1, 2]
    assert np.unique(solutions()).tolist() == [1, 2]


def test_of_all_permutations_those_are_valid_that_are_solutions(right_boards: set[bytes]) -> None:
    boards = np.array([board_of(columns) for columns in permutations(range(8))], dtype=np.uint8)
    valid = boards[RULES_OF_QUEENS.is_valid(boards)]
    assert {board.tobytes() for board in valid} == right_boards


@given(
    st.integers(0, 91),
    st.lists(st.tuples(st.integers(0, 63), st.sampled_from([0, 1, 2, 3, 255])), max_size=4),
    st.booleans(),
)
def test_changed_boards_are_judged_as_by_reading_out_the_rules(
    index: int, changes: list[tuple[int, int]], moves_a_queen: bool
) -> None:
    board = solutions()[index].copy()
    if moves_a_queen:  # Keeps the number of queens, which most changes do not.
        row, column = cells_of_queens(board)[index % 8]
        board[8 * row + column], board[8 * row + (column + 1 + index % 7) % 8] = 1, 2
    for cell, token in changes:
        board[cell] = token
    assert RULES_OF_QUEENS.is_valid(board[None]).tolist() == [is_right(board)]


def test_random_boards_are_judged_as_by_reading_out_the_rules() -> None:
    rng = np.random.default_rng(0)
    # Eight queens anywhere, none, and whatever tokens there are.
    anywhere = np.ones((300, 64), dtype=np.uint8)
    np.put_along_axis(anywhere, rng.permuted(np.tile(np.arange(64), (300, 1)), axis=1)[:, :8], 2, 1)
    others = [np.ones((1, 64)), np.full((1, 64), 2), rng.integers(0, 256, (50, 64))]
    boards = np.concatenate([anywhere, *others, solutions()]).astype(np.uint8)
    expected = [is_right(board) for board in boards.tolist()]
    assert RULES_OF_QUEENS.is_valid(boards).tolist() == expected
    assert sum(expected) == 92


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ((0, 4, 7, 5, 2, 6, 1, 3), None),
        ((0, 4, 7, 5, 2, 6, 3, 1), "a diagonal"),
        ((0, 4, 7, 5, 2, 6, 1, 1), "a column"),
    ],
)
def test_a_single_attack_makes_a_board_invalid(columns: tuple[int, ...], why: str | None) -> None:
    board = np.array([board_of(columns)], dtype=np.uint8)
    assert RULES_OF_QUEENS.is_valid(board).tolist() == [why is None]


def test_the_ceiling_is_one_over_the_solutions_that_contain_the_given_queens() -> None:
    rng = np.random.default_rng(1)
    drawn = partial_boards().inputs[rng.choice(len(partial_boards().inputs), 300, replace=False)]
    impossible = np.ones((2, 64), dtype=np.uint8)
    impossible[0, [0, 1]] = 2  # In one row.
    impossible[1, [0, 17, 39]] = 2  # None attacks another: counted like the rest.
    boards = np.concatenate([drawn, impossible, np.ones((1, 64), dtype=np.uint8)])
    ceilings = RULES_OF_QUEENS.exact_ceiling(boards)
    for board, ceiling in zip(boards.tolist(), ceilings, strict=True):
        queens = set(cells_of_queens(board))
        count = sum(queens <= set(cells_of_queens(solution)) for solution in solutions().tolist())
        assert ceiling == (1 / count if count else 0)
    assert ceilings[-1] == 1 / 92
    assert ceilings[-3] == 0


# ---- partial boards --------------------------------------------------------------------------


def test_every_way_of_giving_queens_stands_there_once(right_boards: set[bytes]) -> None:
    boards = partial_boards()
    assert len(boards.inputs) == 92 * 255
    assert len({(a.tobytes(), b.tobytes()) for a, b in zip(*boards[:2], strict=True)}) == 92 * 255
    assert {label.tobytes() for label in boards.labels} == right_boards
    assert keeps_given(boards.inputs, boards.labels).all()
    assert np.array_equal((boards.inputs == 2).sum(axis=1), boards.num_given)
    assert np.bincount(boards.num_given).tolist() == [
        92 * ways for ways in (1, 8, 28, 56, 70, 56, 28, 8)
    ]
    ids_of = dict(zip((board.tobytes() for board in boards.inputs), boards.board_ids, strict=True))
    assert [ids_of[board.tobytes()] for board in boards.inputs] == boards.board_ids.tolist()
    assert len(set(ids_of.values())) == len(ids_of) == sum(DIFFERENT_BOARDS)
    for number, different in enumerate(DIFFERENT_BOARDS):
        assert len(np.unique(boards.board_ids[boards.num_given == number])) == different


def test_the_ceiling_of_all_that_can_be_drawn_is_that_worked_out_by_hand() -> None:
    """Over all ways to reach a board, 1 / solutions adds up to 1: boards / ways on average."""
    boards = partial_boards()
    ceilings = RULES_OF_QUEENS.exact_ceiling(boards.inputs)
    ways = [92 * ways for ways in (1, 8, 28, 56, 70, 56, 28, 8)]
    for number in range(8):
        mean = ceilings[boards.num_given == number].mean()
        assert mean == pytest.approx(DIFFERENT_BOARDS[number] / ways[number])
    overall = np.mean(np.array(DIFFERENT_BOARDS) / ways)
    assert overall == pytest.approx(0.651, abs=0.0005)


def test_solutions_and_their_queens_are_drawn_uniformly() -> None:
    boards = partial_boards()
    rows = draw_rows(
        np.full(92 * 28 * 20, 2), np.ones(92 * 255, dtype=bool), np.random.default_rng(2)
    )
    assert set(boards.num_given[rows]) == {2}
    counts = np.bincount(rows, minlength=92 * 255)[boards.num_given == 2]
    # 20 of each of 2,576 ways are expected: chi-squared within five standard deviations.
    assert abs(((counts - 20) ** 2 / 20).sum() - 2575) < 5 * np.sqrt(2 * 2575)


def test_rows_that_are_not_allowed_are_never_drawn() -> None:
    rng = np.random.default_rng(3)
    allowed = rng.random(92 * 255) < 0.1
    allowed[partial_boards().num_given == 0] = True
    numbers = rng.integers(8, size=2000)
    rows = draw_rows(numbers, allowed, rng)
    assert allowed[rows].all()
    assert np.array_equal(partial_boards().num_given[rows], numbers)


def test_distinct_boards_are_drawn_as_often_as_they_have_solutions() -> None:
    """A first board drawn alone: in proportion to its solutions, and either of them as label."""
    boards = partial_boards()
    rng = np.random.default_rng(4)
    first = np.concatenate([draw_distinct_rows(1, 1, rng) for _ in range(3000)])
    shown = np.bincount(boards.inputs[first].argmax(axis=1), minlength=64)
    expected = 3000 * (solutions() == 2).sum(axis=0) / 736
    assert (((shown - expected) ** 2) / expected).sum() < 63 + 5 * np.sqrt(2 * 63)
    everything = draw_distinct_rows(1, 64, rng)
    assert len(np.unique(boards.board_ids[everything])) == 64
    # The label is not always the same solution: corners have 4, the others up to 18.
    assert len({tuple(draw_distinct_rows(1, 64, rng).tolist()) for _ in range(3)}) == 3


# ---- the builder -----------------------------------------------------------------------------

Build = Callable[..., tuple[Path, Summary]]


@pytest.fixture
def build_queens(tmp_path: Path) -> Build:
    """Build as the keywords say; folder and summary."""

    def run(**changes: Any) -> tuple[Path, Summary]:
        options = dataclasses.replace(BuildOptions(tmp_path / "out"), **changes)
        return options.output_dir, build(options)

    return run


@pytest.mark.parametrize("kind", ["paper", "disjoint"])
def test_every_board_of_a_dataset_is_a_puzzle_with_its_solution(
    build_queens: Build, kind: str
) -> None:
    folder, _ = build_queens(split=kind)
    assert puzzle_of(folder) == "nqueens"
    for half, count in (("train", 7200), ("test", 200)):
        split = opened(folder, half)
        assert split.inputs.shape == split.labels.shape == (count, 64)
        assert split.metadata.vocab_size == 3
        assert RULES["nqueens"].is_valid(split.labels).all()
        assert keeps_given(split.inputs, split.labels).all()
        assert len(split.group_indices) - 1 == len(split.puzzle_identifiers) == count
        given_queens = (split.inputs == 2).sum(axis=1)
        if kind == "paper" or half == "train":
            # Uniform over 0 to 7: five standard deviations of a binomial count.
            counts = np.bincount(given_queens, minlength=8)
            assert np.abs(counts - count / 8).max() < 5 * np.sqrt(count / 8 * 7 / 8)


def test_the_papers_split_counts_the_test_boards_that_are_trained_on(build_queens: Build) -> None:
    folder, summary = build_queens()
    train, test = set(boards_of(folder, "train")), boards_of(folder, "test")
    assert summary.test_boards_among_training_boards == sum(board in train for board in test) > 80
    assert summary.different_train_boards == len(train)
    assert summary.different_test_boards == len(set(test))


@pytest.mark.parametrize("num_test", [1, 200, 1000])
def test_the_disjoint_split_tests_on_boards_that_are_not_trained_on(
    build_queens: Build, num_test: int
) -> None:
    folder, summary = build_queens(split="disjoint", num_test=num_test)
    train, test = boards_of(folder, "train"), boards_of(folder, "test")
    assert not set(train) & set(test)
    assert len(set(test)) == len(test) == num_test
    assert summary.test_boards_among_training_boards == 0
    # The empty board is one to train on.
    assert train.count(bytes([1] * 64)) > 800


@pytest.mark.parametrize("kind", ["paper", "disjoint"])
def test_the_summary_counts_test_boards_that_are_training_boards_turned_or_reflected(
    build_queens: Build, kind: str
) -> None:
    folder, summary = build_queens(split=kind, num_train=400)
    train = set(boards_of(folder, "train"))

    def is_known(board: bytes) -> bool:
        grid = np.frombuffer(board, np.uint8).reshape(8, 8)
        looks = [np.rot90(g, k) for g in (grid, np.fliplr(grid)) for k in range(4)]
        return any(look.tobytes() in train for look in looks)

    counted = summary.test_boards_turned_among_training_boards
    assert counted == sum(map(is_known, boards_of(folder, "test")))
    assert summary.test_boards_among_training_boards < counted < 200


def test_symmetric_images_of_solutions_are_solutions() -> None:
    for images in symmetric_images(solutions()):
        assert {board.tobytes() for board in images} == {b.tobytes() for b in solutions()}


def test_disjoint_test_boards_spread_evenly_and_in_no_order(build_queens: Build) -> None:
    folder, _ = build_queens(split="disjoint")
    numbers = (opened(folder, "test").inputs == 2).sum(axis=1)
    assert sorted(Counter(numbers.tolist()).items()) == [
        (1, 28), (2, 28), (3, 29), (4, 29), (5, 29), (6, 29), (7, 28)
    ]  # fmt: skip
    assert len(set(numbers[:30].tolist())) == 7


def test_at_most_half_of_the_boards_of_a_number_are_held_out(build_queens: Build) -> None:
    most = sum(boards // 2 for boards in DIFFERENT_BOARDS)
    folder, _ = build_queens(split="disjoint", num_test=most, num_train=3000)
    numbers = (opened(folder, "test").inputs == 2).sum(axis=1)
    assert np.bincount(numbers, minlength=8).tolist() == [n // 2 for n in DIFFERENT_BOARDS]
    assert not set(boards_of(folder, "train")) & set(boards_of(folder, "test"))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.floats(0, 1))
def test_counts_spread_as_evenly_as_their_limits_allow(limits: list[int], share: float) -> None:
    total = int(share * sum(limits))
    counts = spread_evenly(total, np.array(limits)).tolist()
    assert sum(counts) == total
    assert all(0 <= count <= limit for count, limit in zip(counts, limits, strict=True))
    # Who has fewer than another by more than one is at its limit.
    for count, limit in zip(counts, limits, strict=True):
        assert count == limit or count >= max(counts) - 1


def test_the_summary_gives_the_ceiling_of_the_very_test_half(build_queens: Build) -> None:
    folder, summary = build_queens(num_test=100)
    inputs = opened(folder, "test").inputs
    ceilings = RULES_OF_QUEENS.exact_ceiling(np.array(inputs))
    assert summary.exact_ceiling == pytest.approx(ceilings.mean())
    kept = json.loads((folder / "build.json").read_text())
    assert kept["options"] == {"split": "paper", "num_train": 7200, "num_test": 100, "seed": 42}
    assert kept["summary"] == dataclasses.asdict(summary)
    by_given = kept["summary"]["by_given_queens"]
    for number in range(8):
        of_number = ceilings[(inputs == 2).sum(axis=1) == number]
        assert by_given[str(number)]["test_boards"] == len(of_number)
        assert by_given[str(number)]["exact_ceiling"] == pytest.approx(of_number.mean())
    assert "exact match on the test half, at best: " in "\n".join(summary.lines())


@pytest.mark.parametrize("kind", ["paper", "disjoint"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    build_queens: Build, tmp_path: Path, kind: str
) -> None:
    first, again, other = (
        contents(build_queens(output_dir=tmp_path / name, split=kind, num_train=300, seed=seed)[0])
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert {path for path in first if first[path] != other[path]} == {
        "build.json", "train/all__inputs.npy", "train/all__labels.npy", "test/all__inputs.npy",
        "test/all__labels.npy",
    }  # fmt: skip


def test_batches_of_a_dataset_show_its_boards(build_queens: Build) -> None:
    folder, _ = build_queens(num_train=100)
    split = opened(folder, "train")
    config = DataConfig(
        path=folder, trajectories=None, epochs_per_pass=1, canvas="whole", window_margin=0,
        whole_canvas_share=0,
    )  # fmt: skip
    loader = BatchLoader(TrainingBatches(split, 50, 1, seed=0), config, torch.device("cpu"))
    seen: Counter[bytes] = Counter()
    for _, (segment,) in zip(range(2), loader, strict=False):
        assert (segment.puzzle_ids == 0).all()
        shown = segment.inputs.numpy().astype(np.uint8)
        assert RULES_OF_QUEENS.is_valid(segment.labels.numpy().astype(np.uint8)).all()
        seen.update(board.tobytes() for board in shown)
    assert seen == Counter(boards_of(folder, "train"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--num-train", 0), "--num-train 0: must be 1 or more"),
        (("--num-test", -3), "--num-test -3: must be 1 or more"),
        (("--seed", -1), "--seed -1: must be 0 or more"),
        (
            ("--split", "disjoint", "--num-test", 9783),
            "--num-test 9783: with --split disjoint it must be 9782 or fewer",
        ),
        (("--split", "honest"), "invalid choice: 'honest'"),
    ],
)
def test_bad_options_end_in_one_line_and_leave_no_folder(
    tmp_path: Path,
    refused_in_process: Callable[..., str],
    arguments: tuple[object, ...],
    complaint: str,
) -> None:
    options_are_refused(refused_in_process, main, tmp_path, arguments, complaint)


def test_an_existing_folder_is_kept_as_it_is(build_queens: Build, tmp_path: Path) -> None:
    existing_folder_is_kept(build_queens, tmp_path / "out")


def test_the_command_that_users_know_builds_the_dataset(
    tmp_path: Path, build_queens: Build, run_command: Callable[..., Any]
) -> None:
    process = run_command(
        "-m", "dataset.build_nqueens_dataset", "--output-dir", tmp_path / "new" / "queens"
    )
    assert process.returncode == 0, process.stderr
    assert "test boards among training boards: 113" in process.stderr
    assert contents(tmp_path / "new" / "queens") == contents(build_queens()[0])
