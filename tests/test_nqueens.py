"""8-queens against a look at all arrangements, cell by cell, and the builder's two splits."""

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_oracles import contents
from boards import boards_of, is_valid
from dataset.boards import keeps_given, puzzle_of, rules_of
from dataset.build_boards import Summary
from dataset.build_nqueens_dataset import (
    RULES,
    BuildOptions,
    build,
    draw_distinct_rows,
    draw_rows,
    partial_boards,
    solutions,
    spread_evenly,
)
from dataset.splits import open_split

DIFFERENT_BOARDS = [1, 64, 1052, 4032, 6040, 5072, 2568, 736]
"""Boards with 0 to 7 queens that some solution contains, as counted here by brute force."""
WAYS = [92 * ways for ways in (1, 8, 28, 56, 70, 56, 28, 8)]
"""Ways to give 0 to 7 queens of a solution."""


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


@pytest.fixture(scope="module")
def right_boards() -> set[bytes]:
    """All solutions, by trying every way of a queen in each row and column."""
    return {
        bytes(2 if columns[row] == column else 1 for row in range(8) for column in range(8))
        for columns in permutations(range(8))
        if all(abs(columns[i] - columns[j]) != i - j for i in range(8) for j in range(i))
    }


# ---- rules -----------------------------------------------------------------------------------


def test_there_are_92_solutions_and_they_are_those(right_boards: set[bytes]) -> None:
    assert len(right_boards) == len(solutions()) == 92
    assert {board.tobytes() for board in solutions()} == right_boards
    assert list(RULES.solution_tokens) == np.unique(solutions()).tolist() == [1, 2]


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
    assert is_valid(RULES, board[None]) == [is_right(board)]


def test_the_ceiling_is_one_over_the_solutions_that_contain_the_given_queens() -> None:
    rng = np.random.default_rng(1)
    drawn = partial_boards().inputs[rng.choice(len(partial_boards().inputs), 300, replace=False)]
    special = np.ones((3, 64), dtype=np.uint8)
    special[1, [0, 1]] = 2  # In one row.
    special[2, [0, 17, 39]] = 2  # None attacks another: counted like the rest.
    boards = np.concatenate([special, drawn])
    ceilings = RULES.exact_ceiling(boards)
    for board, ceiling in zip(boards.tolist(), ceilings, strict=True):
        queens = set(cells_of_queens(board))
        count = sum(queens <= set(cells_of_queens(solution)) for solution in solutions().tolist())
        assert ceiling == (1 / count if count else 0)
    assert ceilings[:2].tolist() == [1 / 92, 0]


# ---- partial boards --------------------------------------------------------------------------


def test_every_way_of_giving_queens_stands_there_once(right_boards: set[bytes]) -> None:
    boards = partial_boards()
    assert len(boards.inputs) == 92 * 255
    assert len({(a.tobytes(), b.tobytes()) for a, b in zip(*boards[:2], strict=True)}) == 92 * 255
    assert {label.tobytes() for label in boards.labels} == right_boards
    assert keeps_given(RULES, boards.inputs, boards.labels).all()
    assert np.array_equal((boards.inputs == 2).sum(axis=1), boards.num_given)
    assert np.bincount(boards.num_given).tolist() == WAYS
    ids_of = dict(zip((board.tobytes() for board in boards.inputs), boards.board_ids, strict=True))
    assert [ids_of[board.tobytes()] for board in boards.inputs] == boards.board_ids.tolist()
    assert len(set(ids_of.values())) == len(ids_of) == sum(DIFFERENT_BOARDS)


def test_the_ceiling_of_all_that_can_be_drawn_is_that_worked_out_by_hand() -> None:
    """Over all ways to reach a board, 1 / solutions adds up to 1: boards / ways on average."""
    boards = partial_boards()
    ceilings = RULES.exact_ceiling(boards.inputs)
    for number, different in enumerate(DIFFERENT_BOARDS):
        assert len(np.unique(boards.board_ids[boards.num_given == number])) == different
        mean = ceilings[boards.num_given == number].mean()
        assert mean == pytest.approx(different / WAYS[number])
    overall = np.mean(np.array(DIFFERENT_BOARDS) / WAYS)
    assert overall == pytest.approx(0.651, abs=0.0005)


def test_numbers_solutions_and_queens_are_drawn_uniformly() -> None:
    boards = partial_boards()
    everything = np.ones(92 * 255, dtype=bool)
    rows = draw_rows(8 * 92 * 28 * 20, everything, np.random.default_rng(2))
    numbers = np.bincount(boards.num_given[rows])
    # Five standard deviations of a binomial count of 51,520.
    assert np.abs(numbers - 51520).max() < 5 * np.sqrt(51520 * 7 / 8)
    for given_queens in (2, 6):
        counts = np.bincount(rows, minlength=92 * 255)[boards.num_given == given_queens]
        # Some 20 of each of 2,576 ways: chi-squared within five standard deviations.
        expected = counts.mean()
        assert abs(((counts - expected) ** 2 / expected).sum() - 2575) < 5 * np.sqrt(2 * 2575)


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
        options = BuildOptions(**{"output_dir": tmp_path / "out", **changes})
        return options.output_dir, build(options)

    return run


