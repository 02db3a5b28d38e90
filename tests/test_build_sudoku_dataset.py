"""Datasets of Sudokus, generated and imported."""

import csv
import dataclasses
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from boards import boards_of, contents, existing_folder_is_kept, opened, options_are_refused
from sudokus import text

from common.errors import UserError
from common.processes import worker_processes
from dataset import build_sudoku_dataset, import_sudoku
from dataset.batches import DataConfig, TrainingBatches
from dataset.boards import keeps_given
from dataset.build_sudoku_dataset import BuildOptions, Summary, build, main, parse_arguments
from dataset.loading import BatchLoader
from dataset.rules import RULES, puzzle_of
from dataset.sudoku import Sudoku, Symmetries, draw_symmetries, generate, solve

# ---- the builder: generated puzzles ----------------------------------------------------------

Build = Callable[..., tuple[Path, Summary]]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder works in this process, which is quicker."""
    monkeypatch.setattr(
        build_sudoku_dataset, "worker_processes", lambda workers: ThreadPoolExecutor(1)
    )


@pytest.fixture
def build_sudokus(tmp_path: Path, in_this_process: None) -> Build:
    """Build 20 + 10 puzzles with 3 variants each, or as the keywords say; folder and summary."""

    def run(**changes: Any) -> tuple[Path, Summary]:
        options = BuildOptions(
            tmp_path / "out", num_train=20, num_test=10, num_aug=3, clues=(30, 40)
        )
        options = dataclasses.replace(options, **changes)
        return options.output_dir, build(options)

    return run


def test_training_puzzles_are_grouped_with_their_variants_and_test_puzzles_stand_alone(
    build_sudokus: Build,
) -> None:
    folder, _ = build_sudokus()
    assert puzzle_of(folder) == "sudoku"
    for half, groups, size in (("train", 20, 4), ("test", 10, 1)):
        split = opened(folder, half)
        assert split.inputs.shape == split.labels.shape == (groups * size, 81)
        assert split.group_indices.tolist() == [size * group for group in range(groups + 1)]
        assert split.metadata.vocab_size == 11
        assert RULES["sudoku"].is_valid(split.labels).all()
        assert keeps_given(split.inputs, split.labels).all()
        assert all(solve(puzzle).num_solutions == 1 for puzzle in split.inputs)
        # Variants have the clues of their puzzle, which is the first of them.
        clues = (split.inputs > 1).sum(axis=1).reshape(groups, size)
        assert (clues == clues[:, :1]).all()
        assert len(set(boards_of(folder, half))) == groups * size
    assert not set(boards_of(folder, "train")) & set(boards_of(folder, "test"))


def test_puzzle_and_solution_are_changed_alike(build_sudokus: Build) -> None:
    folder, _ = build_sudokus(num_train=2)
    split = opened(folder, "train")
    for puzzle, label in zip(split.inputs, split.labels, strict=True):
        assert np.array_equal(solve(puzzle).solution, label)


def test_each_puzzle_has_variants_of_its_own(
    build_sudokus: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def remember(count: int, rng: np.random.Generator) -> Symmetries:
        drawn.append(draw_symmetries(count, rng))
        return drawn[-1]

    monkeypatch.setattr(build_sudoku_dataset, "draw_symmetries", remember)
    build_sudokus()
    assert len({cells.tobytes() for symmetries in drawn for cells in symmetries.cells}) == 20 * 3


def test_the_bytes_do_not_depend_on_the_number_of_workers(
    build_sudokus: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes against this one; the command below has two."""
    expected = contents(build_sudokus()[0])
    with monkeypatch.context() as patch:
        patch.setattr(build_sudoku_dataset, "worker_processes", worker_processes)
        folder, _ = build_sudokus(output_dir=tmp_path / "three", workers=3)
    assert contents(folder) == expected


def test_neither_half_depends_on_the_size_of_the_other(
    build_sudokus: Build, tmp_path: Path
) -> None:
    first, second = (
        build_sudokus(output_dir=tmp_path / str(train), num_train=train, num_test=test)[0]
        for train, test in ((20, 5), (10, 10))
    )
    assert boards_of(second, "test")[:5] == boards_of(first, "test")
    assert boards_of(first, "train")[:40] == boards_of(second, "train")


