"""From votes and answers to what the results folder and its page hold."""

import json
from pathlib import Path

import numpy as np
import pytest

from dataset.canvas import place
from dataset.tasks import Grid, Pair, Task
from evaluation.results import arc_cases, score_document
from evaluation.voting import Ranking


def grid(*rows: str) -> Grid:
    return np.array([[int(cell) for cell in row] for row in rows], dtype=np.uint8)


def test_the_page_has_a_case_for_every_test_input_with_what_led_to_its_answer() -> None:
    question, answers = grid("1"), [grid("12"), grid("3"), grid("4")]
    demonstration = Pair(question, question)
    tasks = [
        Task("a", (demonstration,), (Pair(question, answers[0]), Pair(question, None))),
        Task("not predicted", (demonstration,), (Pair(question, None),)),
    ]
    votes = {
        ("a", 0): Ranking(answers, np.array([3, 2, 1]), np.array([0.5, 0.25, 0.75])),
        ("a", 1): Ranking([], np.array([]), np.array([])),
    }
    shown = place(answers[0][None], 3)[0]
    steps = {
        "task_id": np.array(["a"]),
        "test_index": np.array([0]),
        "canvas": np.stack([np.zeros_like(shown), shown])[None],
    }
    first, *others = cases = arc_cases(tasks, votes, steps)
    named = [("a", 0), ("a", 1), ("not predicted", 0)]
    assert [(case.task_id, case.test_index) for case in cases] == named
    attempts = [(a.grid.tolist(), a.votes, a.confidence) for a in first.attempts]
    assert attempts == [([[1, 2]], 3, 0.5), ([[3]], 2, 0.25)], "two at most"
    assert first.step_answers[0] is None, "no grid yet"
    assert np.array_equal(first.step_answers[1], answers[0])
    assert first.demonstrations == (demonstration,)
    assert all(case.attempts == case.step_answers == () for case in others)
    without_a_model = arc_cases(tasks, votes, None)
    assert all(case.step_answers == () for case in without_a_model)


def ranking(*grids: Grid) -> Ranking:
    return Ranking(list(grids), np.ones(len(grids), dtype=np.int64), np.ones(len(grids)))


@pytest.mark.parametrize(
    ("split", "is_ours", "name"),
    [
        ("test", True, "held"),
        ("validation", True, "validation tasks of one + two"),
        ("test", False, "folder"),
        ("validation", False, "validation tasks of folder"),
    ],
)
def test_a_score_says_what_it_is_over(tmp_path: Path, split: str, is_ours: bool, name: str) -> None:
    """From the builder's options where they are known. What is hidden is counted apart."""
    path = tmp_path / "folder"
    path.mkdir()
    options = {"subsets": ["one", "held", "two"], "test_set_names": ["held"]}
    if is_ours:
        (path / "build.json").write_text(json.dumps({"options": options}))
    known, hidden = Pair(grid("1"), grid("2")), Pair(grid("1"), None)
    tasks = [Task("a", (), (known, hidden)), Task("b", (), (hidden,)), Task("c", (), (known,))]
    document = score_document({("a", 0): ranking(grid("2"))}, tasks, path, split)
    assert document.pop("test_set") == {
        "name": name,
        "split": split,
        "dataset": str(path),
        "tasks": 2,
        "test_inputs": 2,
        "hidden_test_inputs": 2,
    }
    assert document.pop("pass@1") == document.pop("pass@1_test_inputs") == 0.5
    assert "by_test_set" not in document
    unscored = score_document({}, tasks[1:2], path, split)
    assert list(unscored) == ["test_set"]
    assert (unscored["test_set"]["tasks"], unscored["test_set"]["name"]) == (0, name)


def test_each_of_two_test_sets_has_its_scores_and_counts_and_a_hidden_one_has_none(
    tmp_path: Path,
) -> None:
    known, hidden = Pair(grid("1"), grid("2")), Pair(grid("1"), None)
    test_sets = {"one": ["a"], "two": ["b", "c"], "hidden": ["d"]}
    (tmp_path / "build.json").write_text(json.dumps({"test_sets": test_sets}))
    tasks = [Task(task_id, (), (known,)) for task_id in "abc"] + [Task("d", (), (hidden,))]
    votes = {(task_id, 0): ranking(grid("2")) for task_id in "bd"}
    document = score_document(votes, tasks, tmp_path, "test")
    assert document["pass@2"] == pytest.approx(1 / 3)
    assert (document["test_set"]["name"], document["test_set"]["tasks"]) == ("one + two", 3)
    found = document["by_test_set"]
    assert {name: (s["pass@2"], s["tasks"], s["test_inputs"]) for name, s in found.items()} == {
        "one": (0.0, 1, 1), "two": (0.5, 2, 2)
    }  # fmt: skip
    alone = score_document(votes, [tasks[0], tasks[3]], tmp_path, "test")
    assert alone["test_set"]["name"] == "one"
    assert "by_test_set" not in alone
