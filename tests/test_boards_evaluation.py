"""Boards are answered, scored by their rules, and shown; on one rank or on several."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import evaluate
import train_arc_tiny_corrupt
from boards import solved_mazes
from common.distributed import Ranks
from common.errors import UserError
from common.packed import PackedBatch
from dataset import build_maze_dataset, maze
from dataset.board_csv import write_csv
from dataset.boards import rules_of
from dataset.build_nqueens_dataset import RULES, solutions
from dataset.storage import BUILD_FILE
from evaluation.boards import board_metrics, is_solved
from evaluation.metrics import metric_names
from evaluation.pages import board_cases, board_page
from evaluation.predict import Answers, predict
from evaluation.summary import summarise
from evaluation.test_set import ArcTestSet, BoardTestSet, open_test_set
from evaluation.uncertainty import share_of
from models.steps import Improvement
from runs import (
    eval_config,
    read_metrics,
    read_results,
    run_evaluation,
    run_training,
    train_arguments,
)
from training.run_folder import complete_checkpoints
from training.scores import best_checkpoint, read_score

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def mazes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training mazes with 7 variants each, and 10 test mazes. Read-only."""
    folder = tmp_path_factory.mktemp("boards") / "mazes"
    write_csv(path := folder.with_suffix(".csv"), solved_mazes(), maze.ALPHABET)
    values = {"output_dir": folder, "num_train": 16, "num_test": 10, "csv": (path,)}
    build_maze_dataset.build(build_maze_dataset.BuildOptions(**values))
    return folder


def boards_of(inputs: Any, labels: Any, puzzle: str | None = "nqueens") -> Any:
    """A test set of boards given by hand."""
    split = SimpleNamespace(read=lambda rows: (inputs[rows], labels[rows]))
    return SimpleNamespace(
        split=split, examples=SimpleNamespace(rows=np.arange(len(inputs))), puzzle=puzzle
    )


def answered(*boards: Any) -> Answers:
    """One step that gives these answers."""
    steps, rows = np.stack(boards)[:, None], np.arange(len(boards))
    names = metric_names(diagnostics=False)
    unknown = np.full((len(boards), 1, len(names)), np.nan, np.float32)
    confidence = np.zeros(len(boards), np.float32)
    return Answers(rows, steps[:, -1], confidence, names, unknown, rows, steps)


class Scripted:
    """Answers every board with its input first, and then with the first solution of all."""

    trained_steps = 2
    device = torch.device("cpu")
    model = SimpleNamespace(config=SimpleNamespace(prefix_length=1))

    def improve(self, batch: PackedBatch, *asked: Any) -> Any:
        assert not batch.puzzle_ids.any()
        solution = torch.from_numpy(solutions()[0].copy()).long()
        for answer in (batch.inputs.clamp(min=0), solution[batch.cells.clamp(min=0)]):
            logits = 9.0 * torch.nn.functional.one_hot(answer, 3)
            yield Improvement(logits, logits, None)


def test_the_rules_score_each_step_and_the_ceiling_stands_beside(queens: Path) -> None:
    """By hand: the stub's last answer is valid everywhere and right where it holds the givens."""
    test_set = BoardTestSet(queens, None)
    answers = predict(Scripted(), test_set, eval_config(), ALONE)
    inputs, labels = test_set.split.read(np.arange(10))
    first = solutions()[0]
    kept = np.mean([np.all((row == 1) | (row == first)) for row in inputs])
    assert answers.steps[:, 0].tolist() == inputs.tolist()
    metrics = summarise(test_set, answers)
    assert metrics["valid"] == 1
    assert metrics["keeps_given"] == metrics["solved"] == metrics["solved_step2"] == kept
    assert metrics["solved_step1"] == 0, "no input is complete"
    assert metrics["exact_accuracy"] == np.mean([np.all(row == first) for row in labels])
    # A logit of 9 among three has s = 10 of 12.
    wrong = np.mean([row != first for row in labels])
    loss = (1 - wrong) * math.log(1.2) + wrong * math.log(12)
    assert metrics["loss"] == metrics["loss_step2"] == pytest.approx(loss, rel=1e-4)
    assert metrics["exact_ceiling"] == RULES.exact_ceiling(inputs).mean()
    assert summarise(test_set, None) == {}, "other ranks score nothing"


