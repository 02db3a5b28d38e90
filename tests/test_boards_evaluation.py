"""Boards are answered, scored by their rules, and shown; on one rank or on several."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import InProcess, eval_config, train_arguments
from torch import Tensor

import evaluate
import train_arc_tiny_corrupt
from common.distributed import Ranks
from common.errors import UserError
from dataset.build_nqueens_dataset import BuildOptions, build
from dataset.nqueens import EightQueens, solutions
from dataset.storage import BUILD_FILE
from evaluation.boards import BoardAnswers, BoardSet, answer_boards, board_cases, board_metrics
from evaluation.figures import StepFigures
from evaluation.test_set import EvaluationSet
from evaluation.validation import answer_test_set, figures_of, open_test_set
from models.steps import Improvement

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def queens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training and 10 test boards. Read-only."""
    folder = tmp_path_factory.mktemp("boards") / "queens"
    build(BuildOptions(folder, num_train=16, num_test=10))
    return folder


def found_answers(inputs: Any, labels: Any, answers: Any, puzzle: str | None) -> BoardAnswers:
    figures = StepFigures(len(inputs), {"exact_accuracy": np.zeros(answers.shape[1])})
    confidence = np.zeros(len(inputs), np.float32)
    return BoardAnswers(inputs, labels, answers, confidence, figures, puzzle)


class Scripted:
    """Answers every board with its input first, and then with the first solution of all."""

    num_steps = 2
    device = torch.device("cpu")

    def run(
        self, inputs: Tensor, puzzle_ids: Tensor, cells: Any = None, with_reference: bool = False
    ) -> Any:
        assert puzzle_ids.tolist() == [0] * len(inputs)
        solution = torch.from_numpy(solutions()[0].copy()).long().expand_as(inputs)
        for answer in (inputs, solution):
            logits = 9.0 * torch.nn.functional.one_hot(answer, 3)
            yield Improvement(logits, logits, None)


def test_the_rules_score_each_step_and_the_ceiling_stands_beside(queens: Path) -> None:
    """By hand: the stub's last answer is valid everywhere and right where it holds the givens."""
    stub: Any = Scripted()
    board_set = BoardSet(queens, None)
    found = answer_boards(stub, board_set, eval_config(batch_size=3), ALONE)
    assert found is not None
    inputs, labels = board_set.split.read(np.arange(10))
    first = solutions()[0]
    kept = [bool(np.all((row == 1) | (row == first))) for row in inputs]
    same = [bool(np.all(row == first)) for row in labels]
    assert found.inputs.tolist() == inputs.tolist()
    assert found.answers[:, 0].tolist() == inputs.tolist()
    metrics = board_metrics(found)
    assert metrics["valid"] == 1
    assert metrics["keeps_given"] == metrics["solved"] == metrics["solved_step2"] == np.mean(kept)
    assert metrics["solved_step1"] == 0, "no input is complete"
    assert metrics["exact_accuracy"] == np.mean(same)
    assert metrics["exact_ceiling"] == EightQueens().exact_ceiling(inputs).mean()


def test_a_valid_board_that_moves_a_given_queen_is_not_solved() -> None:
    right, other, board = solutions()[0], solutions()[-1], np.ones((1, 64), np.uint8)
    given = np.where(np.cumsum(right == 2) == 1, right, 1)[None].astype(np.uint8)
    assert not np.all((given == 1) | (given == other))
    answers = np.stack([right, other, right])[:, None]
    inputs = np.concatenate([given, given, board])
    metrics = board_metrics(found_answers(inputs, answers[:, 0], answers, "nqueens"))
    assert metrics["valid"] == 1
    assert metrics["keeps_given"] == metrics["solved"] == pytest.approx(2 / 3)


def test_without_rules_only_the_stored_solution_counts(queens: Path) -> None:
    answers = solutions()[:2, None]
    metrics = board_metrics(found_answers(answers[:, 0], answers[:, 0], answers, None))
    assert set(metrics) == {"exact_accuracy", "exact_accuracy_step1"}


@pytest.mark.parametrize("world_size", [2, 3, 12])
def test_ranks_share_the_boards_and_bring_them_back_in_order(queens: Path, world_size: int) -> None:
    """Also where there are more ranks than boards."""
    stub: Any = Scripted()
    board_set, config = BoardSet(queens, None), eval_config(batch_size=2)
    parts: list[Any] = []

    class Rank(Ranks):
        def gather_objects(self, value: Any) -> list[Any] | None:
            parts.append(value)
            return parts if self.rank == world_size - 1 else None

    for rank in range(world_size):
        found = answer_boards(stub, board_set, config, Rank(rank, world_size, ALONE.device))
    alone = answer_boards(stub, board_set, config, ALONE)
    assert found is not None
    assert alone is not None
    assert found.inputs.tolist() == alone.inputs.tolist()
    assert found.answers.tolist() == alone.answers.tolist()
    assert board_metrics(found) == pytest.approx(board_metrics(alone))


def test_which_kind_of_test_set_it_is_is_seen_from_the_dataset(
    queens: Path, tiny_dataset: Path
) -> None:
    assert isinstance(open_test_set(queens, eval_config()), BoardSet)
    assert isinstance(open_test_set(tiny_dataset, eval_config()), EvaluationSet)


