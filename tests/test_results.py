"""From votes and answers to what the results folder and its page hold."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dataset.canvas import place
from dataset.tasks import Grid, Pair, Task
from evaluation.results import score_document, step_answers_of, subsets_of
from evaluation.voting import Ranking
from models.supervision import SupervisionConfig


def grid(*rows: str) -> Grid:
    return np.array([[int(cell) for cell in row] for row in rows], dtype=np.uint8)


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
    assert document.pop("pass@1_interval") == pytest.approx([0.0945, 0.9055], abs=1e-4)
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
    assert found["one"]["pass@2_interval"] == pytest.approx([0, 0.7935], abs=1e-4)
    of_tasks = {"a": "one", "b": "two", "c": "two", "d": "hidden"}
    assert subsets_of(tmp_path, "test", tasks) == of_tasks
    alone = score_document(votes, [tasks[0], tasks[3]], tmp_path, "test")
    assert alone["test_set"]["name"] == "one"
    assert "by_test_set" not in alone


# ---- how answers developed ----


def unaugmented(inputs: list[Grid], solutions: list[Grid | None]) -> Any:
    """Unaugmented inputs of one task on canvases of 4 x 4."""
    labels = [np.zeros(16, np.uint8) if s is None else place(s[None], 4)[0] for s in solutions]
    canvases = np.stack([place(i[None], 4)[0] for i in inputs]), np.stack(labels)
    rows = np.arange(len(inputs))
    return SimpleNamespace(
        task_ids=np.array(["a"] * len(inputs)),
        examples=SimpleNamespace(rows=rows, test_indices=rows),
        split=SimpleNamespace(read=lambda wanted: tuple(part[wanted] for part in canvases)),
        colours=range(2, 12),
    )


def answered(num_inputs: int, num_steps: int) -> Any:
    steps = np.zeros((num_inputs, num_steps, 16), np.uint8)
    return SimpleNamespace(followed=np.arange(num_inputs), steps=steps)


def shown(canvas: Any) -> list[list[int]]:
    """The top-left 2 x 2, as colours."""
    corner: list[list[int]] = (canvas.reshape(4, 4)[:2, :2].astype(int) - 2).tolist()
    return corner


def test_a_step_has_the_target_that_it_was_trained_towards_and_later_ones_the_solution() -> None:
    """Row by row: two steps for four cells. The third step was not trained."""
    test_set = unaugmented([grid("11", "11")], [grid("23", "45")])
    config = SupervisionConfig(targets="edits_by_row")
    arrays = step_answers_of(test_set, answered(1, 3), config, trained_steps=2)
    (targets,) = arrays["targets"]
    assert targets.dtype == np.uint8
    assert [shown(t) for t in targets] == [[[2, 3], [1, 1]], [[2, 3], [4, 5]], [[2, 3], [4, 5]]]
    assert (targets.reshape(3, 4, 4)[:, 3, 3] == 0).all(), "what does not count is PAD"
    fewer = step_answers_of(test_set, answered(1, 1), config, trained_steps=2)["targets"]
    assert [shown(t) for t in fewer[0]] == [[[2, 3], [1, 1]]]


def test_with_halting_the_target_is_the_solution_at_each_step() -> None:
    test_set = unaugmented([grid("1")], [grid("23")])
    config = SupervisionConfig(targets="final", halting=True)
    (targets,) = step_answers_of(test_set, answered(1, 4), config, trained_steps=4)["targets"]
    assert (targets == place(grid("23")[None], 4)[0]).all()


@pytest.mark.parametrize("pad_cells", ["ignored", "counted_until_replaced"])
def test_a_hidden_solution_has_no_targets(pad_cells: Any) -> None:
    """Its row is PAD; where all are hidden the array is left out."""
    config = SupervisionConfig(pad_cells=pad_cells)
    both = unaugmented([grid("1"), grid("1")], [grid("2"), None])
    targets = step_answers_of(both, answered(2, 2), config, trained_steps=2)["targets"]
    assert targets[0].any(axis=1).all() and not targets[1].any()
    hidden = step_answers_of(unaugmented([grid("1")], [None]), answered(1, 2), config, 2)
    assert sorted(hidden) == ["canvas", "task_id", "test_index"]


def test_a_random_path_is_the_same_at_every_evaluation() -> None:
    test_set = unaugmented([grid("1111", "1111")], [grid("2345", "6789")])
    first, second = (
        step_answers_of(test_set, answered(1, 4), SupervisionConfig(), 4)["targets"]
        for _ in range(2)
    )
    assert np.array_equal(first, second)
    wrong = (first[0] != place(grid("2345", "6789")[None], 4)[0]).sum(axis=1)
    assert sorted(wrong, reverse=True) == wrong.tolist() and wrong[0] > 0 == wrong[-1]
