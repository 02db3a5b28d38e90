"""The results folder: metrics, what was answered, and the page. It appears when it is complete."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.files import atomic_directory
from common.tokens import PAD
from dataset.canvas import canvas_side, read_back
from dataset.storage import read_build
from dataset.tasks import Grid, Task
from evaluation.boards import is_solved
from evaluation.predict import Answers
from evaluation.predictions import PREDICTIONS_FILE, Predictions
from evaluation.report import Attempt, ReportCase, write_report
from evaluation.submission import ATTEMPTS, check_submission, submission
from evaluation.summary import HEADLINES
from evaluation.test_set import ArcTestSet, BoardTestSet
from evaluation.voting import Ranking, Votes, score

METRICS_FILE = "metrics.json"
SUBMISSION_FILE = "submission.json"
STEP_ANSWERS_FILE = "step_answers.npz"
BOARDS_FILE = "boards.npz"
REPORT_FILE = "report.html"
REPORTED_BOARDS = 100
"""How many boards the page shows: the first ones."""
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
    """
    arrays = {PREDICTIONS_FILE: predictions.arrays()}
    if step_answers is not None:
        arrays[STEP_ANSWERS_FILE] = step_answers
    cases = arc_cases(tasks, votes, step_answers) if report else None
    submitted = submission(votes, tasks)
    check_submission(submitted, tasks)
    _write(output_dir, document, arrays, {SUBMISSION_FILE: submitted}, cases)


def write_board_results(
    output_dir: Path, test_set: BoardTestSet, answers: Answers, document: Document, report: bool
) -> None:
    """The same for boards, on which nothing votes."""
    inputs, labels = test_set.split.read(test_set.examples.rows[answers.rows])
    boards = {"inputs": inputs, "labels": labels, "answers": answers.steps}
    arrays = {BOARDS_FILE: boards | {"confidence": answers.confidence}}
    cases = board_cases(test_set, answers, inputs, labels) if report else None
    _write(output_dir, document, arrays, {}, cases)


def step_answers_of(test_set: ArcTestSet, answers: Answers) -> Arrays:
    """How the answers to the unaugmented test inputs developed: `canvas` is [M, S, cells]."""
    return {
        "task_id": test_set.task_ids[answers.followed],
        "test_index": test_set.examples.test_indices[answers.followed].astype(np.int32),
        "canvas": answers.steps,
    }


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
    document = {**(whole.by_name() if whole else {}), "test_set": over}
    if len(by_set) > 1:
        document["by_test_set"] = {
            name: {**s.by_name(), "tasks": s.num_tasks, "test_inputs": s.num_test_inputs}
            for name, s in by_set.items()
        }
    return document


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
    cases: Sequence[ReportCase] | None,
) -> None:
    """Write everything at once, and say what came out."""
    with atomic_directory(output_dir) as folder:
        for name, value in {METRICS_FILE: document, **objects}.items():
            (folder / name).write_text(json.dumps(value, indent=1 if value is document else None))
        for name, content in arrays.items():
            # Compressed, as canvases are mostly PAD.
            np.savez_compressed(folder / name, allow_pickle=False, **content)
        if cases is not None:
            title = f"Answers on {document['test_set']['name']}"
            write_report(folder / REPORT_FILE, title, _facts(document), cases)
    headlines = {key: document[key] for key in HEADLINES if key in document}
    for key, value in headlines.items():
        log.info("%s %.3f", key, value)
    if not headlines:
        log.info("No solutions are known for this test set: it was predicted, not scored.")
    log.info("Wrote %s", output_dir)


def _facts(document: Document) -> dict[str, str]:
    """The table at the top of the page."""
    facts = {
        key: f"{document[key]:.3f}"
        for key in HEADLINES
        if key in document and key != "exact_accuracy"
    }
    facts["test set"] = document["test_set"]["name"]
    facts["predictions"] = f"{document['num_predictions']:,}"
    for number, checkpoint in enumerate(document.get("checkpoints", []), start=1):
        weights = f"{checkpoint['weights']} weights"
        facts[f"checkpoint {number}"] = f"{checkpoint['checkpoint']} ({weights})"
    return facts


def arc_cases(tasks: Sequence[Task], votes: Votes, step_answers: Arrays | None) -> list[ReportCase]:
    """One case for each test input of each task, in order."""
    steps: dict[tuple[str, int], tuple[Grid | None, ...]] = {}
    if step_answers is not None:
        rows = zip(*(step_answers[key] for key in ("task_id", "test_index", "canvas")), strict=True)
        steps = {(str(i), int(n)): tuple(map(read_back, canvases)) for i, n, canvases in rows}
    return [
        ReportCase(
            task_id=task.task_id,
            test_index=index,
            demonstrations=task.train,
            test_input=pair.input,
            solution=pair.output,
            attempts=_attempts(votes.get((task.task_id, index))),
            step_answers=steps.get((task.task_id, index), ()),
        )
        for task in tasks
        for index, pair in enumerate(task.test)
    ]


def _attempts(ranking: Ranking | None) -> tuple[Attempt, ...]:
    if ranking is None:
        return ()
    ranked = zip(ranking.grids, ranking.votes, ranking.confidences, strict=True)
    return tuple(
        Attempt(grid, float(votes), float(confidence)) for grid, votes, confidence in ranked
    )[:ATTEMPTS]


def board_cases(
    test_set: BoardTestSet,
    answers: Answers,
    inputs: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
) -> list[ReportCase]:
    """The first boards; where an answer is right, it is the solution that is shown."""
    side = canvas_side(inputs.shape[1])

    def grid(board: npt.NDArray[np.uint8]) -> Grid:
        # PAD and empty cells are black, what stands on the board has ARC's colours.
        return (np.maximum(board, 1) - 1).reshape(side, side)

    cases = []
    solved = is_solved(test_set, answers)
    for index in range(min(len(inputs), REPORTED_BOARDS)):
        answer = grid(answers.canvases[index])
        is_hidden = bool((labels[index] == PAD).all())
        solution = answer if solved[index] else None if is_hidden else grid(labels[index])
        cases.append(
            ReportCase(
                task_id=f"board {index + 1}",
                test_index=0,
                demonstrations=(),
                test_input=grid(inputs[index]),
                solution=solution,
                attempts=(Attempt(answer, 1, float(answers.confidence[index])),),
                step_answers=tuple(map(grid, answers.steps[index])),
                num_attempts=1,
            )
        )
    return cases