def test_another_seed_gives_other_puzzles(build_sudokus: Build, tmp_path: Path) -> None:
    first, second = (
        build_sudokus(output_dir=tmp_path / str(seed), seed=seed)[0] for seed in (1, 2)
    )
    for half in ("train", "test"):
        assert not set(boards_of(first, half)) & set(boards_of(second, half))


def test_the_summary_describes_the_puzzles_and_is_kept(build_sudokus: Build) -> None:
    folder, summary = build_sudokus(clues=(22, 30))
    for half, described in (("train", summary.train), ("test", summary.test)):
        split = opened(folder, half)
        puzzles = split.inputs[split.group_indices[:-1]]
        assert (described.puzzles, described.boards) == (len(puzzles), len(split.inputs))
        clues = (puzzles > 1).sum(axis=1)
        assert described.clues.mean == pytest.approx(clues.mean())
        assert described.clues.quantiles["least"] == clues.min()
        assert described.clues.quantiles["most"] == clues.max()
        guesses = np.array([solve(puzzle).guesses for puzzle in puzzles])
        assert described.difficulty_measured_of == len(puzzles)
        assert described.difficulty.mean == pytest.approx(guesses.mean())
        assert described.difficulty.quantiles["median"] in guesses
        assert described.solved_by_singles == pytest.approx((guesses == 0).mean())
    kept = json.loads((folder / "build.json").read_text())
    assert kept["options"] == {
        "num_train": 20, "num_test": 10, "num_aug": 3, "clues": [22, 30], "seed": 42
    }  # fmt: skip
    assert kept["summary"] == dataclasses.asdict(summary)
    assert "solved by singles alone" in "\n".join(summary.lines())


def test_difficulty_is_measured_of_the_first_puzzles_of_a_large_half(
    build_sudokus: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_sudoku_dataset, "MEASURED", 12)
    folder, summary = build_sudokus()
    puzzles = opened(folder, "train").inputs[::4][:12]
    assert summary.train.difficulty_measured_of == 12
    assert summary.test.difficulty_measured_of == 10
    assert summary.train.difficulty.mean == np.mean([solve(puzzle).guesses for puzzle in puzzles])