def test_a_valid_board_that_moves_a_given_queen_is_not_solved() -> None:
    right, other, board = solutions()[0], solutions()[-1], np.ones((1, 64), np.uint8)
    given = np.where(np.cumsum(right == 2) == 1, right, 1)[None].astype(np.uint8)
    assert not np.all((given == 1) | (given == other))
    test_set = boards_of(np.concatenate([given, given, board]), np.stack([right] * 3))
    answers = answered(right, other, right)
    metrics = board_metrics(test_set, answers)
    assert metrics["valid"] == 1
    assert metrics["keeps_given"] == metrics["solved"] == pytest.approx(2 / 3)
    assert is_solved(test_set, answers).tolist() == [True, False, True]


def test_a_maze_is_solved_by_any_shortest_path_through_its_free_cells() -> None:
    """By hand: the stored path, the other one, one through a wall, and one that is longer."""
    board = [3, 2, 2, 2, 2, 2, 1, 2, 4]
    answers = [
        [3, 5, 5, 2, 2, 5, 1, 2, 4],
        [3, 2, 2, 5, 5, 5, 1, 2, 4],
        [3, 2, 2, 5, 2, 2, 5, 5, 4],
        [3, 5, 5, 2, 5, 5, 1, 2, 4],
    ]
    inputs, labels = (np.tile(row, (4, 1)).astype(np.uint8) for row in (board, answers[0]))
    metrics = board_metrics(boards_of(inputs, labels, "maze"), answered(*np.uint8(answers)))
    assert metrics["solved"] == metrics["valid"] == 0.5
    assert metrics["keeps_given"] == 0.75, "free cells may become the path, walls may not"
    assert metrics["exact_ceiling"] == 0.2


def test_without_rules_only_the_stored_solution_counts() -> None:
    right, other = solutions()[:2]
    test_set = boards_of(np.ones((2, 64), np.uint8), np.stack([right, right]), puzzle=None)
    assert board_metrics(test_set, answered(right, other)) == {}
    assert is_solved(test_set, answered(right, other)).tolist() == [True, False]


@pytest.mark.parametrize("world_size", [2, 3, 12])
def test_ranks_share_the_boards_and_bring_them_back_in_order(queens: Path, world_size: int) -> None:
    """Also where there are more ranks than boards."""
    test_set, config = BoardTestSet(queens, None), eval_config(batch_tokens=140)
    parts: list[Any] = []

    class Rank(Ranks):
        def gather_objects(self, value: Any) -> list[Any] | None:
            parts.append(value)
            return parts if self.rank == world_size - 1 else None

    for rank in range(world_size):
        ranks = Rank(rank, world_size, ALONE.device)
        found = predict(Scripted(), test_set, config, ranks)
    alone = predict(Scripted(), test_set, config, ALONE)
    assert found.steps.tolist() == alone.steps.tolist()
    assert summarise(test_set, found) == summarise(test_set, alone)


def test_the_page_takes_any_right_completion_for_right() -> None:
    """Board 1 is answered by another solution than the stored one, board 2 by a wrong board."""
    empty = np.ones((2, 64), np.uint8)
    stored, other = solutions()[:2]
    wrong = stored.copy()
    wrong[np.flatnonzero(stored == 2)[0]] = 1
    test_set, answers = boards_of(empty, np.stack([stored] * 2)), answered(other, wrong)
    cases = board_cases(test_set, answers, *test_set.split.read(answers.rows))
    assert np.array_equal(cases[0].solution, other.reshape(8, 8) - 1)
    assert np.array_equal(cases[1].solution, stored.reshape(8, 8) - 1)
    assert [case.answers[0].num_attempts for case in cases] == [1, 1]
    assert [case.outcome for case in cases] == ["first", "unsolved"]
    assert cases[0].test_input.max() == 0, "an empty cell is black"


def test_the_page_of_boards_has_their_score_with_its_interval_and_shows_the_first() -> None:
    count = 120
    right = solutions()[0]
    inputs, labels = np.ones((count, 64), np.uint8), np.stack([right] * count)
    test_set, answers = boards_of(inputs, labels), answered(*labels)
    document = {
        "solved": 0.5, "solved_step1": 0.5, "exact_accuracy_step1": 0.25, "valid": 0.75,
        "test_set": {"name": "queens"}, "num_predictions": count,
    }  # fmt: skip
    page = board_page(test_set, answers, inputs, labels, document)
    assert page.title == "Answers on queens"
    assert page.summary == "of the first, which are shown, 100 of 100 boards right"
    (score,) = page.scores
    assert (score.name, score.value, score.over) == ("solved", "50.0%", "of 120 boards")
    assert score.share == share_of(60, 120)
    (steps,) = page.charts
    assert [drawn.name for drawn in steps.series] == ["solved by the rules", "the whole answer"]
    assert page.facts["valid"] == "0.750" and "solved" not in page.facts
    assert page.bars is None and page.gallery.filters == []
    assert board_page(test_set, answers, inputs, labels, {**document, "solved": 0}).scores
    unknown = {key: document[key] for key in ("test_set", "num_predictions")}
    without_rules = board_page(test_set, answers, inputs, labels, unknown)
    assert without_rules.scores == without_rules.charts == []


