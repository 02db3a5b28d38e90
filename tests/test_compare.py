"""Two evaluations compared: by hand, from end to end, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from browser import CHROMIUM, browser
from dataset.canvas import place
from dataset.task_files import save_tasks
from dataset.tasks import Grid, Pair, Task
from evaluation import compare
from runs import call

SIDE = 4
Refused = Callable[..., str]


def grid(*rows: str) -> Grid:
    return np.array([[int(cell) for cell in row] for row in rows], dtype=np.uint8)


RIGHT, WRONG = "12", "21"


def some_tasks(names: str = "abcde") -> list[Task]:
    """The last has two test inputs, the others one, all with one solution."""
    pair = Pair(grid("1"), grid(RIGHT))
    last = names[-1]
    return [Task(name, (pair,), (pair,) * (2 if name == last else 1)) for name in names]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    save_tasks(folder / "test_puzzles.json", some_tasks())
    return folder


def results(
    folder: Path, dataset: Path, answers: dict[tuple[str, int], str], split: str = "test"
) -> Path:
    """A results folder in which every test input has one prediction."""
    folder.mkdir(parents=True)
    names, count = list(answers), len(answers)
    np.savez(
        folder / "predictions.npz",
        task_id=np.array([task for task, _ in names]),
        test_index=np.array([index for _, index in names], np.int32),
        identifier=np.arange(count, dtype=np.int32),
        dihedral=np.zeros(count, np.int8),
        colour_permutation=np.tile(np.arange(10, dtype=np.uint8), (count, 1)),
        canvas=np.stack([place(grid(answer)[None], SIDE)[0] for answer in answers.values()]),
        confidence=np.full(count, 0.5, np.float32),
    )
    recorded = {"dataset": str(dataset), "split": split}
    (folder / "metrics.json").write_text(json.dumps({"test_set": recorded}))
    return folder


def answered(right: str, partly: bool = False) -> dict[tuple[str, int], str]:
    """The solution for the named tasks; of the last one for its first test input if `partly`."""
    inputs = [(task.task_id, index) for task in some_tasks() for index in range(len(task.test))]
    return {
        key: RIGHT if key[0] in right or (partly and key == ("e", 0)) else WRONG for key in inputs
    }


@pytest.fixture
def pair(tmp_path: Path, dataset: Path) -> tuple[Path, Path]:
    """A solves a and half of e; B solves b, c, d and all of e."""
    return (
        results(tmp_path / "one" / "evaluation", dataset, answered("a", partly=True)),
        results(tmp_path / "two" / "evaluation", dataset, answered("bcde")),
    )


def test_gains_and_losses_by_hand(
    pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Gained b, c, d and e, of which A had a half; lost a. Of five that differ four one way."""
    a, b = pair
    with caplog.at_level("INFO"):
        call(compare.main, str(a), str(b))
    folder = b.parent / "evaluation_against_one_evaluation"
    document = json.loads((folder / "compare.json").read_text())
    found = document["pass@2"]
    assert (found["gained"], found["lost"], found["same"]) == (["b", "c", "d", "e"], ["a"], 0)
    assert found["p"] == 2 * (1 + 5) / 32
    assert found["difference"] == pytest.approx((4 - 1.5) / 5)
    assert document["A"]["pass@2"] == pytest.approx(1.5 / 5)
    assert document["B"]["pass@2_interval"] == pytest.approx([0.3755, 0.9638], abs=1e-4)
    assert document["tasks"]["e"] == {"A": 0.5, "B": 1.0}
    assert document["A"]["path"] == str(a)
    said = "B against A +50.0 points; 4 tasks gained, 1 lost, 0 the same"
    assert f"pass@2: {said}; sign test, two-sided: p = 0.375" in caplog.text
    assert f"Wrote {folder}" in caplog.text
    assert said in (folder / "compare.html").read_text()


def test_each_test_input_ends_as_both_answered_it(pair: tuple[Path, Path]) -> None:
    a, b = (
        compare.load_evaluation(name, path, None) for name, path in zip("AB", pair, strict=True)
    )
    cases = compare.cases_of(a, b, {})
    ends = {(case.task_id, case.test_index): case.outcome for case in cases}
    assert ends == {
        ("a", 0): "lost", ("b", 0): "gained", ("c", 0): "gained", ("d", 0): "gained",
        ("e", 0): "both", ("e", 1): "gained",
    }  # fmt: skip
    assert [answers.name for answers in cases[0].answers] == ["A", "B"]
    shown = [answers.attempts[0].grid.tolist() for answers in cases[0].answers]
    assert shown == [[[1, 2]], [[2, 1]]]
    assert compare.ended(["unsolved", "unsolved"]) == "neither"
    assert compare.ended(["hidden", "hidden"]) == "hidden"


