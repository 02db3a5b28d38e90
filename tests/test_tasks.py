"""Kaggle files are read as they stand, checked cell by cell, and written so that they read back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arc_oracles import write_kaggle

from common.errors import UserError
from dataset.tasks import (
    Pair,
    Task,
    load_subset,
    load_tasks,
    parse_grid,
    save_tasks,
    subset_files,
)

CHALLENGE = {
    "train": [{"input": [[1, 2]], "output": [[3], [4]]}],
    "test": [{"input": [[5]]}, {"input": [[6]]}],
}
SOLUTION = [[[7, 7]], [[8, 8, 8]]]


def grids_of(task: Task) -> list[list[list[int]]]:
    return [grid.tolist() for grid in task.grids()]


def test_a_subset_is_read_in_the_files_order_with_its_solutions(tmp_path: Path) -> None:
    prefix = str(tmp_path / "arc")
    write_kaggle(prefix, "s", {"b": CHALLENGE, "a": CHALLENGE}, {"a": SOLUTION, "b": SOLUTION})
    tasks = load_subset(prefix, "s")
    assert [task.task_id for task in tasks] == ["b", "a"]
    assert [len(task.train) for task in tasks] == [1, 1]
    # Pair by pair, input before output: the solutions went to the test inputs in their order.
    assert grids_of(tasks[0]) == [
        [[1, 2]], [[3], [4]], [[5]], [[7, 7]], [[6]], [[8, 8, 8]]
    ]  # fmt: skip
    assert all(grid.dtype == np.uint8 for grid in tasks[0].grids())
    assert tasks[0].max_side == 3


def test_without_a_solutions_file_the_test_outputs_are_hidden(tmp_path: Path) -> None:
    prefix = str(tmp_path / "arc")
    write_kaggle(prefix, "s", {"a": CHALLENGE})
    (task,) = load_subset(prefix, "s")
    assert [pair.output for pair in task.test] == [None, None]
    assert grids_of(task) == [[[1, 2]], [[3], [4]], [[5]], [[6]]]
    assert task.max_side == 2


@pytest.mark.parametrize(("prefix", "count"), [("kaggle_prefix", 2), ("hidden_prefix", 1)])
def test_a_subsets_files_say_what_was_read(
    request: pytest.FixtureRequest, prefix: str, count: int
) -> None:
    """A hidden test set has no solutions file."""
    prefix = request.getfixturevalue(prefix)
    files = subset_files(prefix, "evaluation", load_subset(prefix, "evaluation"))
    assert len(files) == count
    for path, content in files.items():
        assert json.loads(content) == json.loads(path.read_text())


def test_the_tasks_to_score_keep_known_outputs_and_leave_hidden_ones_out(tmp_path: Path) -> None:
    path = tmp_path / "test_puzzles.json"
    known = Pair(parse_grid([[3]], ""), parse_grid([[4]], ""))
    hidden = Pair(parse_grid([[5]], ""), None)
    save_tasks(path, [Task("a", (known,), (known, hidden))])
    assert json.loads(path.read_text()) == {
        "a": {
            "train": [{"input": [[3]], "output": [[4]]}],
            "test": [{"input": [[3]], "output": [[4]]}, {"input": [[5]]}],
        }
    }
    (task,) = load_tasks(path)
    assert (task.task_id, grids_of(task)) == ("a", [[[3]], [[4]], [[3]], [[4]], [[5]]])
    assert task.test[1].output is None


@pytest.mark.parametrize(
    "grid", [[[0]], [[9] * 30] * 30, [[1] * 30], [[1]] * 30], ids=["1x1", "30x30", "1x30", "30x1"]
)
def test_grids_from_1_to_30_a_side_are_accepted(grid: list[list[int]]) -> None:
    assert parse_grid(grid, "here").tolist() == grid


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("abc", "a grid must be a list of rows, got 'abc'"),
        ([1, 2], "a grid must be a list of rows, got [1, 2]"),
        ([], "0 rows, a grid has 1 to 30"),
        ([[1]] * 31, "31 rows, a grid has 1 to 30"),
        ([[], []], "0 columns, a grid has 1 to 30"),
        ([[1] * 31], "31 columns, a grid has 1 to 30"),
        ([[1, 2], [1], [1, 2]], "ragged rows of 1 and 2 cells"),
        ([[0, 10]], "colour 10, colours are 0 to 9"),
        ([[-1]], "colour -1, colours are 0 to 9"),
        ([[True]], "colour True, colours are 0 to 9"),
        ([[1.0]], "colour 1.0, colours are 0 to 9"),
        ([["1"]], "colour '1', colours are 0 to 9"),
        ([["x" * 1000]], "colour 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..., colours are 0 to 9"),
    ],
)
def test_what_is_no_grid_is_refused_with_the_offending_value(value: Any, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        parse_grid(value, "file: task 'a'")
    assert str(error.value) == f"file: task 'a': {complaint}"


def changed(**parts: Any) -> dict[str, Any]:
    return {"a": {**CHALLENGE, **parts}}


def refusal(folder: Path, challenges: Any, solutions: Any = None) -> str:
    """What is said of a pair of files."""
    write_kaggle(folder / "arc", "s", challenges, solutions)
    with pytest.raises(UserError) as error:
        load_subset(str(folder / "arc"), "s")
    return str(error.value)


@pytest.mark.parametrize(
    ("challenges", "complaint"),
    [
        ([], "arc_s_challenges.json must hold a JSON object, not a list"),
        ({"a": [1]}, "task 'a': must be an object with 'train' and 'test'"),
        ({"a": {"train": []}}, "task 'a': must be an object with 'train' and 'test'"),
        (changed(train=[]), "task 'a': has no train pairs"),
        (changed(test=[]), "task 'a': has no test pairs"),
        (changed(train=[{"input": [[1]]}]), "task 'a', train pair 0: has no output"),
        (changed(train=[{"output": [[1]]}]), "task 'a', train pairs: must be a list of objects"),
        (changed(test={"input": [[1]]}), "task 'a', test pairs: must be a list of objects"),
        (changed(train=[{"input": [[1]], "output": []}]), "train pair 0, output: 0 rows"),
        (changed(test=[{"input": [[1, 2], [1]]}]), "task 'a', test pair 0, input: ragged"),
    ],
)
def test_a_bad_challenges_file_is_refused_by_file_task_and_pair(
    tmp_path: Path, challenges: Any, complaint: str
) -> None:
    message = refusal(tmp_path, challenges)
    assert complaint in message
    assert "arc_s_challenges.json" in message


@pytest.mark.parametrize(
    ("solutions", "complaint"),
    [
        ({}, "arc_s_solutions.json does not match"),
        ({"a": SOLUTION, "z": SOLUTION}, "task 'z' is in only one of them (1 such in all)"),
        ({"b": SOLUTION, "c": SOLUTION}, "task 'a' is in only one of them (3 such in all)"),
        ({"a": SOLUTION[:1]}, "task 'a': 2 test inputs but solutions for 1"),
        ({"a": [*SOLUTION, [[1]]]}, "task 'a': 2 test inputs but solutions for 3"),
        ({"a": None}, "task 'a': 2 test inputs but solutions for 0"),
        ({"a": 5}, "task 'a': 2 test inputs but solutions for 5"),
        ({"a": [[[1]], [[12]]]}, "task 'a', solution 1: colour 12"),
        ([SOLUTION], "arc_s_solutions.json must hold a JSON object"),
    ],
)
def test_solutions_that_do_not_fit_the_challenges_are_refused(
    tmp_path: Path, solutions: Any, complaint: str
) -> None:
    assert complaint in refusal(tmp_path, {"a": CHALLENGE}, solutions)


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"arc_s_challenges\.json does not exist.*import_arc"):
        load_subset(str(tmp_path / "arc"), "s")
    for content in (b"{", b"", b"\xff\xfe{}"):
        (tmp_path / "arc_s_challenges.json").write_bytes(content)
        with pytest.raises(UserError, match=r"arc_s_challenges\.json is not valid JSON"):
            load_subset(str(tmp_path / "arc"), "s")
    with pytest.raises(UserError, match=r"test_puzzles\.json does not exist"):
        load_tasks(tmp_path / "test_puzzles.json")


@pytest.mark.parametrize(
    ("subset", "tasks", "test_inputs"),
    [("evaluation", 400, 419), ("concept", 160, 480), ("evaluation2", 120, 172)],
)
def test_the_whole_subsets_pass_every_check(
    full_kaggle_prefix: str, subset: str, tasks: int, test_inputs: int
) -> None:
    loaded = load_subset(full_kaggle_prefix, subset)
    assert len(loaded) == tasks
    assert sum(len(task.test) for task in loaded) == test_inputs
