"""The results folder: metrics, what was answered, and the page. It appears when it is complete."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from common.files import atomic_directory
from common.json_files import read_object
from common.tokens import PAD
from dataset.storage import puzzles_file, read_build
from dataset.task_files import tasks_to_json
from dataset.tasks import Task
from evaluation.metrics import targets_at_test_time
from evaluation.pages import arc_page, board_page
from evaluation.predict import Answers
from evaluation.predictions import PREDICTIONS_FILE, Predictions
from evaluation.report import Page, write_page
from evaluation.submission import ATTEMPTS, check_submission, submission
from evaluation.summary import HEADLINES
from evaluation.test_set import ArcTestSet, BoardTestSet
from evaluation.uncertainty import share_of
from evaluation.voting import Scores, Votes, score
from models.supervision import SupervisionConfig

METRICS_FILE = "metrics.json"
SUBMISSION_FILE = "submission.json"
STEP_ANSWERS_FILE = "step_answers.npz"
BOARDS_FILE = "boards.npz"
REPORT_FILE = "report.html"
Document = dict[str, Any]
"""What `metrics.json` holds."""
Arrays = dict[str, npt.NDArray[Any]]
"""What an .npz file holds."""

log = logging.getLogger(__name__)


def write_arc_results(
    output_dir: Path,
    tasks: Sequence[Task],
    predictions: Predictions,
    votes: Votes,
    step_answers: Arrays | None,
    document: Document,
    report: bool,
    with_puzzles: bool = False,
) -> None:
    """Write predictions, votes and what was scored; nothing unless the submission is valid.

    Args:
        output_dir: folder to create.
        tasks: of the test set.
        predictions: all that vote.
        votes: counted.
        step_answers: see `step_answers_of`; None where there was no model.
        document: for `metrics.json`.
        report: whether the page is written.
        with_puzzles: also write the tasks, where no dataset holds them that will stay.
    """
    arrays = {PREDICTIONS_FILE: predictions.arrays()}
    if step_answers is not None:
        arrays[STEP_ANSWERS_FILE] = step_answers
    page = None
    if report:
        over = document["test_set"]
        subsets = subsets_of(Path(over["dataset"]), over["split"], tasks)
        page = arc_page(tasks, votes, step_answers, document, subsets)
    submitted = submission(votes, tasks)
    check_submission(submitted, tasks)
    objects = {SUBMISSION_FILE: submitted}
    if with_puzzles:
        objects[puzzles_file(document["test_set"]["split"])] = tasks_to_json(tasks)
    _write(output_dir, document, arrays, objects, page)


def write_board_results(
    output_dir: Path, test_set: BoardTestSet, answers: Answers, document: Document, report: bool
) -> None:
    """The same for boards, on which nothing votes."""
    inputs, labels = test_set.split.read(test_set.examples.rows[answers.rows])
    if "solved" in document:
        share = share_of(document["solved"] * len(inputs), len(inputs))
        document = {**document, "solved_interval": [share.low, share.high]}
    boards = {"inputs": inputs, "labels": labels, "answers": answers.steps}
    arrays = {BOARDS_FILE: boards | {"confidence": answers.confidence}}
    page = board_page(test_set, answers, inputs, labels, document) if report else None
    _write(output_dir, document, arrays, {}, page)


def step_answers_of(
    test_set: ArcTestSet, answers: Answers, supervision: SupervisionConfig, trained_steps: int
) -> Arrays:
    """How the answers to the unaugmented test inputs developed, and what they were trained towards.

    `canvas` and `targets` are [M, S, cells]; beyond the trained steps the target stays the
    solution. Targets are PAD where they do not count, and throughout where the solution is hidden;
    there are none if no solution is known. See `targets_at_test_time` for those that are random.
    """
    followed = answers.followed
    arrays: Arrays = {
        "task_id": test_set.task_ids[followed],
        "test_index": test_set.examples.test_indices[followed].astype(np.int32),
        "canvas": answers.steps,
    }
    canvases = test_set.split.read(test_set.examples.rows[followed])
    inputs, labels = (torch.from_numpy(part.astype(np.int64)) for part in canvases)
    is_known = (labels != PAD).any(dim=1)
    if is_known.any():
        rows = torch.from_numpy(followed)
        frames = targets_at_test_time(
            supervision, trained_steps, inputs, labels, rows, test_set.colours
        )
        steps = torch.arange(1, answers.steps.shape[1] + 1).clamp(max=trained_steps)
        counted = is_known.view(-1, 1, 1) & (frames >= 0)
        arrays["targets"] = torch.where(counted, frames, PAD)[:, steps].to(torch.uint8).numpy()
    return arrays


def score_document(
    votes: Votes, tasks: Sequence[Task], data_path: Path, split_name: str
) -> Document:
    """Scores, and what they are over, for `metrics.json`.

    Two test sets of the same name may differ in their test inputs; and solutions may be hidden.

    Args:
        votes: counted.
        tasks: of the split.
        data_path: of the dataset.
        split_name: "validation" or "test".
    """
    sets = _test_sets(data_path, split_name, tasks)
    by_set = {name: found for name, members in sets.items() if (found := score(votes, members))}
    whole = score(votes, tasks)
    num_inputs = sum(len(task.test) for task in tasks)
    num_scored = whole.num_test_inputs if whole else 0
    over = {
        "name": " + ".join(by_set or sets),
        "split": split_name,
        "dataset": str(data_path),
        "tasks": whole.num_tasks if whole else 0,
        "test_inputs": num_scored,
    }
    if num_scored < num_inputs:
        over["hidden_test_inputs"] = num_inputs - num_scored
    document = {**(_with_intervals(whole) if whole else {}), "test_set": over}
    if len(by_set) > 1:
        document["by_test_set"] = {
            name: {**_with_intervals(s), "tasks": s.num_tasks, "test_inputs": s.num_test_inputs}
            for name, s in by_set.items()
        }
    return document


def recorded_test_set(results: Path) -> dict[str, Any]:
    """What the evaluation in a folder was on, from its metrics.json; empty without one."""
    path = results / METRICS_FILE
    recorded = read_object(path, "evaluate again") if path.is_file() else {}
    test_set = recorded.get("test_set")
    test_set = test_set if isinstance(test_set, dict) else {}
    return {key: value for key, value in test_set.items() if isinstance(value, str)}


def _with_intervals(scores: Scores) -> Document:
    """The scores by name, those of the attempts with their 95% intervals over tasks."""
    document: Document = dict(scores.by_name())
    for k in range(1, ATTEMPTS + 1):
        over_tasks = share_of(scores.over_tasks[k] * scores.num_tasks, scores.num_tasks)
        document[f"pass@{k}_interval"] = [over_tasks.low, over_tasks.high]
    return document


def subsets_of(data_path: Path, split_name: str, tasks: Sequence[Task]) -> dict[str, str]:
    """Task -> the test set that it is of; of the last one if of several."""
    sets = _test_sets(data_path, split_name, tasks)
    return {task.task_id: name for name, members in sets.items() for task in members}


def _test_sets(
    data_path: Path, split_name: str, tasks: Sequence[Task]
) -> dict[str, Sequence[Task]]:
    """The test sets that a split holds, by name, as far as the builder has recorded them."""
    build, is_validation = read_build(data_path), split_name == "validation"
    if build.test_sets and not is_validation:
        members = {name: set(ids) for name, ids in build.test_sets.items()}
        return {name: [t for t in tasks if t.task_id in ids] for name, ids in members.items()}
    names = build.options.test_set_names or ()
    if is_validation:
        names = tuple(name for name in build.options.subsets or () if name not in names)
    name = " + ".join(names) or data_path.name
    return {f"validation tasks of {name}" if is_validation else name: tasks}


def _write(
    output_dir: Path,
    document: Document,
    arrays: Mapping[str, Arrays],
    objects: Mapping[str, Any],
    page: Page | None,
) -> None:
    """Write everything at once, and say what came out."""
    with atomic_directory(output_dir) as folder:
        for name, value in {METRICS_FILE: document, **objects}.items():
            (folder / name).write_text(json.dumps(value, indent=1 if value is document else None))
        for name, content in arrays.items():
            # Compressed, as canvases are mostly PAD.
            np.savez_compressed(folder / name, allow_pickle=False, **content)
        if page is not None:
            write_page(folder / REPORT_FILE, page)
    headlines = {key: document[key] for key in HEADLINES if key in document}
    for key, value in headlines.items():
        log.info("%s %.3f", key, value)
    if not headlines:
        log.info("No solutions are known for this test set: it was predicted, not scored.")
    log.info("Wrote %s", output_dir)
