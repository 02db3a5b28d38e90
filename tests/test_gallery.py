"""What the gallery says of hand-made cases, in its list and in the data of its script."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dataset.tasks import Grid, Pair
from evaluation.gallery import (
    OUTCOMES,
    Answers,
    Attempt,
    Case,
    Gallery,
    outcome_of,
    step_notes,
)


def grid(*rows: str) -> Grid:
    return np.array([[int(cell) for cell in row] for row in rows], dtype=np.uint8)


SOLUTION, ONE_OFF = grid("123", "456"), grid("123", "450")
ATTEMPTS = (Attempt(ONE_OFF, 12, 0.914), Attempt(SOLUTION, 1, 0.5))
CASE = Case(
    task_id="007bbfb7",
    test_index=0,
    demonstrations=(Pair(grid("1"), grid("22")), Pair(grid("3"), grid("44"))),
    test_input=grid("7", "8", "9"),
    solution=SOLUTION,
    answers=(Answers(ATTEMPTS, 16),),
    outcome="second",
    step_answers=(ONE_OFF, SOLUTION),
    step_targets=("7.3/4.6", "123/456"),
    kinds={"size": "up to 10", "subset": "evaluation"},
)


def data(*cases: Case) -> Any:
    return json.loads(Gallery(cases, OUTCOMES).data())


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ((SOLUTION, ONE_OFF), "first"),
        ((ONE_OFF, SOLUTION), "second"),
        ((ONE_OFF, SOLUTION[:1]), "unsolved"),
        ((ONE_OFF,), "unsolved"),
        ((), "unsolved"),
    ],
)
def test_a_case_is_solved_by_the_attempt_that_is_the_solution(
    answers: tuple[Grid, ...], outcome: str
) -> None:
    attempts = [Attempt(answer, 1, 0.5) for answer in answers]
    assert outcome_of(attempts, SOLUTION) == outcome
    assert outcome_of(attempts, None) == "hidden"


def test_the_data_of_a_case_are_its_grids_and_what_is_said_of_them() -> None:
    found = data(CASE)
    assert found["tasks"] == {"007bbfb7": [["1", "22"], ["3", "44"]]}
    (case,) = found["cases"]
    assert case["input"] == "7/8/9"
    assert case["solution"] == "123/456"
    assert case["answers"][0]["attempts"] == [
        {
            "grid": "123/450",
            "right": False,
            "notes": ["12 of 16 votes", "mean confidence 0.91", "1 cell wrong"],
        },
        {"grid": "123/456", "right": True, "notes": ["1 of 16 votes", "mean confidence 0.50"]},
    ]
    assert case["steps"] == [
        {"grid": "123/450", "notes": ["1 cell wrong"]},
        {"grid": "123/456", "notes": ["1 cell changed", "0 cells wrong"]},
    ]
    assert case["targets"] == ["7.3/4.6", "123/456"]
    assert case["kinds"] == {"size": "up to 10", "subset": "evaluation"}


def test_a_hidden_solution_is_neither_shown_nor_scored() -> None:
    (case,) = data(replace(CASE, solution=None, outcome="hidden"))["cases"]
    assert case["solution"] is None
    attempts = case["answers"][0]["attempts"]
    assert [attempt["right"] for attempt in attempts] == [None, None]
    assert attempts[0]["notes"] == ["12 of 16 votes", "mean confidence 0.91"]
    assert [step["notes"] for step in case["steps"]] == [[], ["1 cell changed"]]


def test_an_attempt_that_there_is_not_has_its_place() -> None:
    """Of two, or of one where nothing votes; then votes are not spoken of."""
    (none,) = data(replace(CASE, answers=(Answers((), 0),)))["cases"]
    assert none["answers"][0]["attempts"] == [{"grid": None, "right": None, "notes": []}] * 2
    board = Answers((Attempt(SOLUTION, 1, 0.5),), num_attempts=1)
    (one,) = data(replace(CASE, answers=(board,)))["cases"]
    assert [a["notes"] for a in one["answers"][0]["attempts"]] == [["mean confidence 0.50"]]


def test_steps_say_what_changed_and_what_is_still_wrong() -> None:
    answers = (None, SOLUTION[:1], grid("000", "456"), grid("123", "456"), SOLUTION, None)
    assert step_notes(replace(CASE, step_answers=answers)) == [
        [],
        ["3 cells changed", "wrong size, 1 × 3"],
        ["6 cells changed", "size changed", "3 cells wrong"],
        ["3 cells changed", "0 cells wrong"],
        ["0 cells changed", "0 cells wrong"],
        [],
    ]


def test_the_list_has_a_line_on_the_first_attempt_of_each_evaluation() -> None:
    gallery = Gallery([CASE], OUTCOMES)
    assert gallery.summary(CASE) == ["12 of 16 votes, 1 cell wrong"]
    two = (Answers(ATTEMPTS[1:], 9, "A"), Answers((), 0, "B"))
    assert gallery.summary(replace(CASE, answers=two)) == ["A: 1 of 9 votes", "B: no answer"]


def test_what_there_is_only_one_of_is_no_filter() -> None:
    """Bands stand in the order of their numbers; outcomes that there are none of are left out."""
    sizes = ("11–15", "up to 10", "21–30", "up to 10")
    cases = [replace(CASE, kinds={"size": size, "subset": "one"}) for size in sizes]
    gallery = Gallery(cases, OUTCOMES, {"size": "Longest side", "subset": "Test set"})
    (only,) = gallery.filters
    assert (only.key, only.title) == ("size", "Longest side")
    assert list(only.counts.items()) == [("up to 10", 2), ("11–15", 1), ("21–30", 1)]
    assert gallery.counts == {"second": 4}


def test_no_task_id_ends_the_element_that_the_data_are_in() -> None:
    evil = "</script><!--<script>"
    text = Gallery([replace(CASE, task_id=evil)], OUTCOMES).data()
    assert "<" not in text
    assert json.loads(text)["cases"][0]["task"] == evil
