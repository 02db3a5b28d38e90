"""From votes and answers to what the results folder and its page hold."""

import numpy as np

from dataset.canvas import place
from dataset.tasks import Grid, Pair, Task
from evaluation.results import arc_cases
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
