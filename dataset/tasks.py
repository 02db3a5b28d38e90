"""ARC tasks in the Kaggle ARC Prize format: read, checked cell by cell, and written.

One subset is a pair of files, `{prefix}_{subset}_challenges.json` and
`{prefix}_{subset}_solutions.json`. A subset without solutions is a hidden test set and is legal.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from common.files import atomic_write
from common.json_files import read_object

MAX_GRID_SIDE = 30
NUM_COLOURS = 10

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


def subset_paths(prefix: str, subset: str) -> tuple[Path, Path]:
    """The challenges file and the solutions file."""
    return Path(f"{prefix}_{subset}_challenges.json"), Path(f"{prefix}_{subset}_solutions.json")


def load_subset(prefix: str, subset: str) -> list[Task]:
    """Read one subset, in the file's order.

    Raises:
        UserError: a file is missing or is no JSON, a grid is not a grid, a task has no train pairs,
            or the solutions do not match the challenges; the message says where.
    """
    path, solutions_path = subset_paths(prefix, subset)
    challenges = read_object(
        path,
        "check --input-file-prefix and the subset's name, or write the file with "
        "'python -m dataset.import_arc' (ConceptARC needs --conceptarc)",
    )
    if not solutions_path.is_file():
        return [parse_task(task_id, raw, None, str(path)) for task_id, raw in challenges.items()]
    solutions = read_object(solutions_path, "use the two files of one release")
    if different := sorted(set(challenges) ^ set(solutions)):
        raise UserError(
            f"{solutions_path} does not match {path}: task '{different[0]}' is in only one of them "
            f"({len(different)} such in all); use the two files of one release"
        )
    return [
        # An empty entry is no hidden solution: it counts as none, and is refused.
        parse_task(task_id, raw, solutions[task_id] or [], str(path))
        for task_id, raw in challenges.items()
    ]


def subset_files(prefix: str, subset: str, tasks: list[Task]) -> dict[Path, str]:
    """A subset's two files and what they contain; no solutions file if an output is hidden."""
    challenges_path, solutions_path = subset_paths(prefix, subset)
    challenges = _to_json(tasks)
    outputs = {
        task_id: [pair.pop("output", None) for pair in challenge["test"]]
        for task_id, challenge in challenges.items()
    }
    files = {challenges_path: json.dumps(challenges)}
    if all(output is not None for solution in outputs.values() for output in solution):
        files[solutions_path] = json.dumps(outputs)
    return files


def save_tasks(path: Path, tasks: list[Task]) -> None:
    """Write `tasks` as one JSON file in Kaggle form, known outputs filled in."""
    atomic_write(path, json.dumps(_to_json(tasks)))


def _to_json(tasks: list[Task]) -> dict[str, Any]:
    def pairs_to_json(pairs: tuple[Pair, ...]) -> list[dict[str, Any]]:
        known = [{"input": p.input, "output": p.output} for p in pairs]
        return [{k: g.tolist() for k, g in p.items() if g is not None} for p in known]

    return {
        task.task_id: {"train": pairs_to_json(task.train), "test": pairs_to_json(task.test)}
        for task in tasks
    }


def load_tasks(path: Path) -> list[Task]:
    """Read a file that `save_tasks` (or another code base's builder) wrote."""
    tasks = read_object(path, "it holds the tasks to score; rebuild the dataset")
    return [parse_task(task_id, raw, None, str(path)) for task_id, raw in tasks.items()]


def parse_grid(value: Any, where: str) -> Grid:
    """Check a JSON value and return it as a grid.

    Raises:
        UserError: not 1-30 rows of 1-30 equal-length colours 0-9; the message starts with `where`.
    """
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        raise UserError(f"{where}: a grid must be a list of rows, got {_shorten(value)}")
    if not 1 <= len(value) <= MAX_GRID_SIDE:
        raise UserError(f"{where}: {len(value)} rows, a grid has 1 to {MAX_GRID_SIDE}")
    lengths = sorted({len(row) for row in value})
    if len(lengths) > 1:
        raise UserError(f"{where}: ragged rows of {lengths[0]} and {lengths[-1]} cells")
    if not 1 <= lengths[0] <= MAX_GRID_SIDE:
        raise UserError(f"{where}: {lengths[0]} columns, a grid has 1 to {MAX_GRID_SIDE}")
    for row in value:
        for cell in row:
            if type(cell) is not int or not 0 <= cell < NUM_COLOURS:
                raise UserError(f"{where}: colour {_shorten(cell)}, colours are 0 to 9")
    return np.array(value, dtype=np.uint8)


def parse_task(task_id: str, raw: Any, solutions: Any, source: str) -> Task:
    """Check a task's JSON value; `solutions` are the test outputs, None where `raw` has them.

    Raises:
        UserError: the message starts with `source` and the task, and says what is wrong where.
    """
    where = f"{source}: task '{task_id}'"
    if not isinstance(raw, dict) or not {"train", "test"} <= set(raw):
        raise UserError(f"{where}: must be an object with 'train' and 'test'")
    train = _parse_pairs(raw["train"], f"{where}, train pair")
    test = _parse_pairs(raw["test"], f"{where}, test pair")
    if not train or not test:
        raise UserError(f"{where}: has no {'test' if train else 'train'} pairs")
    for index, pair in enumerate(train):
        if pair.output is None:
            raise UserError(f"{where}, train pair {index}: has no output")
    if solutions is not None:
        if not isinstance(solutions, list) or len(solutions) != len(test):
            count = len(solutions) if isinstance(solutions, list) else _shorten(solutions)
            raise UserError(f"{where}: {len(test)} test inputs but solutions for {count}")
        test = [
            Pair(pair.input, parse_grid(solution, f"{where}, solution {index}"))
            for index, (pair, solution) in enumerate(zip(test, solutions, strict=True))
        ]
    return Task(task_id, tuple(train), tuple(test))


def _parse_pairs(raw: Any, where: str) -> list[Pair]:
    if not isinstance(raw, list) or not all(isinstance(p, dict) and "input" in p for p in raw):
        raise UserError(f"{where}s: must be a list of objects with 'input'")
    return [
        Pair(
            parse_grid(pair["input"], f"{where} {index}, input"),
            parse_grid(pair["output"], f"{where} {index}, output")
            if pair.get("output") is not None
            else None,
        )
        for index, pair in enumerate(raw)
    ]


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