def test_the_page_judges_no_answer_whose_solution_is_hidden() -> None:
    """Unless it is right by the rules; cells that are not known are judged nowhere."""
    right = solutions()[0]
    empty = np.ones_like(right)
    half = np.where(np.arange(64) < 32, right, 0).astype(np.uint8)
    labels, answers = np.stack([0 * right, 0 * right, half]), answered(right, empty, right)
    inputs = np.ones((3, 64), np.uint8)
    by_rules, hidden, partly = board_cases(boards_of(inputs, labels), answers, inputs, labels)
    assert np.array_equal(by_rules.solution, right.reshape(8, 8) - 1)
    assert hidden.solution is None and hidden.outcome == "hidden"
    assert np.array_equal(partly.solution, right.reshape(8, 8) - 1)
    without_rules = board_cases(boards_of(inputs, labels, None), answers, inputs, labels)
    assert [case.solution is None for case in without_rules] == [True, True, False]


def test_what_a_test_set_is_is_seen_from_the_dataset(
    queens: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    assert isinstance(open_test_set(queens, None, "whole"), BoardTestSet)
    assert isinstance(open_test_set(tiny_dataset, None, "whole"), ArcTestSet)
    (tmp_path / "test").symlink_to(queens / "test")
    (tmp_path / BUILD_FILE).write_text(json.dumps({"puzzle": "chess"}))
    with pytest.raises(UserError, match="'chess', there are nqueens, sudoku, maze"):
        open_test_set(tmp_path, None, "whole")


def test_windows_are_for_grids_and_not_for_boards(
    queens: Path, tmp_path: Path, refused_in_process: Any
) -> None:
    arguments = train_arguments(queens, tmp_path / "run", "data.canvas=window")
    line = refused_in_process(train_arc_tiny_corrupt.main, *arguments)
    assert "data.canvas=window needs ARC tasks in the compact layout" in line
    with pytest.raises(UserError, match=r"eval\.canvas=window .* use eval\.canvas=whole"):
        open_test_set(queens, None, "window")


@pytest.mark.parametrize(
    ("puzzle", "data", "cells"), [("nqueens", "queens", 64), ("maze", "mazes", 36)]
)
def test_boards_train_are_scored_and_evaluated_by_the_scripts(
    puzzle: str,
    data: str,
    cells: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    refused_in_process: Any,
) -> None:
    """Several checkpoints cannot be pooled on boards."""
    run = run_training(request.getfixturevalue(data), tmp_path / "run", "eval.diagnostics=true")
    *_, scored = (line for line in read_metrics(run) if "eval/solved" in line)
    keys = {"eval/valid", "eval/keeps_given", "eval/exact_ceiling", "eval/margin_step2"}
    assert keys <= set(scored)
    best = best_checkpoint(complete_checkpoints(run / "checkpoints"))
    assert best is not None
    score = read_score(best)
    assert score is not None
    assert score.rating is not None
    assert score.rating[0] == max(line.get("eval/solved", 0) for line in read_metrics(run))
    results = run_evaluation(tmp_path / "results", f"checkpoint={run}")
    metrics = read_results(results)
    assert metrics["solved"] == scored["eval/solved"]
    assert metrics["test_set"]["puzzle"] == puzzle
    boards = np.load(results / "boards.npz")
    assert boards["answers"].shape == (10, 3, cells)
    assert metrics["exact_ceiling"] == rules_of(puzzle).exact_ceiling(boards["inputs"]).mean()
    low, high = metrics["solved_interval"]
    assert 0 <= low <= metrics["solved"] <= high <= 1
    page = (results / "report.html").read_text()
    assert "board 10" in page and "of 10 boards" in page and "Accuracy by step" in page
    arguments = (f"checkpoint=[{run},{run}]", f"output_dir={tmp_path / 'pooled'}")
    assert "several cannot be pooled" in refused_in_process(evaluate.main, *arguments)