def test_an_evaluation_against_itself_differs_nowhere(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    call(compare.main, str(pair[0]), str(pair[0]), "--output-dir", str(tmp_path / "same"))
    found = json.loads((tmp_path / "same" / "compare.json").read_text())["pass@2"]
    assert (found["gained"], found["lost"], found["p"]) == ([], [], 1.0)


def test_a_small_p_is_not_written_out() -> None:
    found = {"gained": ["a"] * 30, "lost": [], "same": 1, "difference": -0.1234, "p": 1e-9}
    assert compare.balance("pass@2", found) == (
        "pass@2: B against A -12.3 points; 30 tasks gained, 0 lost, 1 the same; sign test, "
        "two-sided: p < 0.001"
    )


def test_the_folder_is_named_after_both() -> None:
    folder = compare.default_output_dir(Path("/runs/x/evaluation_1"), Path("/runs/y/evaluation_2"))
    assert folder == Path("/runs/y/evaluation_2_against_evaluation_1")


def test_a_dataset_that_has_moved_is_named(
    pair: tuple[Path, Path], dataset: Path, tmp_path: Path, refused_in_process: Refused
) -> None:
    moved = dataset.rename(tmp_path / "moved")
    line = refused_in_process(compare.main, *pair)
    assert f"A={pair[0]}" in line and "say with --dataset DIR" in line
    output_dir = tmp_path / "out"
    call(compare.main, *map(str, pair), "--dataset", str(moved), "--output-dir", str(output_dir))
    assert (output_dir / "compare.html").is_file()


def test_what_cannot_be_compared_is_refused_with_a_remedy(
    pair: tuple[Path, Path], tmp_path: Path, refused_in_process: Refused
) -> None:
    def refused(b: Path) -> str:
        line = refused_in_process(compare.main, pair[0], b, "--output-dir", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return line

    assert "predictions are not there; name a folder of evaluate.py" in refused(tmp_path / "none")
    boards = tmp_path / "boards"
    boards.mkdir()
    (boards / "metrics.json").write_text("{}")
    assert "are of boards, on which nothing votes" in refused(boards)
    other = tmp_path / "other"
    other.mkdir()
    save_tasks(other / "test_puzzles.json", some_tasks("abcdf"))
    answers = {(key[0].replace("e", "f"), key[1]): RIGHT for key in answered("")}
    line = refused(results(tmp_path / "of_other", other, answers))
    assert "test input 0 of task 'e' is only in A (4 such in all)" in line
    assert "evaluate both on one dataset and split" in line


def test_the_same_names_with_other_grids_are_another_test_set(
    pair: tuple[Path, Path], tmp_path: Path, refused_in_process: Refused
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    tasks = some_tasks()
    changed = Task("a", tasks[0].train, (Pair(grid("1"), grid("3")),))
    save_tasks(other / "test_puzzles.json", [changed, *tasks[1:]])
    b = results(tmp_path / "of_other", other, answered("a"))
    line = refused_in_process(compare.main, pair[0], b)
    assert "test input 0 of task 'a' is another in A than in B" in line


def test_another_split_and_hidden_solutions_are_refused(
    pair: tuple[Path, Path], dataset: Path, tmp_path: Path, refused_in_process: Refused
) -> None:
    save_tasks(dataset / "validation_puzzles.json", some_tasks())
    b = results(tmp_path / "validation", dataset, answered("a"), split="validation")
    line = refused_in_process(compare.main, pair[0], b)
    assert "A is of the test split and B of the validation split" in line
    hidden = [
        Task(task.task_id, task.train, tuple(Pair(each.input, None) for each in task.test))
        for task in some_tasks()
    ]
    save_tasks(dataset / "test_puzzles.json", hidden)
    assert "no solution is known" in refused_in_process(compare.main, *pair)


def test_results_are_kept_and_flags_explained(
    pair: tuple[Path, Path], tmp_path: Path, refused_in_process: Refused
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    line = refused_in_process(compare.main, *pair, "--output-dir", tmp_path / "out")
    assert "--output-dir" in line and "exists already" in line
    assert "--help lists the flags" in refused_in_process(compare.main, pair[0])


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_shows_both_side_by_side(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """On a phone too, without a complaint."""
    call(compare.main, *map(str, pair), "--output-dir", str(tmp_path / "out"))
    with browser(tmp_path / "profile") as tab:
        for width in (1280, 390):
            tab.resize(width, 844, is_phone=width == 390)
            tab.open(tmp_path / "out" / "compare.html", "#outcome=lost")
            assert tab.run("document.documentElement.scrollWidth - innerWidth") == 0
            assert tab.run("document.querySelectorAll('.card:not([hidden])').length") == 1
            tab.wait_for("document.querySelectorAll('.card:not([hidden]) canvas').length === 3")
            tab.run("document.querySelector('.card:not([hidden]) a').click()")
            words = tab.run("document.querySelector('.attempts').innerText.split('\\n')")
            names = [word for word in words if word in ("A", "B", "Attempt 1", "Attempt 2")]
            assert names == ["A", "Attempt 1", "Attempt 2", "B", "Attempt 1", "Attempt 2"]
            assert tab.run("document.querySelector('.steps').hidden")
        assert tab.complaints == []
