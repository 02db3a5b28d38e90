"""Tasks as people have them: a folder of JSON files, one such file, or a file of tasks by id.

| path | tasks |
|---|---|
| a folder (ARC-AGI's data/training, 1D-ARC) | one a JSON file in it, or in the folders in it |
| a JSON file of one task, or of one list of pairs | that one; its id is the file's name |
| a JSON file of tasks by id (Kaggle) | all, with the solutions file beside it if there is one |

Files may be compressed (.json.gz).
"""

from itertools import pairwise
from pathlib import Path

from common.errors import UserError
from common.json_files import read_json
from dataset.task_files import hide_fillers, is_one_task, parse_challenges
from dataset.tasks import LeftOut, Task, TaskError, leaving_out, parse_task

HALVES = {"training", "evaluation"}
"""Folders whose tasks must not be mixed by mistake: one is there to test what the other taught."""


def read_tasks(path: Path, left_out: LeftOut | None, is_test: bool = False) -> list[Task]:
    """The tasks of a folder, of a file of tasks by id, or of a file that holds one.

    Args:
        path: of the folder or file.
        left_out: takes the tasks that cannot be used; None: such a task is an error.
        is_test: whether their test inputs are to be predicted: a task needs train and test pairs.

    Raises:
        UserError: there are none, they cannot be read, or one is invalid and `left_out` is None.
    """
    if path.is_dir():
        tasks = _read_folder(path, left_out, is_test)
    else:
        value = read_json(path, "name a folder with one JSON a task, such a file, or a Kaggle file")
        if is_one_task(value):
            tasks = _read_file(path, left_out, is_test)
        elif isinstance(value, dict):
            solutions = path.name.removesuffix(".gz").replace("challenges", "solutions")
            beside = path.with_name(solutions) if "challenges" in path.name else None
            return parse_challenges(value, path, beside, is_test, left_out)
        else:
            raise UserError(f"{path} must hold a task, or tasks by id")
    return hide_fillers(tasks, path) if is_test else tasks


def _read_folder(folder: Path, left_out: LeftOut | None, is_test: bool) -> list[Task]:
    """Tasks of all JSON files in it and in the folders in it, sorted by name, which is their id."""
    names = (path for path in folder.rglob("*") if path.name.endswith((".json", ".json.gz")))
    files = sorted(names, key=_task_id)
    if not files:
        raise UserError(f"{folder}: there is no JSON file in it, one a task")
    if halves := HALVES & {part for file in files for part in file.relative_to(folder).parts[:-1]}:
        raise UserError(
            f"{folder}: the folder {min(halves)} in it is a subset of its own: name that folder "
            f"itself, so that no two subsets are mixed"
        )
    for file, after in pairwise(files):
        if _task_id(file) == _task_id(after):
            raise UserError(f"{file} and {after} have the same name, which is the task's id")
    return [task for file in files for task in _read_file(file, left_out, is_test)]


def _read_file(path: Path, left_out: LeftOut | None, is_test: bool) -> list[Task]:
    """The task of a file; none if it is left out."""
    task_id = _task_id(path)
    with leaving_out(task_id, left_out):
        try:
            value = read_json(path, "correct it or take it out of the folder")
        except UserError as error:
            raise TaskError(str(error), "no JSON") from error
        return [parse_task(task_id, value, None, str(path), is_test)]
    return []


def _task_id(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".json")
