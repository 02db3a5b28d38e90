"""Files of ARC tasks in the Kaggle ARC Prize format: read and written.

One subset is a pair of files, `{prefix}_{subset}_challenges.json` and
`{prefix}_{subset}_solutions.json`. A subset without solutions is a hidden test set and is legal.
"""

import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import atomic_write
from common.json_files import existing, read_object
from dataset.storage import read_build
from dataset.tasks import LeftOut, Pair, Task, leaving_out, parse_task, shorten

FILLER = [[0]]
"""What stands in place of hidden solutions in files of other code bases."""
FILLERS_KEY = "fillers"
"""Of `build.json`, where there are fillers: task id -> the test inputs that have one."""

log = logging.getLogger(__name__)


def subset_paths(prefix: str, subset: str) -> tuple[Path, Path]:
    """The challenges file and the solutions file."""
    return Path(f"{prefix}_{subset}_challenges.json"), Path(f"{prefix}_{subset}_solutions.json")


def load_subset(
    prefix: str, subset: str, is_test: bool = False, left_out: LeftOut | None = None
) -> list[Task]:
    """Read one subset, in the file's order.

    Args:
        prefix: of the files.
        subset: its name.
        is_test: whether it is a test set, whose tasks need both train and test pairs.
        left_out: takes the tasks that cannot be used; None: such a task is an error.

    Raises:
        UserError: a file is missing or is no JSON, a task cannot be used, or the solutions do not
            match the challenges; the message says where.
    """
    path, solutions_path = subset_paths(prefix, subset)
    import_command = "python -m dataset.import_arc --output-prefix PREFIX --sources"
    remedy = (
        "check --input-file-prefix and the subset's name, or write the file with "
        "'python -m dataset.import_arc' (ConceptARC needs --conceptarc)"
    )
    if existing(path) is not None:
        remedy = "correct the file or write it again"
    elif folders := [f for f in (Path(prefix) / subset, Path(prefix)) if f.is_dir()]:
        remedy = f"a folder of one JSON a task is read by '{import_command} {subset}={folders[0]}'"
    challenges = read_object(path, remedy)
    if is_one_task(challenges):
        raise UserError(
            f"{path} holds one task, not tasks by id: it is read by '{import_command} "
            f"{subset}={path}', with another prefix"
        )
    return parse_challenges(challenges, path, solutions_path, is_test, left_out)


def is_one_task(value: Any) -> bool:
    """Whether the JSON value of a file is a single task, and no object of tasks by id."""
    return isinstance(value, list) or (
        isinstance(value, dict) and any(isinstance(value.get(k), list) for k in ("train", "test"))
    )


def parse_challenges(
    challenges: dict[str, Any],
    path: Path,
    solutions_path: Path | None,
    is_test: bool = False,
    left_out: LeftOut | None = None,
) -> list[Task]:
    """The tasks of a challenges file, with the solutions of the file beside it if there is one.

    Raises:
        UserError: as `load_subset`.
    """
    solutions: dict[str, Any] | None = None
    if solutions_path is not None and existing(solutions_path):
        solutions = read_object(solutions_path, "use the two files of one release")
        with_test = {task_id for task_id, raw in challenges.items() if _has_test_pairs(raw)}
        if different := sorted((set(solutions) - set(challenges)) | (with_test - set(solutions))):
            raise UserError(
                f"{solutions_path} does not match {path}: task {shorten(different[0])} is in only "
                f"one of them ({len(different)} such in all); use the two files of one release"
            )
    tasks = []
    for task_id, raw in challenges.items():
        # An empty entry is no hidden solution: it counts as none, and is refused.
        answers = None if solutions is None else solutions.get(task_id) or []
        with leaving_out(task_id, left_out):
            tasks.append(parse_task(task_id, raw, answers, str(path), is_test))
    return hide_fillers(tasks, path) if is_test else tasks


def _has_test_pairs(raw: Any) -> bool:
    return isinstance(raw, dict) and bool(raw.get("test"))


def subset_files(prefix: str, subset: str, tasks: list[Task]) -> dict[Path, str]:
    """A subset's two files and what they contain.

    If an output is hidden there is no solutions file: outputs that are known stay in the other.
    """
    challenges_path, solutions_path = subset_paths(prefix, subset)
    challenges = tasks_to_json(tasks)
    if any(pair.output is None for task in tasks for pair in task.test):
        return {challenges_path: json.dumps(challenges)}
    outputs = {
        task_id: [pair.pop("output") for pair in challenge["test"]]
        for task_id, challenge in challenges.items()
    }
    return {challenges_path: json.dumps(challenges), solutions_path: json.dumps(outputs)}


def save_tasks(path: Path, tasks: list[Task], fill_in: bool = False) -> None:
    """Write `tasks` as one JSON file in Kaggle form, known outputs filled in.

    Hidden ones are left out, or, to `fill_in`, FILLER.
    """
    document = tasks_to_json(tasks)
    if fill_in:
        for task in document.values():
            for pair in task["test"]:
                pair.setdefault("output", FILLER)
    atomic_write(path, json.dumps(document))


def tasks_to_json(tasks: Sequence[Task]) -> dict[str, Any]:
    """The tasks by id in Kaggle form, known outputs filled in."""

    def pairs_to_json(pairs: tuple[Pair, ...]) -> list[dict[str, Any]]:
        known = [{"input": p.input, "output": p.output} for p in pairs]
        return [{k: g.tolist() for k, g in p.items() if g is not None} for p in known]

    return {
        task.task_id: {"train": pairs_to_json(task.train), "test": pairs_to_json(task.test)}
        for task in tasks
    }


def load_tasks(path: Path) -> list[Task]:
    """Read a file that `save_tasks` (or another code base's builder) wrote.

    Solutions that are fillers are hidden: those that `build.json` beside it records, or all if each
    is one.

    Raises:
        UserError: the file is missing or damaged, or a task cannot be scored.
    """
    raw_tasks = read_object(path, "it holds the tasks to score; rebuild the dataset")
    tasks = [
        parse_task(task_id, raw, None, str(path), is_test=True)
        for task_id, raw in raw_tasks.items()
    ]
    fillers = read_build(path.parent).fillers
    return hide_fillers([_hide(task, fillers.get(task.task_id, ())) for task in tasks], path)


def hidden_places(tasks: list[Task]) -> dict[str, list[int]]:
    """Task id -> the test inputs whose solutions are hidden, of the tasks that have such."""
    places = {
        task.task_id: [index for index, pair in enumerate(task.test) if pair.output is None]
        for task in tasks
    }
    return {task_id: indices for task_id, indices in places.items() if indices}


def hide_fillers(tasks: list[Task], path: Path) -> list[Task]:
    """The tasks, without test outputs if each of them is FILLER, or hidden as it is."""
    outputs = [pair.output for task in tasks for pair in task.test if pair.output is not None]
    if not outputs or any(output.tolist() != FILLER for output in outputs):
        return tasks
    log.info("%s: every solution is %s, which stands for a hidden one.", path, FILLER)
    return without_solutions(tasks)


def without_solutions(tasks: Sequence[Task]) -> list[Task]:
    """The tasks as a challenge shows them: no test pair has an output."""
    return [_hide(task, range(len(task.test))) for task in tasks]


def _hide(task: Task, indices: Collection[int]) -> Task:
    test = [
        replace(pair, output=None) if index in indices else pair
        for index, pair in enumerate(task.test)
    ]
    return replace(task, test=tuple(test))