def test_a_puzzle_whose_rules_are_not_known_is_refused(queens: Path, tmp_path: Path) -> None:
    (tmp_path / "test").symlink_to(queens / "test")
    (tmp_path / BUILD_FILE).write_text(json.dumps({"puzzle": "chess"}))
    with pytest.raises(UserError, match="no such puzzle as 'chess', there are nqueens, sudoku"):
        open_test_set(tmp_path, eval_config())


def test_the_page_takes_any_right_completion_for_right() -> None:
    """Board 1 is answered by another solution than the stored one, board 2 by a wrong board."""
    empty = np.ones((2, 64), np.uint8)
    stored, other = solutions()[:2]
    wrong = stored.copy()
    wrong[np.flatnonzero(stored == 2)[0]] = 1
    answers = np.stack([other, wrong])[:, None]
    cases = board_cases(found_answers(empty, np.stack([stored, stored]), answers, "nqueens"))
    assert np.array_equal(cases[0].solution, other.reshape(8, 8) - 1)
    assert np.array_equal(cases[1].solution, stored.reshape(8, 8) - 1)
    assert [case.num_attempts for case in cases] == [1, 1]
    assert cases[0].test_input.max() == 0, "an empty cell is black"


def test_hidden_solutions_are_scored_by_the_rules_alone() -> None:
    answers = solutions()[:1, None]
    hidden = BoardAnswers(
        np.ones((1, 64), np.uint8),
        np.zeros((1, 64), np.uint8),
        answers,
        np.zeros(1, np.float32),
        StepFigures(0, {"exact_accuracy": np.zeros(1)}),
        "nqueens",
    )
    assert set(board_metrics(hidden)) == {
        "solved",
        "solved_step1",
        "valid",
        "keeps_given",
        "exact_ceiling",
    }


def test_the_page_judges_no_answer_whose_solution_is_hidden() -> None:
    """Unless it is right by the rules; cells that are not known are judged nowhere."""
    right = solutions()[0]
    empty = np.ones_like(right)
    half = np.where(np.arange(64) < 32, right, 0)
    answers = np.stack([right, empty, right])[:, None]
    labels = np.stack([np.zeros_like(right), np.zeros_like(right), half])
    by_rules, hidden, partly = board_cases(
        found_answers(np.ones((3, 64), np.uint8), labels, answers, "nqueens")
    )
    assert np.array_equal(by_rules.solution, right.reshape(8, 8) - 1)
    assert hidden.solution is None
    assert np.array_equal(partly.solution, right.reshape(8, 8) - 1)
    without_rules = found_answers(np.ones((3, 64), np.uint8), labels, answers, None)
    assert [case.solution is None for case in board_cases(without_rules)] == [True, True, False]


def test_windows_are_for_grids_and_not_for_boards(
    queens: Path, tmp_path: Path, refused_in_process: Any
) -> None:
    arguments = train_arguments(queens, tmp_path / "run", *BOARDS, "data.canvas=window")
    line = refused_in_process(train_arc_tiny_corrupt.main, *arguments)
    assert "use data.canvas=whole" in line
    with pytest.raises(UserError, match=r"eval.canvas=window: .* use eval.canvas=whole"):
        open_test_set(queens, eval_config(canvas="window"))


BOARDS = ("data.epochs_per_pass=1", "train.global_batch_size=8")


def test_boards_train_are_scored_and_evaluated_by_the_scripts(
    queens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = InProcess(monkeypatch)
    run = scripts.train(queens, tmp_path / "run", *BOARDS, "eval.diagnostics=true")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "eval/solved" in line]
    assert scored
    assert {"eval/valid", "eval/keeps_given", "eval/exact_ceiling", "eval/margin_step2"} <= set(
        scored[-1]
    )
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert best["score"][0] == max(line["eval/solved"] for line in scored)
    results = scripts.evaluate(tmp_path / "results", f"checkpoint={run}")
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["solved"] == scored[-1]["eval/solved"]
    assert metrics["test_set"]["puzzle"] == "nqueens"
    boards = np.load(results / "boards.npz")
    assert boards["answers"].shape == (10, 3, 64)
    assert "board 10" in (results / "report.html").read_text()


def test_voting_has_no_meaning_on_boards(
    queens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_in_process: Any
) -> None:
    run = InProcess(monkeypatch).train(queens, tmp_path / "run", *BOARDS, "train.eval_every=null")
    line = refused_in_process(
        evaluate.main, f"checkpoint={run}", f"output_dir={tmp_path / 'r'}", "eval.voting=exact"
    )
    assert "nothing votes on boards" in line
    line = refused_in_process(
        evaluate.main, f"checkpoint=[{run},{run}]", f"output_dir={tmp_path / 'r'}"
    )
    assert "several cannot be pooled" in line
    arguments = train_arguments(queens, tmp_path / "other", *BOARDS, "eval.voting=sequential")
    line = refused_in_process(train_arc_tiny_corrupt.main, *arguments)
    assert "use eval.voting=full" in line


def test_measuring_boards_gives_figures_on_the_main_rank_alone(queens: Path) -> None:
    stub: Any = Scripted()

    class Second(Ranks):
        def gather_objects(self, value: Any) -> None:
            return None

    config = eval_config()
    found = answer_test_set(stub, BoardSet(queens, None), config, "whole", ALONE)
    assert figures_of(found)["valid"] == 1
    other = Second(1, 2, ALONE.device)
    found = answer_test_set(stub, BoardSet(queens, None), config, "whole", other)
    assert found is None
    assert figures_of(found) == {}
