"""What the page's gallery says of each test input, and the data from which its script draws it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dataset.tasks import Grid, Pair
from evaluation.grids import changed_cells, grid_text, mistakes, plural


@dataclass(frozen=True)
class Attempt:
    """One of the two answers that would be submitted."""

    grid: Grid
    votes: float
    confidence: float


@dataclass(frozen=True)
class Answers:
    """What one evaluation answered to a test input."""

    attempts: tuple[Attempt, ...]
    """At most `num_attempts`, best first."""
    total_votes: float | None = None
    """Of all answers; None where nothing votes."""
    name: str = ""
    """Of the evaluation, where there are several."""
    num_attempts: int = 2
    """How many answers there could have been."""


@dataclass(frozen=True)
class Case:
    """One test input with what was answered."""

    task_id: str
    test_index: int | None
    """Which of the task's, from 0; None where there is but one, as of boards."""
    demonstrations: tuple[Pair, ...]
    test_input: Grid
    solution: Grid | None
    """None: hidden."""
    answers: tuple[Answers, ...]
    """Of one evaluation, or of two that are compared."""
    outcome: str
    """A key of the gallery's `outcomes`."""
    step_answers: tuple[Grid | None, ...] = ()
    """The unaugmented input's answer after steps 1..S; None where the canvas shows no grid."""
    step_targets: tuple[str, ...] = ()
    """Texts of the steps' targets, as large as the solution; none where they are not known."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """What it is filtered by: key -> name, see `Gallery.filters`."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended: its name, and which of the looks `right`, `partly`, `wrong`, `plain`."""

    name: str
    look: str
    sign: str


FIRST, SECOND, UNSOLVED, HIDDEN = "first", "second", "unsolved", "hidden"
OUTCOMES = {
    FIRST: Outcome("Solved by the first", "right", "✓"),
    SECOND: Outcome("Solved by the second", "partly", "✓"),
    UNSOLVED: Outcome("Not solved", "wrong", "✗"),
    HIDDEN: Outcome("Not scored", "plain", "–"),
}
BOARD_OUTCOMES = {
    FIRST: Outcome("Solved", "right", "✓"),
    UNSOLVED: Outcome("Not solved", "wrong", "✗"),
    HIDDEN: Outcome("Not scored", "plain", "–"),
}


def outcome_of(attempts: Sequence[Attempt], solution: Grid | None) -> str:
    """Which attempt, if any, is the solution: a key of OUTCOMES."""
    if solution is None:
        return HIDDEN
    right = [is_right(attempt, solution) for attempt in attempts]
    return (FIRST, SECOND)[right.index(True)] if True in right else UNSOLVED


def is_right(attempt: Attempt, solution: Grid) -> bool:
    """Whether an attempt is the solution."""
    return np.array_equal(attempt.grid, solution)


@dataclass(frozen=True)
class Filter:
    """A choice of the gallery: what cases are told apart by, with how many there are of each."""

    key: str
    title: str
    counts: dict[str, int]


@dataclass(frozen=True)
class Gallery:
    """All cases, and what they can be filtered by."""

    cases: Sequence[Case]
    outcomes: Mapping[str, Outcome]
    titles: Mapping[str, str] = field(default_factory=dict)
    """Key of a kind -> what it is called."""

    @property
    def counts(self) -> dict[str, int]:
        """How many cases there are of each outcome that there is."""
        found = {key: sum(c.outcome == key for c in self.cases) for key in self.outcomes}
        return {key: count for key, count in found.items() if count}

    @property
    def filters(self) -> list[Filter]:
        """The kinds of which there are several, names in the order of the cases' own kinds."""
        filters = []
        for key, title in self.titles.items():
            names = [case.kinds[key] for case in self.cases if key in case.kinds]
            counts = {name: names.count(name) for name in sorted(set(names), key=_natural)}
            if len(counts) > 1:
                filters.append(Filter(key, title, counts))
        return filters

    def summary(self, case: Case) -> list[str]:
        """A line on the first attempt of each evaluation, for the list."""
        return [
            f"{answers.name}: {text}" if answers.name else text
            for answers in case.answers
            for text in [_summary(answers, case.solution)]
        ]

    def data(self) -> str:
        """JSON for the script, which can stand inside of a page: no character ends its element."""
        demonstrations = {
            case.task_id: [[grid_text(grid) for grid in p.grids()] for p in case.demonstrations]
            for case in self.cases
        }
        document = {"tasks": demonstrations, "cases": [_case_data(case) for case in self.cases]}
        return json.dumps(document, separators=(",", ":")).replace("<", "\\u003c")


def _natural(name: str) -> tuple[int, str]:
    """Bands by their numbers: "up to 10" stands before "11–15"."""
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return (int(digits[-1]) if digits else 0, name)


def case_name(case: Case) -> str:
    """Which of the task's test inputs it is; empty where there is but one."""
    return "" if case.test_index is None else f"test input {case.test_index + 1}"


def _case_data(case: Case) -> dict[str, Any]:
    solution = case.solution
    return {
        "task": case.task_id,
        "name": case_name(case),
        "outcome": case.outcome,
        "kinds": dict(case.kinds),
        "input": grid_text(case.test_input),
        "solution": None if solution is None else grid_text(solution),
        "answers": [_answers_data(answers, solution) for answers in case.answers],
        "steps": [
            {"grid": None if grid is None else grid_text(grid), "notes": notes}
            for grid, notes in zip(case.step_answers, step_notes(case), strict=True)
        ],
        "targets": list(case.step_targets),
    }


def _answers_data(answers: Answers, solution: Grid | None) -> dict[str, Any]:
    shown = len(answers.attempts)
    assert shown <= answers.num_attempts, f"{shown} attempts, {answers.num_attempts} at most"
    attempts: list[dict[str, Any]] = [
        {
            "grid": grid_text(attempt.grid),
            "right": None if solution is None else is_right(attempt, solution),
            "notes": attempt_notes(answers, attempt, solution),
        }
        for attempt in answers.attempts
    ]
    attempts += [{"grid": None, "right": None, "notes": []}] * (answers.num_attempts - shown)
    return {"name": answers.name, "attempts": attempts}


def _summary(answers: Answers, solution: Grid | None) -> str:
    if not answers.attempts:
        return "no answer"
    notes = attempt_notes(answers, answers.attempts[0], solution)
    return ", ".join(note for note in notes if "confidence" not in note) or "one answer"


def _votes(answers: Answers, attempt: Attempt) -> str:
    if answers.total_votes is None:
        return ""
    return f"{attempt.votes:g} of {plural(answers.total_votes, 'vote')}"


def attempt_notes(answers: Answers, attempt: Attempt, solution: Grid | None) -> list[str]:
    """What is said below an attempt."""
    notes = [_votes(answers, attempt), f"mean confidence {attempt.confidence:.2f}"]
    if solution is not None and not is_right(attempt, solution):
        notes.append(mistakes(attempt.grid, solution))
    return [note for note in notes if note]


def step_notes(case: Case) -> list[list[str]]:
    """What is said of each step's answer: what changed, and what is still wrong."""
    every = []
    for step, answer in enumerate(case.step_answers):
        notes = []
        if answer is not None and step > 0:
            previous = case.step_answers[step - 1]
            notes.append(plural(int(changed_cells(previous, answer).sum()), "cell") + " changed")
            if previous is not None and previous.shape != answer.shape:
                notes.append("size changed")
        if answer is not None and case.solution is not None:
            notes.append(mistakes(answer, case.solution))
        every.append(notes)
    return every
