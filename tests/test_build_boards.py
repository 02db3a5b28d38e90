"""The commands that build Sudokus and mazes, and what all builders of boards refuse."""

import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arc_oracles import contents
from boards import boards_of, solved_mazes
from common.errors import UserError
from common.flags import parse_flags
from dataset import (
    build_maze_dataset,
    build_nqueens_dataset,
    build_sudoku_dataset,
    maze,
    sudoku,
)
from dataset.board_csv import write_csv
from dataset.boards import keeps_given, puzzle_of, rules_of
from dataset.build_boards import Half, Summary
from dataset.splits import open_split

Build = Callable[..., tuple[Path, Summary]]


@pytest.fixture
def maze_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("csv") / "mazes.csv"
    write_csv(path, solved_mazes(), maze.ALPHABET)
    return path


@pytest.fixture
def build_boards(tmp_path: Path, maze_csv: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Build 20 + 10 puzzles with 3 variants each, or as the keywords say; folder and summary.

    Sudokus are generated, mazes come from a file of 60 with 6x6 cells.
    """
    # In this process, which is quicker.
    monkeypatch.setattr(
        build_sudoku_dataset, "worker_processes", lambda workers: ThreadPoolExecutor(1)
    )

    def run(puzzle: str, **changes: Any) -> tuple[Path, Summary]:
        module: Any = {"sudoku": build_sudoku_dataset, "maze": build_maze_dataset}[puzzle]
        source = {"sudoku": {"clues": (30, 40)}, "maze": {"csv": (maze_csv,)}}[puzzle]
        values = {"output_dir": tmp_path / "out", "num_train": 20, "num_test": 10, "num_aug": 3}
        options = module.BuildOptions(**{**values, **source, **changes})
        return options.output_dir, module.build(options)

    return run


@pytest.fixture(params=["sudoku", "maze"])
def puzzle(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


# ---- datasets --------------------------------------------------------------------------------


def test_training_puzzles_are_grouped_with_their_variants_and_test_puzzles_stand_alone(
    build_boards: Build, puzzle: str
) -> None:
    folder, summary = build_boards(puzzle)
    assert summary == {"train_puzzles": 20, "test_puzzles": 10, "train_boards": 80}
    assert puzzle_of(folder) == puzzle
    rules = rules_of(puzzle)
    for half, groups, size in (("train", 20, 4), ("test", 10, 1)):
        split = open_split(folder, half)
        assert len(split.inputs) == len(split.labels) == groups * size
        assert split.group_indices.tolist() == [size * group for group in range(groups + 1)]
        assert split.metadata.vocab_size == {"sudoku": 11, "maze": 6}[puzzle]
        assert rules.is_valid(split.inputs, split.labels).all()
        assert keeps_given(rules, split.inputs, split.labels).all()
        # Variants have the given cells of their puzzle, elsewhere.
        given = (split.inputs != rules.empty).sum(axis=1).reshape(groups, size)
        assert (given == given[:, :1]).all()
        assert puzzle == "maze" or (given.min() >= 30 and given.max() <= 40)
        assert len(set(boards_of(folder, half))) == groups * size
    assert not set(boards_of(folder, "train")) & set(boards_of(folder, "test"))


def test_each_puzzle_has_variants_of_its_own(build_boards: Build) -> None:
    """Of 20 mazes with one of seven transforms each, not all have the same."""
    folder, _ = build_boards("maze", num_aug=1)
    grids = open_split(folder, "train").inputs.reshape(20, 2, 6, 6)
    for look in (np.fliplr, np.flipud, np.transpose, np.rot90):
        assert sum(np.array_equal(look(grid), variant) for grid, variant in grids) < 15


def test_halves_depend_on_the_seed_and_not_on_each_others_size(
    build_boards: Build, tmp_path: Path
) -> None:
    first, second, other = (
        build_boards("sudoku", output_dir=tmp_path / str(i), num_train=i, num_test=n, seed=seed)[0]
        for i, n, seed in [(20, 5, 1), (10, 10, 1), (11, 10, 2)]
    )
    assert boards_of(second, "test")[:5] == boards_of(first, "test")
    assert boards_of(first, "train")[:40] == boards_of(second, "train")
    for half in ("train", "test"):
        assert not set(boards_of(second, half)) & set(boards_of(other, half))


def test_the_record_has_what_the_bytes_depend_on(
    build_boards: Build, puzzle: str, maze_csv: Path
) -> None:
    folder, summary = build_boards(puzzle)
    own = {"sudoku": {"csv": [], "clues": [30, 40]}, "maze": {"csv": [str(maze_csv)]}}[puzzle]
    kept = json.loads((folder / "build.json").read_text())
    assert kept == {
        "puzzle": puzzle,
        "options": {
            "num_train": 20,
            "num_test": 10,
            "seed": 42,
            "num_aug": 3,
            "test_csv": None,
            "puzzle_column": "question",
            "solution_column": "answer",
            **own,
        },
        "summary": summary,
    }


def test_a_test_puzzle_met_among_training_boards_is_refused(
    build_boards: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Sudoku by chance: here all are the same. A maze where a file has one and a variant."""
    complaint = r"a training puzzle or one of its variants: .* --seed"
    one = sudoku.generate((40, 40), np.random.default_rng(0))
    monkeypatch.setattr(sudoku, "generate", lambda clues, rng: one)
    with pytest.raises(UserError, match=complaint):
        build_boards("sudoku")
    inputs, labels, _ = solved_mazes()
    pair = np.stack([inputs[0], labels[0]])
    (variant,) = maze.draw_variants(pair, 1, np.random.default_rng(0))
    both = Half(*np.stack([pair, variant]).swapaxes(0, 1))
    write_csv(path := tmp_path / "both.csv", both, maze.ALPHABET)
    with pytest.raises(UserError, match=complaint):
        build_boards("maze", csv=(path,), num_train=1, num_test=1, num_aug=7)
    assert os.listdir(tmp_path) == ["both.csv"]


def test_an_imported_sudoku_with_several_solutions_is_named(
    build_boards: Build, tmp_path: Path, generated_sudokus: tuple[np.ndarray, np.ndarray]
) -> None:
    puzzles, labels = (boards[:30].copy() for boards in generated_sudokus)
    write_csv(path := tmp_path / "good.csv", Half(puzzles, labels), sudoku.ALPHABET)
    folder, _ = build_boards("sudoku", csv=(path,), clues=None)
    assert set(boards_of(folder, "train")[::4]) <= {board.tobytes() for board in puzzles}
    puzzles[4] = np.where(np.arange(81) == 0, labels[4], 1)
    write_csv(path := tmp_path / "bad.csv", Half(puzzles, labels), sudoku.ALPHABET)
    with pytest.raises(UserError, match=rf"{labels[4, 0] - 1}\.{{80}} has several solutions"):
        build_boards("sudoku", csv=(path,), clues=None, output_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()


# ---- the command lines -----------------------------------------------------------------------

QUEENS, SUDOKU, MAZE = build_nqueens_dataset, build_sudoku_dataset, build_maze_dataset


@pytest.mark.parametrize(
    ("module", "flags", "complaint"),
    [
        *((module, *case) for module in (QUEENS, SUDOKU) for case in (
            ("--num-train 0", r"num.train\W+0\b.*\b1\b"),
            ("--num-test -3", r"num.test\W+3\b.*\b1\b"),
            ("--seed -1", r"seed\W+1\b.*\b0\b"),
        )),
        (QUEENS, "--split disjoint --num-test 9783", r"num.test\W+9783\b.*disjoint.*\b9782\b"),
        (QUEENS, "--split honest", "split.*honest"),
        (SUDOKU, "--num-aug -1", r"num.aug\W+1\b.*\b0\b"),
        (SUDOKU, "--workers 0", r"workers\W+0\b.*\b1\b"),
        (SUDOKU, "--clues 16 30", r"clues\W+16\W+30\b.*\b17\b.*\b80\b"),
        (SUDOKU, "--clues 30 81", r"clues\W+30\W+81\b.*\b17\b.*\b80\b"),
        (SUDOKU, "--clues 30 29", r"clues\W+30\W+29\b.*the lower one first"),
        (SUDOKU, "--clues 30", "--clues: expected 2 arguments"),
        (SUDOKU, f"--clues 30 31 --csv {__file__}", "--clues is for generated puzzles"),
        (SUDOKU, f"--test-csv {__file__}", "--test-csv needs --csv FILE"),
        (SUDOKU, "--csv nowhere.csv", r"nowhere.csv: Path does not point to a file"),
        (QUEENS, f"--output-dir {__file__}", "--output-dir .* exists already"),
        (SUDOKU, f"--output-dir {__file__}", "--output-dir .* exists already"),
        (MAZE, "", "the following arguments are required: --csv"),
        (MAZE, f"--csv {__file__} --num-aug 8", r"num.aug\W+8\b.*\b7\b"),
        (MAZE, f"--csv {__file__} --test-csv nowhere.csv", "nowhere.csv: Path does not"),
    ],
)  # fmt: skip
def test_bad_options_end_in_one_line_and_leave_no_folder(
    module: Any, flags: str, complaint: str, tmp_path: Path, refused_in_process: Callable[..., str]
) -> None:
    line = refused_in_process(module.main, "--output-dir", tmp_path / "out", *flags.split())
    assert re.search(complaint, line)
    assert os.listdir(tmp_path) == []


def test_flags_become_options(tmp_path: Path) -> None:
    def options_of(module: Any, flags: str) -> Any:
        return parse_flags(module.BuildOptions, "", None, ["--output-dir", "o", *flags.split()])

    out = {"output_dir": Path("o")}
    for module in (QUEENS, SUDOKU):
        assert options_of(module, "") == module.BuildOptions(**out)
    a, b, c = (tmp_path / name for name in ("a.csv", "b.csv", "c.csv"))
    for path in (a, b, c):
        path.touch()
    shared = (
        f"--num-train 2 --num-test 3 --num-aug 4 --csv {a} {b} --test-csv {c} "
        "--puzzle-column p --solution-column s --seed 5 "
    )
    expected = {
        **out, "num_train": 2, "num_test": 3, "num_aug": 4, "csv": (a, b), "test_csv": c,
        "puzzle_column": "p", "solution_column": "s", "seed": 5,
    }  # fmt: skip
    assert options_of(MAZE, shared) == MAZE.BuildOptions(**expected)
    assert options_of(SUDOKU, "--workers 6 --clues 20 30") == SUDOKU.BuildOptions(
        **out, workers=6, clues=(20, 30)
    )
    assert options_of(QUEENS, "--split disjoint").split == "disjoint"


def test_the_commands_that_users_know_build_the_datasets(
    build_boards: Build,
    puzzle: str,
    maze_csv: Path,
    tmp_path: Path,
    run_command: Callable[..., Any],
) -> None:
    """Here with two processes; so the bytes do not depend on the number of workers."""
    flags = {"sudoku": ("--clues", 30, 40, "--workers", 2), "maze": ("--csv", maze_csv)}[puzzle]
    process = run_command(
        "-m", f"dataset.build_{puzzle}_dataset", "--output-dir", tmp_path / "new" / puzzle,
        "--num-train", 20, "--num-test", 10, "--num-aug", 3, *flags,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "train boards: 80" in process.stderr
    assert contents(tmp_path / "new" / puzzle) == contents(build_boards(puzzle)[0])


# ---- what is not loaded ----------------------------------------------------------------------


def test_training_loads_no_solver_no_builder_and_no_csv_reader(
    run_command: Callable[..., Any],
) -> None:
    process = run_command("-c", "import sys, train_arc_tiny_corrupt; print(*sys.modules)")
    assert process.returncode == 0, process.stderr
    loaded = [name for name in process.stdout.split() if name.startswith("dataset.")]
    assert "dataset.boards" in loaded
    unwanted = ("dataset.build_", "dataset.board_csv", "dataset.sudoku", "dataset.maze")
    assert [name for name in loaded if name.startswith(unwanted)] == []
