"""From votes and answers to what the page of an evaluation says."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dataset.canvas import place
from dataset.tasks import Grid, Pair, Task
from evaluation.page_charts import curve_table
from evaluation.pages import arc_cases, arc_page
from evaluation.uncertainty import mean_share, share_of
from evaluation.voting import Ranking, Voters


def grid(*rows: str) -> Grid:
    return np.array([[int(cell) for cell in row] for row in rows], dtype=np.uint8)


QUESTION, ANSWERS = grid("1"), [grid("12"), grid("3"), grid("4")]
DEMONSTRATION = Pair(QUESTION, QUESTION)
TASKS = [
    Task("a", (DEMONSTRATION,), (Pair(QUESTION, ANSWERS[0]), Pair(QUESTION, None))),
    Task("not predicted", (DEMONSTRATION,), (Pair(QUESTION, None),)),
]
VOTERS = Voters(np.arange(6), np.array([0, 0, 0, 1, 1, 2]), np.full(6, 0.5), np.arange(3))
VOTES = {
    ("a", 0): Ranking(ANSWERS, np.array([3, 2, 1]), np.array([0.5, 0.25, 0.75]), VOTERS),
    ("a", 1): Ranking([], np.array([], dtype=np.int64), np.array([])),
}
SHOWN = place(ANSWERS[0][None], 3)[0]
STEPS = {
    "task_id": np.array(["a"]),
    "test_index": np.array([0]),
    "canvas": np.stack([np.zeros_like(SHOWN), SHOWN])[None],
    "targets": np.stack([np.where(SHOWN == 3, 0, SHOWN), SHOWN])[None],
}
DOCUMENT: dict[str, Any] = {
    "test_set": {"name": "evaluation"},
    "num_predictions": 1234,
    "loss": 0.4321,
    "exact_accuracy_step1": 0.1,
    "exact_accuracy_step2": 0.2,
    "checkpoints": [{"checkpoint": "runs/a", "weights": "ema", "cell_accuracy_step1": 0.9}],
}


def test_there_is_a_case_for_every_test_input_with_what_led_to_its_answer() -> None:
    first, *others = cases = arc_cases(TASKS, VOTES, STEPS, {"a": "one"})
    named = [("a", 0), ("a", 1), ("not predicted", 0)]
    assert [(case.task_id, case.test_index) for case in cases] == named
    (answers,) = first.answers
    attempts = [(a.grid.tolist(), a.votes, a.confidence) for a in answers.attempts]
    assert attempts == [([[1, 2]], 3, 0.5), ([[3]], 2, 0.25)], "two at most"
    assert answers.total_votes == 6
    assert first.step_answers[0] is None, "no grid yet"
    assert np.array_equal(first.step_answers[1], ANSWERS[0])
    assert first.step_targets == (".2", "12"), "a blank where the path has no colour yet"
    assert first.demonstrations == (DEMONSTRATION,)
    assert first.kinds["subset"] == "one" and first.kinds["size"] == "up to 10"
    assert [case.outcome for case in cases] == ["first", "hidden", "hidden"]
    assert all(case.answers[0].attempts == case.step_answers == () for case in others)


def test_results_of_an_earlier_version_have_steps_without_targets() -> None:
    """And a recount has neither."""
    earlier = {name: array for name, array in STEPS.items() if name != "targets"}
    first, *_ = arc_cases(TASKS, VOTES, earlier, {})
    assert len(first.step_answers) == 2 and first.step_targets == ()
    assert "subset" not in first.kinds
    recounted = arc_cases(TASKS, VOTES, None, {})
    assert all(case.step_answers == case.step_targets == () for case in recounted)


def test_no_target_is_shown_for_a_hidden_solution() -> None:
    hidden = [replace(TASKS[0], test=(Pair(QUESTION, None),))]
    (case,) = arc_cases(hidden, VOTES, STEPS, {})
    assert len(case.step_answers) == 2 and case.step_targets == ()


def titles(page: Any) -> list[str]:
    return [chart.title for chart in page.charts]


def test_a_page_has_the_scores_and_the_charts_that_there_are_numbers_for() -> None:
    page = arc_page(TASKS, VOTES, STEPS, DOCUMENT, {})
    assert page.title == "Answers on evaluation"
    assert page.summary == "1 of 1 test input right, 2 not scored"
    assert [(s.name, s.share, s.over) for s in page.scores] == [
        ("pass@2", share_of(1, 1), "over 1 task"), ("pass@1", share_of(1, 1), "over 1 task")
    ]  # fmt: skip
    assert titles(page) == [
        "Score against attempts", "Score against votes", "Accuracy by step",
        "What a share of the votes is worth",
    ]  # fmt: skip
    assert page.bars is not None
    assert page.facts == {
        "loss": "0.432",
        "test set": "evaluation",
        "predictions": "1,234",
        "checkpoint 1": "runs/a (ema weights)",
    }


def test_where_nothing_is_known_nothing_is_claimed() -> None:
    """A hidden test set that was recounted: what was answered, and no figure."""
    document = {key: DOCUMENT[key] for key in ("test_set", "num_predictions")}
    page = arc_page(TASKS[1:], VOTES, None, document, {})
    assert page.scores == page.charts == []
    assert page.bars is None
    assert page.summary == "1 not scored"


def test_of_pooled_checkpoints_the_first_ones_accuracy_is_shown_and_that_is_said() -> None:
    """The answers after each step are the first one's too."""
    document = {k: v for k, v in DOCUMENT.items() if "_step" not in k}
    (chart,) = [c for c in arc_page(TASKS, VOTES, None, document, {}).charts if "step" in c.title]
    assert "Of checkpoint 1." in chart.caption
    assert [drawn.name for drawn in chart.series] == ["of the cells"]


def test_a_table_of_curves_has_a_row_for_each_point_of_any() -> None:
    one, two = [(1, mean_share([0.5])), (4, mean_share([1.0]))], [(1, mean_share([0.0]))]
    table = curve_table("n", {"A": one, "B": two})
    assert table.header == ("n", "A", "95%", "B", "95%")
    assert [(row[0], row[1], row[3]) for row in table.rows] == [
        ("1", "50.0%", "0.0%"), ("4", "100.0%", "")
    ]  # fmt: skip


@pytest.mark.parametrize("step_answers", [STEPS, None])
def test_the_gallery_is_filtered_by_what_tasks_are_and_by_their_test_set(step_answers: Any) -> None:
    large = Task("b", (Pair(grid("1" * 20), QUESTION),), (Pair(QUESTION, QUESTION),))
    page = arc_page([TASKS[0], large], VOTES, step_answers, DOCUMENT, {"a": "one", "b": "two"})
    assert [f.key for f in page.gallery.filters] == ["change", "size", "subset"]
    assert page.bars is not None
    assert list(page.bars.groups) == ["Size of the output", "Colours", "Longest side", "Test set"]