@pytest.fixture(params=["paper", "disjoint"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_every_board_of_a_dataset_is_a_puzzle_with_its_solution(
    build_queens: Build, kind: str
) -> None:
    folder, _ = build_queens(split=kind)
    assert rules_of(puzzle_of(folder)) is RULES
    for half, count in (("train", 7200), ("test", 200)):
        split = open_split(folder, half)
        assert split.inputs.shape == split.labels.shape == (count, 64)
        assert split.metadata.vocab_size == 3
        assert all(is_valid(RULES, split.labels))
        assert keeps_given(RULES, split.inputs, split.labels).all()
        assert len(split.group_indices) - 1 == len(split.puzzle_identifiers) == count
        if kind == "paper" or half == "train":
            # Uniform over 0 to 7: five standard deviations of a binomial count.
            counts = np.bincount((split.inputs == 2).sum(axis=1), minlength=8)
            assert np.abs(counts - count / 8).max() < 5 * np.sqrt(count / 8 * 7 / 8)


@pytest.mark.parametrize(
    "counts",
    [
        [0, 0, 0, 0, 1, 0, 0, 0],
        [0, 28, 28, 29, 29, 29, 29, 28],
        [0, 32, 161, 161, 162, 162, 161, 161],
        [boards // 2 for boards in DIFFERENT_BOARDS],
    ],
    ids=["1", "200", "1000", "all"],
)
def test_disjoint_test_boards_are_different_ones_that_are_not_trained_on(
    build_queens: Build, counts: list[int]
) -> None:
    """They spread evenly over 1 to 7 queens, up to half of the boards there are for each number."""
    folder, _ = build_queens(split="disjoint", num_test=sum(counts))
    train, test = boards_of(folder, "train"), boards_of(folder, "test")
    assert not set(train) & set(test)
    assert len(set(test)) == len(test)
    assert train.count(bytes([1] * 64)) > 800, "the empty board is one to train on"
    numbers = [board.count(2) for board in test]
    assert np.bincount(numbers, minlength=8).tolist() == counts
    assert len(set(numbers[:30])) >= min(len(test), 5), "in no order"


def test_the_summary_describes_the_very_halves_and_is_kept(build_queens: Build, kind: str) -> None:
    folder, summary = build_queens(split=kind, num_train=400, num_test=100)
    train, test = set(boards_of(folder, "train")), boards_of(folder, "test")

    def is_known(board: bytes) -> bool:
        grid = np.frombuffer(board, np.uint8).reshape(8, 8)
        looks = [np.rot90(g, k) for g in (grid, np.fliplr(grid)) for k in range(4)]
        return any(look.tobytes() in train for look in looks)

    among, turned = sum(board in train for board in test), sum(map(is_known, test))
    ceilings = RULES.exact_ceiling(np.array(open_split(folder, "test").inputs))
    assert summary == {
        "train_boards": 400,
        "test_boards": 100,
        "test_boards_among_training_boards": among,
        "test_boards_turned_or_reflected_among_training_boards": turned,
        "exact_ceiling": pytest.approx(ceilings.mean()),
        "share_with_one_solution": pytest.approx(np.mean(ceilings > 0.9)),
    }
    assert among < turned < 100
    assert (among > 0) == (kind == "paper")
    kept = json.loads((folder / "build.json").read_text())
    options = {"split": kind, "num_train": 400, "num_test": 100, "num_aug": 0, "seed": 42}
    assert kept["options"] == options
    assert kept["summary"] == summary


def test_forms_of_a_board_follow_it_but_for_those_to_test_on(
    build_queens: Build, tmp_path: Path, kind: str
) -> None:
    sizes = {"split": kind, "num_train": 300, "num_test": 400}
    plain, _ = build_queens(output_dir=tmp_path / "plain", **sizes)
    folder, summary = build_queens(**sizes, num_aug=7)
    assert boards_of(folder, "test") == boards_of(plain, "test")
    train, single = open_split(folder, "train"), open_split(plain, "train")
    assert summary["train_boards"] == len(train.inputs) == 2400
    assert np.array_equal(np.diff(train.group_indices), np.full(300, 8))
    tested = set(boards_of(folder, "test"))
    num_left_out = 0
    pairs = zip(single.inputs, single.labels, strict=True)
    for number, (board, solution) in enumerate(pairs):
        found = {
            (train.inputs[row].tobytes(), train.labels[row].tobytes())
            for row in range(8 * number, 8 * number + 8)
        }
        forms = {
            tuple(np.rot90(look(grid.reshape(8, 8)), k).tobytes() for grid in (board, solution))
            for look in (np.asarray, np.fliplr)
            for k in range(4)
        }
        if kind == "disjoint":
            num_left_out += sum(form[0] in tested for form in forms)
            forms = {form for form in forms if form[0] not in tested}
        assert found == forms
    assert (num_left_out > 0) == (kind == "disjoint")


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.floats(0, 1))
def test_counts_spread_as_evenly_as_their_limits_allow(limits: list[int], share: float) -> None:
    total = int(share * sum(limits))
    counts = spread_evenly(total, np.array(limits)).tolist()
    assert sum(counts) == total
    assert all(0 <= count <= limit for count, limit in zip(counts, limits, strict=True))
    # Who has fewer than another by more than one is at its limit.
    for count, limit in zip(counts, limits, strict=True):
        assert count == limit or count >= max(counts) - 1


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
        "test/all__labels.npy", "manifest.json",
    }  # fmt: skip


def test_the_command_that_users_know_builds_the_dataset(
    tmp_path: Path, build_queens: Build, run_command: Callable[..., Any]
) -> None:
    out = tmp_path / "new" / "queens"
    process = run_command("-m", "dataset.build_nqueens_dataset", "--output-dir", out)
    assert process.returncode == 0, process.stderr
    assert "test boards among training boards: 113" in process.stderr
    assert contents(out) == contents(build_queens()[0])
