"""Kaggle files are read as they stand, checked cell by cell, and written so that they read back."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import text

from arc_oracles import write_kaggle
from common.errors import UserError
from dataset.augmentation import IDENTITY_PERMUTATION, Variants, parse_variant_names, variant_names
from dataset.task_files import hidden_places, load_subset, load_tasks, save_tasks, subset_files
from dataset.tasks import LeftOut, Pair, Task, count_left_out, parse_grid, parse_task

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


def refusal(folder: Path, challenges: Any, solutions: Any = None, is_test: bool = False) -> str:
    """What is said of a pair of files."""
    write_kaggle(folder / "arc", "s", challenges, solutions)
    with pytest.raises(UserError) as error:
        load_subset(str(folder / "arc"), "s", is_test)
    return str(error.value)


@pytest.mark.parametrize(
    ("challenges", "complaint"),
    [
        ([], "arc_s_challenges.json must hold a JSON object, not a list"),
        ({"a": 1}, "task 'a': must be an object with 'train' and 'test', or a list of pairs"),
        ({"a": {"train1": []}}, "task 'a': must be an object with 'train' and 'test', or a list"),
        ({"a": [1]}, "task 'a', train pairs: must be a list of objects"),
        ({"a": {"train": []}}, "task 'a': has no pair with an output"),
        ({"a": []}, "task 'a': has no pair with an output"),
        (changed(train=[]), "task 'a': has no pair with an output"),
        (changed(test=None), "task 'a', test pairs: must be a list of objects"),
        ({"train": [], "test": []}, "holds one task, not tasks by id: it is read by 'python -m"),
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
    (tmp_path / "arc_s_challenges.json").write_text("{")
    with pytest.raises(UserError, match=r"arc_s_challenges\.json is not valid JSON .*correct the"):
        load_subset(str(tmp_path / "arc"), "s")
    with pytest.raises(UserError, match=r"test_puzzles\.json does not exist"):
        load_tasks(tmp_path / "test_puzzles.json")


def test_where_a_folder_of_tasks_is_meant_the_command_that_reads_it_is_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "data" / "s").mkdir(parents=True)
    for prefix, folder in (("data", "data/s"), ("data/s", "data/s")):
        command = rf"import_arc --output-prefix PREFIX --sources s={tmp_path / folder}'"
        with pytest.raises(UserError, match=f"does not exist.*{command}"):
            load_subset(str(tmp_path / prefix), "s")


def test_compressed_files_are_read_with_their_solutions(tmp_path: Path) -> None:
    for half, content in (("challenges", {"a": CHALLENGE}), ("solutions", {"a": SOLUTION})):
        path = tmp_path / f"arc_s_{half}.json.gz"
        path.write_bytes(gzip.compress(json.dumps(content).encode()))
    (task,) = load_subset(str(tmp_path / "arc"), "s")
    assert grids_of(task)[-1] == [[8, 8, 8]]


# ---- tasks that are only to train on, and tasks that cannot be used --------------------------

ONE, TWO = {"input": [[1]], "output": [[2]]}, {"input": [[3]], "output": [[4]]}


@pytest.mark.parametrize(
    ("raw", "num_train", "num_test"),
    [
        ([ONE, TWO], 2, 0),
        ({"train": [ONE]}, 1, 0),
        ({"train": [ONE], "test": []}, 1, 0),
        ({"test": [ONE, TWO]}, 0, 2),
        ({"train": [], "test": [ONE, {"input": [[5]]}]}, 0, 2),
    ],
)
def test_outside_a_test_set_a_task_may_lack_train_or_test_pairs(
    tmp_path: Path, raw: Any, num_train: int, num_test: int
) -> None:
    write_kaggle(tmp_path / "arc", "s", {"a": raw})
    (task,) = load_subset(str(tmp_path / "arc"), "s")
    assert (len(task.train), len(task.test)) == (num_train, num_test)
    missing = "train" if num_test else "test"
    assert f"task 'a': has no {missing} pairs" in refusal(tmp_path, {"a": raw}, None, True).replace(
        "is a list of pairs (RE-ARC, ARC-GEN), all to train on, and ", ""
    )
    (tmp_path / "test_puzzles.json").write_text(json.dumps({"a": raw}))
    with pytest.raises(UserError, match=f"has no {missing} pairs, which a task of a test set"):
        load_tasks(tmp_path / "test_puzzles.json")


def test_a_task_without_test_pairs_needs_no_solutions(tmp_path: Path) -> None:
    tasks = {"a": CHALLENGE, "b": [ONE], "c": {"train": [ONE]}}
    write_kaggle(tmp_path / "arc", "s", tasks, {"a": SOLUTION, "c": []})
    assert [len(task.test) for task in load_subset(str(tmp_path / "arc"), "s")] == [2, 0, 0]
    assert "task 'b' is in only one of them" in refusal(
        tmp_path, {"b": CHALLENGE, "a": CHALLENGE}, {"a": SOLUTION}
    )


BAD_IDS = {
    "": "is empty",
    "a|||t1|||0123456789": r"contains '\|\|\|' or ends in '\|'",
    "a|": r"contains '\|\|\|' or ends in '\|'",
    "<blank>": "means no puzzle",
    " a": "begins or ends with a space",
    "a\u2003": "begins or ends with a space",
    "a\0": "cannot be printed",
    "a\x1b[31m": "cannot be printed",
    "a\u202eb": "cannot be printed",
    "a" * 101: "has more than 100 characters",
}


@pytest.mark.parametrize(("task_id", "complaint"), BAD_IDS.items())
def test_an_id_that_would_not_be_found_again_is_refused_wherever_tasks_are_read(
    tmp_path: Path, task_id: str, complaint: str
) -> None:
    assert re.search(f": its id .*{complaint}.*rename", refusal(tmp_path, {task_id: CHALLENGE}))
    (tmp_path / "test_puzzles.json").write_text(json.dumps({task_id: CHALLENGE}))
    with pytest.raises(UserError, match=complaint):
        load_tasks(tmp_path / "test_puzzles.json")


@given(task_id=text(max_size=12) | text("a|<> \0\n", max_size=6))
def test_whatever_id_is_accepted_comes_back_from_names_arrays_and_lines(task_id: str) -> None:
    try:
        parse_task(task_id, [ONE], None, "here")
    except UserError:
        return  # Most of the second kind: not to be assumed away, which hypothesis limits.
    variants = Variants(np.array([0, 3], np.uint8), np.tile(IDENTITY_PERMUTATION, (2, 1)))
    found, _ = parse_variant_names(variant_names(task_id, variants))
    assert found == np.array([task_id]).tolist() * 2 == [task_id] * 2
    assert task_id.encode().decode().splitlines() == [task_id]


def test_tasks_that_cannot_be_used_are_left_out_and_counted_by_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = {
        "good": [ONE], "wide": [{"input": [[1] * 31], "output": [[1]]}],
        "high": [{"input": [[1]] * 31, "output": [[1]]}], "odd": [{"input": [[10]]}], "none": [],
        "solved": CHALLENGE,
    }  # fmt: skip
    write_kaggle(tmp_path / "arc", "s", tasks, {"solved": SOLUTION[:1]})
    assert "task 'wide', train pair 0, input: 31 columns" in refusal(tmp_path, tasks)
    assert refusal(tmp_path, tasks).endswith("; --skip-invalid leaves such tasks out")
    left_out: LeftOut = {}
    kept = load_subset(str(tmp_path / "arc"), "s", left_out=left_out)
    assert [task.task_id for task in kept] == ["good"]
    assert list(left_out) == ["wide", "high", "odd", "none", "solved"]
    assert count_left_out(left_out.values()) == {
        "grid over 30 cells a side": 2, "no colour": 1, "no pair with an output": 1,
        "solutions that do not fit": 1,
    }  # fmt: skip
    assert len(caplog.messages) == 5
    assert caplog.messages[0].endswith("task 'wide', train pair 0, input: 31 columns, a grid has "
                                       "1 to 30")  # fmt: skip
    count_left_out([left_out["odd"]] * 30)
    assert len(caplog.messages) == 5 + 20


# ---- hidden solutions and what stands in their place -----------------------------------------


def test_a_test_set_of_nothing_but_fillers_is_hidden(tmp_path: Path) -> None:
    """As other code bases write it: not the one grid, black and of one cell, is to be found."""
    path, prefix = tmp_path / "test_puzzles.json", str(tmp_path / "arc")
    filled = {"train": [ONE], "test": [{"input": [[5]], "output": [[0]]}, {"input": [[6]]}]}
    real = {"train": [ONE], "test": [{"input": [[5]], "output": [[0]]}, TWO]}
    for tasks, expected in (
        ({"a": filled, "b": filled}, [None] * 4),
        ({"a": filled, "b": real}, [[[0]], None, [[0]], [[4]]]),
    ):
        path.write_text(json.dumps(tasks))
        write_kaggle(prefix, "s", tasks)
        for loaded in (load_tasks(path), load_subset(prefix, "s", is_test=True)):
            outputs = [pair.output for task in loaded for pair in task.test]
            assert [o if o is None else o.tolist() for o in outputs] == expected
    # To train on, such grids are what they are.
    write_kaggle(prefix, "s", {"a": filled})
    assert load_subset(prefix, "s")[0].test[0].output is not None


def test_fillers_that_the_builder_recorded_are_hidden_and_others_are_solutions(
    tmp_path: Path,
) -> None:
    path, shown = tmp_path / "test_puzzles.json", parse_grid([[3]], "")
    black = Pair(shown, parse_grid([[0]], ""))
    tasks = [
        Task("a", (black,), (Pair(shown, None), black)),
        Task("b", (black,), (black, Pair(shown, shown))),
    ]
    save_tasks(path, tasks, fill_in=True)
    written = json.loads(path.read_text())
    assert [pair["output"] for pair in written["a"]["test"]] == [[[0]], [[0]]]
    assert hidden_places(tasks) == {"a": [0]}
    (tmp_path / "build.json").write_text(json.dumps({"fillers": hidden_places(tasks)}))
    loaded = [[pair.output is None for pair in task.test] for task in load_tasks(path)]
    assert loaded == [[True, False], [False, False]]


def test_known_solutions_beside_hidden_ones_are_written_too(tmp_path: Path) -> None:
    task = parse_task("a", {"train": [ONE], "test": [TWO, {"input": [[5]]}]}, None, "here")
    ((path, content),) = subset_files(str(tmp_path / "arc"), "s", [task]).items()
    path.write_text(content)
    (read,) = load_subset(str(tmp_path / "arc"), "s")
    assert grids_of(read) == grids_of(task)


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