def test_a_test_puzzle_met_among_the_variants_is_refused(
    build_sudokus: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One in some 10^12: here every puzzle is the same, and the variants are no change."""

    def unchanged(count: int, rng: np.random.Generator) -> Symmetries:
        return Symmetries(
            np.tile(np.arange(81), (count, 1)), np.tile(np.arange(11, dtype=np.uint8), (count, 1))
        )

    one = generate((40, 40), np.random.default_rng(0))
    monkeypatch.setattr(build_sudoku_dataset, "generate", lambda clues, rng: one)
    monkeypatch.setattr(build_sudoku_dataset, "draw_symmetries", unchanged)
    with pytest.raises(UserError, match=r"a training puzzle or one of its variants: .* --seed"):
        build_sudokus()
    assert os.listdir(tmp_path) == []


def test_batches_of_a_dataset_show_one_variant_of_each_puzzle(build_sudokus: Build) -> None:
    folder, _ = build_sudokus()
    split = opened(folder, "train")
    config = DataConfig(
        path=folder, trajectories=None, epochs_per_pass=1, canvas="whole", window_margin=0,
        whole_canvas_share=0,
    )  # fmt: skip
    loader = BatchLoader(TrainingBatches(split, 20, 1, seed=0), config, torch.device("cpu"))
    group_of = {tokens.tobytes(): row // 4 for row, tokens in enumerate(split.inputs)}
    seen = set()
    for _, (segment,) in zip(range(4), loader, strict=False):
        shown = [tokens.tobytes() for tokens in segment.inputs.numpy().astype(np.uint8)]
        assert sorted(group_of[tokens] for tokens in shown) == list(range(20))
        assert Sudoku().is_valid(segment.labels.numpy().astype(np.uint8)).all()
        seen.update(shown)
    assert len(seen) > 40  # Of 80 boards, 20 at a time.


# ---- the builder: CSV files ------------------------------------------------------------------


def write_csv(path: Path, puzzles: Any, solutions: Any, blank: str = ".") -> Path:
    """A file as Sudoku-Extreme has them."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "question", "answer", "rating"])
        for puzzle, solution in zip(puzzles, solutions, strict=True):
            writer.writerow(["some, where", text(puzzle).replace(".", blank), text(solution), 3])
    return path


@pytest.mark.parametrize("blank", [".", "0"])
def test_one_file_is_split_at_random_into_two_halves(
    build_sudokus: Build,
    tmp_path: Path,
    generated_sudokus: tuple[np.ndarray, np.ndarray],
    blank: str,
) -> None:
    puzzles, solutions = generated_sudokus
    path = write_csv(tmp_path / "all.csv", puzzles, solutions, blank)
    folder, summary = build_sudokus(csv=(path,), num_train=40, num_test=20)
    solution_of = {
        puzzle.tobytes(): solution.tobytes()
        for puzzle, solution in zip(puzzles, solutions, strict=True)
    }
    split = opened(folder, "train")
    train = {
        inputs.tobytes(): labels.tobytes()
        for inputs, labels in zip(split.inputs[::4], split.labels[::4], strict=True)
    }
    split = opened(folder, "test")
    test = {
        inputs.tobytes(): labels.tobytes()
        for inputs, labels in zip(split.inputs, split.labels, strict=True)
    }
    # Every puzzle with its solution is in one half.
    assert (len(train), len(test)) == (40, 20)
    assert {**train, **test} == solution_of
    order = [puzzle.tobytes() for puzzle in puzzles]
    assert [order.index(puzzle) for puzzle in test] != sorted(order.index(p) for p in test)
    assert (summary.train.boards, summary.test.boards) == (160, 20)


def test_rows_are_read_in_portions_to_the_same_bytes(
    build_sudokus: Build,
    tmp_path: Path,
    generated_sudokus: tuple[np.ndarray, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_csv(tmp_path / "all.csv", *generated_sudokus)
    whole, _ = build_sudokus(csv=(path,))
    monkeypatch.setattr(import_sudoku, "ROWS_AT_ONCE", 7)
    portions, _ = build_sudokus(csv=(path,), output_dir=tmp_path / "portions")
    assert contents(whole) == contents(portions)


def test_the_bytes_depend_on_what_a_file_contains_and_not_on_where_it_is(
    build_sudokus: Build, tmp_path: Path, generated_sudokus: tuple[np.ndarray, np.ndarray]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    paths = [
        write_csv(tmp_path / "all.csv", *generated_sudokus),
        write_csv(tmp_path / "elsewhere" / "same.csv", *generated_sudokus),
        write_csv(tmp_path / "fewer.csv", generated_sudokus[0][:50], generated_sudokus[1][:50]),
    ]
    first, same, fewer = (
        contents(build_sudokus(csv=(path,), output_dir=tmp_path / f"out{number}")[0])
        for number, path in enumerate(paths)
    )
    assert first == same
    assert first["test/all__inputs.npy"] != fewer["test/all__inputs.npy"]
    described = json.loads(first["build.json"])["options"]
    assert described["csv_sha256"] != json.loads(fewer["build.json"])["options"]["csv_sha256"]
    assert not {"csv", "test_csv", "clues", "output_dir", "workers"} & set(described)


def test_the_test_half_comes_from_the_file_named_and_training_leaves_it_out(
    build_sudokus: Build, tmp_path: Path, generated_sudokus: tuple[np.ndarray, np.ndarray]
) -> None:
    puzzles, solutions = generated_sudokus
    train_csv = write_csv(tmp_path / "train.csv", puzzles[:40], solutions[:40])
    more_csv = write_csv(tmp_path / "more.csv", puzzles[35:50], solutions[35:50])
    test_csv = write_csv(tmp_path / "test.csv", puzzles[45:], solutions[45:])
    folder, _ = build_sudokus(
        csv=(train_csv, more_csv), test_csv=test_csv, num_train=1000, num_test=1000
    )
    # 15 to test, and of 50 different ones to train on (5 stand in both files) 5 are among these.
    assert set(boards_of(folder, "test")) == {puzzle.tobytes() for puzzle in puzzles[45:]}
    assert len(boards_of(folder, "test")) == 15
    trained = boards_of(folder, "train")[::4]
    assert len(trained) == 45
    assert set(trained) == {puzzle.tobytes() for puzzle in puzzles[:45]}
    sampled, _ = build_sudokus(
        csv=(train_csv,), test_csv=test_csv, num_train=7, num_test=4, output_dir=tmp_path / "few"
    )
    assert len(boards_of(sampled, "train")) == 28
    assert len(set(boards_of(sampled, "test"))) == 4


def test_a_file_that_cannot_give_both_halves_is_refused(
    build_sudokus: Build, tmp_path: Path, generated_sudokus: tuple[np.ndarray, np.ndarray]
) -> None:
    # Ten rows, but five puzzles.
    twice = [np.tile(boards[:5], (2, 1)) for boards in generated_sudokus]
    path = write_csv(tmp_path / "all.csv", *twice)
    with pytest.raises(UserError, match="5 different puzzles cannot give --num-train 4 and"):
        build_sudokus(csv=(path,), num_train=4, num_test=2)
    build_sudokus(csv=(path,), num_train=3, num_test=2)
    with pytest.raises(UserError, match="leave 0 puzzles to train on and 5 to test"):
        build_sudokus(csv=(path,), test_csv=path, output_dir=tmp_path / "none")


def test_columns_go_by_the_names_given(
    build_sudokus: Build, tmp_path: Path, generated_sudokus: tuple[np.ndarray, np.ndarray]
) -> None:
    path = write_csv(tmp_path / "all.csv", *generated_sudokus)
    renamed = tmp_path / "renamed.csv"
    # With a byte order mark, other line ends and a blank line at the end, as some programs write.
    content = path.read_text().replace("question,answer", "quizzes,solutions").replace("\n", "\r\n")
    renamed.write_bytes(b"\xef\xbb\xbf" + content.encode() + b"\r\n")
    names = {"puzzle_column": "quizzes", "solution_column": "solutions"}
    folder, _ = build_sudokus(csv=(renamed,), **names)
    expected, _ = build_sudokus(csv=(path,), output_dir=tmp_path / "expected")
    for half in ("train", "test"):
        assert boards_of(folder, half) == boards_of(expected, half)
    with pytest.raises(UserError, match=r"no column 'question' .*'source,quizzes,.*--puzzle-col"):
        build_sudokus(csv=(renamed,), output_dir=tmp_path / "none")


@pytest.fixture
def good_rows(generated_sudokus: tuple[np.ndarray, np.ndarray]) -> list[list[str]]:
    return [[text(a), text(b)] for a, b in zip(*generated_sudokus, strict=True)][:12]


def blank_solution(row: list[str]) -> list[str]:
    return [row[0], "." + row[1][1:]]


def swap_solution(row: list[str]) -> list[str]:
    return [row[0], row[1][1] + row[1][0] + row[1][2:]]


def other_clue(row: list[str]) -> list[str]:
    cell = next(cell for cell in range(81) if row[0][cell] != ".")
    digit = "9" if row[0][cell] != "9" else "8"
    return [row[0][:cell] + digit + row[0][cell + 1 :], row[1]]


BAD_ROWS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "short puzzle": (lambda row: [row[0][1:], row[1]], "the puzzle has 80 cells, expected 81"),
    "long solution": (lambda row: [row[0], row[1] + "1"], "the solution has 82 cells"),
    "letter": (lambda row: ["x" + row[0][1:], row[1]], "the puzzle has characters other than"),
    "no ASCII": (lambda row: ["٣" + row[0][1:], row[1]], "the puzzle has characters other than"),
    "blank": (blank_solution, "the solution is no full board that obeys the rules"),
    "swapped": (swap_solution, "the solution is no full board that obeys the rules"),
    "other clue": (other_clue, "the clues contradict the solution"),
    "no solution": (lambda row: [row[0]], "1 columns, but the header has 2"),
    "empty": (lambda row: ["." * 81, row[1]], "the puzzle has more than one solution"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
@pytest.mark.parametrize("portion", [3, 100])
def test_a_row_that_is_no_puzzle_is_named_by_file_and_line(
    build_sudokus: Build,
    tmp_path: Path,
    good_rows: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    portion: int,
) -> None:
    monkeypatch.setattr(import_sudoku, "ROWS_AT_ONCE", portion)
    change, complaint = BAD_ROWS[case]
    good_rows[4] = change(good_rows[4])
    for name, rows in (("good.csv", good_rows[8:]), ("bad.csv", good_rows[:8])):
        lines = ["question,answer", *(",".join(row) for row in rows)]
        (tmp_path / name).write_text("\n".join(lines))
    # The header is line 1, so the fifth row is line 6.
    with pytest.raises(UserError, match=r"bad\.csv, line 6: .*remove the row") as error:
        build_sudokus(
            csv=(tmp_path / "good.csv",), test_csv=tmp_path / "bad.csv", num_train=3, num_test=8
        )
    assert complaint in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["bad.csv", "good.csv"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no column 'question' in its header"),
        (b"question\n", "no column 'answer' in its header, which has 'question'; name it with "),
        (b"question,answer\n", "0 different puzzles cannot give"),
        (b"question,answer\n\xff\xfe,1\n", "line 2: the puzzle has 2 cells"),
        (b'question,answer\n"' + b"1" * 200_000 + b'",2\n', "is it a CSV file?"),
        (None, "all.csv does not exist or is no file: check --csv"),
    ],
    ids=["nothing", "one column", "no rows", "no text", "one field", "no file"],
)
def test_a_file_without_puzzles_is_refused(
    build_sudokus: Build, tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / "all.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"all\.csv|--csv") as error:
        build_sudokus(csv=(path,))
    assert complaint in str(error.value)


# ---- the command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--num-train", 0), "--num-train 0: must be 1 or more"),
        (("--num-test", 0), "--num-test 0: must be 1 or more"),
        (("--num-aug", -1), "--num-aug -1: must be 0 or more"),
        (("--seed", -1), "--seed -1: must be 0 or more"),
        (("--workers", 0), "--workers 0: must be 1 or more"),
        (("--clues", 16, 30), "--clues 16 30: must be two numbers from 17"),
        (("--clues", 30, 81), "to 80, the lower one first"),
        (("--clues", 30, 29), "to 80, the lower one first"),
        (("--clues", 30), "--clues: expected 2 arguments"),
        (("--clues", 30, 31, "--csv", "a.csv"), "--clues is for generated puzzles"),
        (("--test-csv", "a.csv"), "--test-csv needs --csv FILE"),
        (("--csv", "nowhere.csv"), "nowhere.csv does not exist or is no file"),
    ],
)
def test_bad_options_end_in_one_line_and_leave_no_folder(
    tmp_path: Path,
    refused_in_process: Callable[..., str],
    arguments: tuple[object, ...],
    complaint: str,
) -> None:
    options_are_refused(refused_in_process, main, tmp_path, arguments, complaint)


def test_an_existing_folder_is_kept_as_it_is(build_sudokus: Build, tmp_path: Path) -> None:
    existing_folder_is_kept(build_sudokus, tmp_path / "out")


def test_flags_become_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["build", "--output-dir", "o"])
    assert dataclasses.replace(parse_arguments(), workers=1) == BuildOptions(Path("o"))
    flags = (
        "--output-dir o --num-train 2 --num-test 3 --num-aug 4 --csv a.csv b.csv --test-csv c.csv "
        "--puzzle-column p --solution-column s --seed 5 --workers 6"
    )
    monkeypatch.setattr("sys.argv", ["build", *flags.split()])
    assert parse_arguments() == BuildOptions(
        Path("o"), 2, 3, 4, csv=(Path("a.csv"), Path("b.csv")), test_csv=Path("c.csv"),
        puzzle_column="p", solution_column="s", seed=5, workers=6,
    )  # fmt: skip


def test_the_command_that_users_know_builds_the_dataset(
    tmp_path: Path, build_sudokus: Build, run_command: Callable[..., Any]
) -> None:
    process = run_command(
        "-m", "dataset.build_sudoku_dataset", "--output-dir", tmp_path / "new" / "sudoku",
        "--num-train", 20, "--num-test", 10, "--num-aug", 3, "--clues", 30, 40, "--workers", 2,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "train: 20 puzzles, 80 boards" in process.stderr
    assert contents(tmp_path / "new" / "sudoku") == contents(build_sudokus()[0])
