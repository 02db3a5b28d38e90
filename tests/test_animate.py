"""The animated picture: what stands in which frame, and that it fits a README."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import REPOSITORY
from dataset.canvas import place
from dataset.tasks import Grid
from evaluation import animate
from evaluation.animate import Story, draw_frames, read_stories
from runs import call

QUESTION, SOLUTION = np.array([[1, 2], [3, 4]]), np.array([[5, 2], [3, 6]])
HALF = np.array([[5, 2], [3, 4]])
SIDE = 6


def write_results(folder: Path, output: Grid | None = SOLUTION, **changes: Any) -> Path:
    """One task's answers after two steps: half right, right; and its dataset, in `data`."""
    canvases = [place(grid[None].astype(np.uint8), SIDE)[0] for grid in (HALF, SOLUTION)]
    arrays = {
        "task_id": np.array(["abc"]),
        "test_index": np.array([0], dtype=np.int32),
        "canvas": np.stack(canvases)[None],
        "targets": np.stack(canvases)[None],
        **changes,
    }
    (data := folder / "data").mkdir()
    pairs = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": QUESTION.tolist()}]}
    if output is not None:
        pairs["test"][0]["output"] = output.tolist()
    (data / "test_puzzles.json").write_text(json.dumps({"abc": pairs}))
    (results := folder / "results").mkdir()
    np.savez(results / "step_answers.npz", **{k: v for k, v in arrays.items() if v is not None})
    recorded = {"test_set": {"dataset": str(data), "split": "test"}}
    (results / "metrics.json").write_text(json.dumps(recorded))
    return results


def test_a_story_is_told_by_results_and_dataset(tmp_path: Path) -> None:
    (story,) = read_stories(write_results(tmp_path), None, ["abc"])
    np.testing.assert_array_equal(story.question, QUESTION)
    np.testing.assert_array_equal(story.solution, SOLUTION)
    for shown in (story.answers, story.targets):
        np.testing.assert_array_equal(shown, [HALF, SOLUTION])


def test_the_answer_appears_and_becomes_the_solution() -> None:
    """The question stays, the pictures in the second and the last column get alike."""
    story = Story(QUESTION, [HALF, SOLUTION], [HALF, SOLUTION], SOLUTION)
    before, first, last = (np.asarray(frame) for frame in draw_frames([story]))
    top, left = animate.MARGIN + animate.LINE, animate.MARGIN

    def column(frame: Any, number: int) -> Any:
        start = left + number * (animate.SIDE + animate.GAP)
        return frame[top : top + animate.SIDE, start : start + animate.SIDE]

    for frame in (before, first, last):
        np.testing.assert_array_equal(column(frame, 0), column(before, 0))
        np.testing.assert_array_equal(column(frame, 3), column(before, 3))
    assert len(np.unique(column(before, 1).reshape(-1, 3), axis=0)) == 2, "lines on paper"
    np.testing.assert_array_equal(column(first, 1), column(first, 2))
    assert (column(first, 1) != column(first, 3)).any()
    np.testing.assert_array_equal(column(last, 1), column(last, 3))


@pytest.mark.parametrize("ending", ["gif", "png"])
def test_the_file_plays_again_and_again(tmp_path: Path, ending: str) -> None:
    output = tmp_path / f"improving.{ending}"
    results = write_results(tmp_path)
    call(animate.main, str(results), "--tasks", "abc", "--output", str(output))
    with Image.open(output) as image:
        assert (image.n_frames, image.info["loop"]) == (3, 0)


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({}, ["--tasks", "xyz"], "--tasks xyz: is not in"),
        ({"output": None}, ["--tasks", "abc"], "its solution is hidden"),
        ({"targets": None}, ["--tasks", "abc"], "no array 'targets': evaluate again"),
        ({}, ["--tasks", "abc", "--output", "x.jpg"], "ends in .gif or .png"),
    ],
)
def test_what_is_wrong_is_said(
    changes: dict[str, Any],
    words: list[str],
    said: str,
    tmp_path: Path,
    refused_in_process: Callable[..., str],
) -> None:
    results = write_results(tmp_path, **changes)
    assert said in refused_in_process(animate.main, results, *words)


def test_a_folder_without_results_is_refused(
    tmp_path: Path, refused_in_process: Callable[..., str]
) -> None:
    assert "there is no step_answers.npz" in refused_in_process(
        animate.main, tmp_path, "--tasks", "abc"
    )


def test_the_picture_of_the_readme_is_an_animation_of_less_than_a_megabyte() -> None:
    path = REPOSITORY / "docs" / "improving.gif"
    assert path.stat().st_size < 1_000_000
    with Image.open(path) as image:
        assert image.n_frames > 2 and image.info["loop"] == 0
