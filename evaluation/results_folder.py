"""The results folder: metrics, what was answered, and the page. It appears when it is complete."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.files import atomic_directory
from dataset.storage import BUILD_FILE, read_json
from dataset.tasks import Task
from evaluation.boards import BoardAnswers, board_cases, board_metrics
from evaluation.evaluator import Outcome
from evaluation.predictions import PREDICTIONS_FILE
from evaluation.report import ReportCase, write_report
from evaluation.report_cases import report_cases
from evaluation.scoring import submission

METRICS_FILE = "metrics.json"
SUBMISSION_FILE = "submission.json"
STEP_ANSWERS_FILE = "step_answers.npz"
BOARDS_FILE = "boards.npz"
REPORT_FILE = "report.html"

log = logging.getLogger(__name__)


def write_results(
    output_dir: Path,
    tasks: Sequence[Task],
    outcome: Outcome,
    document: dict[str, Any],
    report: bool,
) -> None:
    """Write everything at once: the folder appears when it is complete."""
    with atomic_directory(output_dir) as folder:
        (folder / METRICS_FILE).write_text(json.dumps(document, indent=1))
        (folder / SUBMISSION_FILE).write_text(json.dumps(submission(outcome.rankings, tasks)))
        outcome.predictions.save(folder / PREDICTIONS_FILE)
        if outcome.step_answers is not None:
            outcome.step_answers.save(folder / STEP_ANSWERS_FILE)
        if report:
            write_page(folder, document, report_cases(tasks, outcome))
    for key in ("pass@1", "pass@2", "exact_accuracy"):
        if key in document:
            log.info("%s %.3f", key, document[key])
    if outcome.scores is None:
        log.info("No solutions are known for this test set: it was predicted, not scored.")
    log.info("Wrote %s", output_dir)


def write_board_results(
    output_dir: Path,
    data_path: Path,
    found: BoardAnswers,
    document: dict[str, Any],
    report: bool,
) -> None:
    """The same for boards."""
    document = {
        **board_metrics(found),
        "test_set": {"name": data_path.name, "dataset": str(data_path), "puzzle": found.puzzle},
        "num_predictions": len(found.inputs),
        **document,
    }
    with atomic_directory(output_dir) as folder:
        (folder / METRICS_FILE).write_text(json.dumps(document, indent=1))
        found.save(folder / BOARDS_FILE)
        if report:
            write_page(folder, document, board_cases(found))
    for key in ("solved", "exact_accuracy", "exact_ceiling"):
        if key in document:
            log.info("%s %.3f", key, document[key])
    log.info("Wrote %s", output_dir)


def write_page(folder: Path, document: dict[str, Any], cases: list[ReportCase]) -> None:
    title = f"Answers on {document['test_set']['name']}"
    write_report(folder / REPORT_FILE, title, facts_of(document), cases)


def facts_of(document: dict[str, Any]) -> dict[str, str]:
    """The table at the top of the report."""
    facts: dict[str, str] = {
        key: f"{document[key]:.3f}"
        for key in ("pass@1", "pass@2", "solved", "valid", "keeps_given", "exact_ceiling")
        if key in document
    }
    facts["test set"] = document["test_set"]["name"]
    facts["predictions"] = f"{document['num_predictions']:,}"
    for number, about in enumerate(document.get("checkpoints", []), start=1):
        facts[f"checkpoint {number}"] = f"{about['checkpoint']} ({about['weights']} weights)"
    return facts


def describe_test_set(data_path: Path, tasks: Sequence[Task]) -> dict[str, Any]:
    """What a score is over: two test sets of the same name may differ in their test inputs."""
    build_path = data_path / BUILD_FILE
    build = read_json(build_path) if build_path.is_file() else {}
    names = build.get("options", {}).get("test_set_names", [])
    return {
        "name": " + ".join(names) or data_path.name,
        "dataset": str(data_path),
        "tasks": len(tasks),
        "test_inputs": sum(len(task.test) for task in tasks),
    }
