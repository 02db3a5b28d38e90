"""The test inputs that a run shows: which they are, and what stands on their pictures."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from dataset.canvas import read_back
from evaluation.predict import Answers
from evaluation.showcase import Showcase
from evaluation.strips import Frame, draw_strip
from evaluation.test_set import ArcTestSet, BoardTestSet, TestSet, open_test_set
from models.supervision import SupervisionConfig
from runs import run_training

STEPS = 3
WHITE, YELLOW, BLACK = (255, 255, 255), (0xFF, 0xDC, 0), (0, 0, 0)


def answers_of(test_set: TestSet, answered: Callable[[int], int]) -> Answers:
    """At every step an answer is the solution where `answered(row)` is 1, or else the input."""
    inputs, labels = test_set.split.read(test_set.examples.rows)
    choice = np.array([answered(row) for row in range(len(test_set))])
    canvases = np.where(choice[:, None] == 1, labels, inputs).astype(np.uint8)
    followed = np.flatnonzero(test_set.is_followed)
    return Answers(
        rows=np.arange(len(test_set)),
        canvases=canvases,
        confidence=np.full(len(test_set), 0.5, dtype=np.float32),
        metric_names=(),
        metrics=np.zeros((len(test_set), STEPS, 0), dtype=np.float32),
        followed=followed,
        steps=np.repeat(canvases[followed, None], STEPS, axis=1),
        whole_canvas_again=0,
    )


def showcase(run_dir: Path, data: Path, shown: list[str] | None = None, **more: Any) -> Showcase:
    test_set = open_test_set(data, more.get("max_variants"), "whole")
    return Showcase(run_dir, test_set, SupervisionConfig(), STEPS, shown)


def table_of(shown: Showcase, step: int) -> list[list[Any]]:
    return json.loads((shown.folder / f"step_{step:08d}" / "table.json").read_text())


def test_shown_are_first_test_inputs_of_tasks_evenly_spread(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    shown = showcase(tmp_path, tiny_dataset)
    test_set = shown.test_set
    assert isinstance(test_set, ArcTestSet)
    ids = sorted({task.task_id for task in test_set.tasks})
    assert [test_set.task_ids[row] for row in shown.rows] == ids, "fewer than eight: all"
    assert test_set.is_followed[shown.rows].all()
    assert not test_set.examples.test_indices[shown.rows].any()
    asked = showcase(tmp_path, tiny_dataset, [ids[1]]).rows
    assert set(test_set.task_ids[asked]) == {ids[1]}
    assert len(asked) == len(next(t for t in test_set.tasks if t.task_id == ids[1]).test)
    assert len(showcase(tmp_path, tiny_dataset, []).rows) == 0
    with pytest.raises(UserError, match=r"train\.show_tasks: 'xyz' is not in the test split"):
        showcase(tmp_path, tiny_dataset, ["xyz"])


def test_votes_and_the_solution_s_place_are_told(tiny_dataset: Path, tmp_path: Path) -> None:
    """Of each task's variants all but one are answered by the solution; or none is."""
    shown = showcase(tmp_path, tiny_dataset)
    originals = set(np.flatnonzero(shown.test_set.is_followed).tolist())
    shown.record(6, answers_of(shown.test_set, lambda row: row not in originals))
    for name, first, second, total, place in table_of(shown, 6):
        assert ", test input 1" in name
        assert (first, second, place) == (total - 1, 1, 1)
    shown.record(12, answers_of(shown.test_set, lambda row: 0))
    assert {place for *_, place in table_of(shown, 12)} == {None}
    assert shown.media(9) == {}, "nothing was shown at that step"
    media = shown.media(12)
    assert set(media) == {"answers/table", "answers/steps"}
    assert [image.info["caption"] for image in media["answers/steps"]] == [
        row[0] for row in media["answers/table"].rows
    ]


def test_an_evaluation_that_is_made_again_shows_its_own(tiny_dataset: Path, tmp_path: Path) -> None:
    """The process that made it before was lost, before its score was recorded."""
    shown = showcase(tmp_path, tiny_dataset)
    for answered in (0, 1):
        shown.record(6, answers_of(shown.test_set, lambda row, n=answered: n))
    assert {place for *_, place in table_of(shown, 6)} == {1}


