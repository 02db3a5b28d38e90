"""ARC tasks: grids, pairs and what a task is in JSON, checked cell by cell.

A task is an object with `train` and `test`, or a list of pairs, as RE-ARC and ARC-GEN have them:
all of these are to train on.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from dataset.storage import BLANK_NAME

MAX_GRID_SIDE = 30
NUM_COLOURS = 10
SEPARATOR = "|||"
"""Stands between a task's id and the rest in the names of its variants."""
MAX_ID_LENGTH = 100
"""Characters. In arrays of ids each takes as much room as the longest."""
MAX_REPORTED = 20
"""Tasks left out that are named; those beyond are only counted."""

log = logging.getLogger(__name__)

Grid = npt.NDArray[np.uint8]
"""[rows, columns], colours 0-9, at most 30 a side."""


@dataclass(frozen=True)
class Pair:
    """A demonstration or a test: `output` is None where the solution is hidden."""

    input: Grid
    output: Grid | None

    def grids(self) -> list[Grid]:
        """The known ones of the two."""
        return [self.input] if self.output is None else [self.input, self.output]


@dataclass(frozen=True)
class Task:
    """One puzzle: demonstrations that show a rule, and test inputs to apply it to."""

    task_id: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]

    @property
    def max_side(self) -> int:
        """The longest side of any of the task's grids, in cells."""
        return max(max(grid.shape) for grid in self.grids())

    def grids(self) -> list[Grid]:
        """All known grids, pair by pair, input before output."""
        return [grid for pair in (*self.train, *self.test) for grid in pair.grids()]


class TaskError(UserError):
    """A task that cannot be used: the message says where and why, `kind` why in a few words."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


LeftOut = dict[str, TaskError]
"""Task id -> why it could not be used."""


@contextmanager
def leaving_out(task_id: str, left_out: LeftOut | None) -> Iterator[None]:
    """Enter an invalid task into `left_out`; UserError if that is None."""
    try:
        yield
    except TaskError as error:
        if left_out is None:
            raise UserError(f"{error}; --skip-invalid leaves such tasks out") from error
        left_out[task_id] = error


def count_left_out(errors: Collection[TaskError]) -> dict[str, int]:
    """How many tasks were left out by reason; the first ones are named in the log."""
    for error, _ in zip(errors, range(MAX_REPORTED), strict=False):
        log.warning("Left out: %s", error)
    return dict(Counter(error.kind for error in errors))


def parse_grid(value: Any, where: str) -> Grid:
    """Check a JSON value and return it as a grid.

    Raises:
        TaskError: not 1-30 rows of 1-30 equal-length colours 0-9; the message starts with
            `where`.
    """
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        raise TaskError(f"{where}: a grid must be a list of rows, got {shorten(value)}", "no grid")
    lengths = sorted({len(row) for row in value})
    for count, what in ((len(value), "rows"), (lengths[-1] if lengths else 0, "columns")):
        if not 1 <= count <= MAX_GRID_SIDE:
            kind = "grid without cells" if not count else f"grid over {MAX_GRID_SIDE} cells a side"
            raise TaskError(f"{where}: {count} {what}, a grid has 1 to {MAX_GRID_SIDE}", kind)
    if len(lengths) > 1:
        message = f"{where}: ragged rows of {lengths[0]} and {lengths[-1]} cells"
        raise TaskError(message, "ragged grid")
    cells = list(chain.from_iterable(value))
    if set(map(type, cells)) != {int} or not 0 <= min(cells) <= max(cells) < NUM_COLOURS:
        odd = next(c for c in cells if type(c) is not int or not 0 <= c < NUM_COLOURS)
        raise TaskError(f"{where}: colour {shorten(odd)}, colours are 0 to 9", "no colour")
    return np.array(cells, dtype=np.uint8).reshape(len(value), -1)


def parse_task(task_id: str, raw: Any, solutions: Any, source: str, is_test: bool = False) -> Task:
    """Check a task's JSON value.

    Args:
        task_id: checked too: variants are named after it, and arrays hold it.
        raw: an object with `train` and `test`, of which one may be missing or empty, or a list of
            pairs to train on.
        solutions: the test outputs; None where `raw` has them.
        source: what it is read from, for messages.
        is_test: whether it is of a test set, where neither may be missing or empty.

    Raises:
        TaskError: the message starts with `source` and the task, and says what is wrong where.
    """
    where = f"{source}: task {task_id[:MAX_ID_LENGTH]!r}"
    _require_usable_id(task_id, where)
    pairs = {"train": raw} if isinstance(raw, list) else raw
    if not isinstance(pairs, dict) or not {"train", "test"} & set(pairs):
        message = f"{where}: must be an object with 'train' and 'test', or a list of pairs"
        raise TaskError(message, "no task")
    train = _parse_pairs(pairs.get("train", []), f"{where}, train pair")
    test = _parse_pairs(pairs.get("test", []), f"{where}, test pair")
    for index, pair in enumerate(train):
        if pair.output is None:
            message = f"{where}, train pair {index}: has no output"
            raise TaskError(message, "train pair without output")
    if solutions is not None:
        if not isinstance(solutions, list) or len(solutions) != len(test):
            count = len(solutions) if isinstance(solutions, list) else shorten(solutions)
            message = f"{where}: {len(test)} test inputs but solutions for {count}"
            raise TaskError(message, "solutions that do not fit")
        test = [
            Pair(pair.input, parse_grid(solution, f"{where}, solution {index}"))
            for index, (pair, solution) in enumerate(zip(test, solutions, strict=True))
        ]
    if is_test and not (train and test):
        missing = "test" if train else "train"
        form = "is a list of pairs (RE-ARC, ARC-GEN), all to train on, and " if pairs != raw else ""
        message = f"{where}: {form}has no {missing} pairs, which a task of a test set needs"
        raise TaskError(message, f"no {missing} pairs")
    if all(pair.output is None for pair in (*train, *test)):
        raise TaskError(f"{where}: has no pair with an output", "no pair with an output")
    return Task(task_id, tuple(train), tuple(test))


def _require_usable_id(task_id: str, where: str) -> None:
    """What is built under an id is found again under it: in names, arrays and lines of text."""
    problems = {
        "is empty": not task_id,
        f"has more than {MAX_ID_LENGTH} characters": len(task_id) > MAX_ID_LENGTH,
        f"is '{BLANK_NAME}', which means no puzzle": task_id == BLANK_NAME,
        # One at the end would run into the separator that follows it.
        f"contains '{SEPARATOR}' or ends in '{SEPARATOR[0]}', and '{SEPARATOR}' separates an id "
        "from the rest of a variant's name": SEPARATOR in task_id + SEPARATOR[1:],
        "begins or ends with a space": task_id != task_id.strip(),
        "has characters that cannot be printed": not task_id.isprintable(),
    }
    for problem, applies in problems.items():
        if applies:
            raise TaskError(f"{where}: its id {problem}; rename the task", "id that cannot be used")


def _parse_pairs(raw: Any, where: str) -> list[Pair]:
    if not isinstance(raw, list) or not all(isinstance(p, dict) and "input" in p for p in raw):
        message = f"{where}s: must be a list of objects with 'input'"
        raise TaskError(message, "no pairs of grids")
    return [
        Pair(
            parse_grid(pair["input"], f"{where} {index}, input"),
            parse_grid(pair["output"], f"{where} {index}, output")
            if pair.get("output") is not None
            else None,
        )
        for index, pair in enumerate(raw)
    ]


def shorten(value: Any) -> str:
    """The value as Python writes it, cut to 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