def test_a_step_s_target_stands_below_its_answer(tiny_dataset: Path, tmp_path: Path) -> None:
    """That of the last step is the solution, of the first neither it nor the question alone."""
    shown = showcase(tmp_path, tiny_dataset)
    row = int(shown.rows[0])
    inputs, labels = shown.test_set.split.read(shown.test_set.examples.rows[[row]])
    solution = read_back(labels[0])
    assert solution is not None
    targets = [shown._shown(c, solution.shape) for c in shown._targets(row, inputs, labels)]
    assert len(targets) == STEPS
    np.testing.assert_array_equal(targets[-1], solution)
    assert not np.array_equal(targets[0], solution)
    image, _ = shown._show(row, answers_of(shown.test_set, lambda row: 0))
    without = draw_strip([Frame("step", solution)])
    assert image.height > without.height + 20


def test_a_strip_holds_its_grids_in_arc_s_colours() -> None:
    grid = np.array([[4, 0]], dtype=np.uint8)
    strip = draw_strip([Frame("a", grid, below=grid[:, ::-1]), Frame("b", None, empty="hidden")])
    colours = {colour for _, colour in strip.getcolors(1 << 16)}
    assert {WHITE, YELLOW, BLACK} <= colours
    # Yellow on the left above, on the right below.
    pixels = np.array(strip)
    rows, columns = np.nonzero((pixels == YELLOW).all(axis=2))
    upper, lower = columns[rows < rows.mean()], columns[rows > rows.mean()]
    assert upper.max() < lower.min()
    assert strip.mode == "RGB"


def test_boards_are_shown_too(queens: Path, tmp_path: Path) -> None:
    shown = showcase(tmp_path, queens)
    assert isinstance(shown.test_set, BoardTestSet)
    assert shown.rows.tolist() == list(range(min(8, len(shown.test_set))))
    shown.record(6, answers_of(shown.test_set, lambda row: 1))
    assert table_of(shown, 6)[0] == ["board 1", None, None, None, None]
    with Image.open(shown.folder / "step_00000006" / "0.png") as image:
        assert image.width > image.height
    with pytest.raises(UserError, match="holds boards"):
        showcase(tmp_path, queens, ["1"])


def test_a_run_shows_the_tasks_that_are_asked_for(tiny_dataset: Path, tmp_path: Path) -> None:
    """All of their test inputs."""
    run_dir = run_training(
        tiny_dataset, tmp_path / "run", "train.max_steps=3", "train.show_tasks=[31d5ba1a]"
    )
    table = json.loads((run_dir / "answers/step_00000003/table.json").read_text())
    assert [name for name, *_ in table] == [f"31d5ba1a, test input {n}" for n in (1, 2)]


@pytest.mark.parametrize("file", ["table.json", "0.png"])
@pytest.mark.parametrize("content", [None, b"", b"[1]", b"{", b"\xff\xd8"])
def test_damaged_pictures_stop_no_run_that_is_resumed(
    tiny_dataset: Path, tmp_path: Path, file: str, content: bytes | None
) -> None:
    shown = showcase(tmp_path, tiny_dataset)
    shown.record(6, answers_of(shown.test_set, lambda row: 1))
    path = shown.folder / "step_00000006" / file
    path.unlink() if content is None else path.write_bytes(content)
    assert shown.media(6) == {}


def test_what_is_not_square_is_not_drawn(queens: Path, tmp_path: Path) -> None:
    """Another code base's boards may have any shape: they are trained on all the same."""
    test_set = open_test_set(queens, None, "whole")
    metadata = test_set.split.metadata.model_copy(update={"seq_len": 60})
    test_set.split = replace(test_set.split, metadata=metadata)
    shown = Showcase(tmp_path, test_set, SupervisionConfig(), STEPS, None)
    shown.record(6, answers_of(test_set, lambda row: 1))
    assert not shown.folder.exists()
