"""Score checkpoints by voting over augmentations, or recount the votes of saved predictions.

    torchrun --nproc_per_node=4 evaluate.py checkpoint=runs/compact-seed0
    python evaluate.py checkpoint=runs/compact-seed0/checkpoints/step_00010000 eval.max_variants=64
    python evaluate.py checkpoint=[runs/compact-seed0,runs/compact-seed1]
    python evaluate.py checkpoint=runs/compact-seed0 eval.best=true
    python evaluate.py checkpoint=runs/compact-seed0 eval.pool_last=3
    python evaluate.py checkpoint=runs/compact-seed0 eval.split=validation
    python evaluate.py predictions=runs/compact-seed0/evaluation_step_00010000/predictions.npz

An evaluation that was cut off goes on where it was. The output folder receives metrics.json,
submission.json, predictions.npz, step_answers.npz and report.html (a recount no step_answers.npz);
for boards (N-Queens, Sudoku, mazes), on which nothing votes, metrics.json, boards.npz and
report.html.
"""

import logging
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from common.distributed import Ranks, start_ranks
from common.errors import UserError, exit_cleanly
from config.loading import load_config
from config.schema import EvaluateConfig, TrainedAs
from dataset.storage import puzzles_file
from dataset.task_files import load_tasks
from evaluation.predict import Answers, predict
from evaluation.predictions import (
    first_variants,
    load_predictions,
    pool_predictions,
    predictions_of,
)
from evaluation.results import (
    METRICS_FILE,
    REPORT_FILE,
    recorded_test_set,
    score_document,
    step_answers_of,
    write_arc_results,
    write_board_results,
)
from evaluation.shards import drop_unfinished, predict_in_shards, unfinished_folder
from evaluation.summary import answer_metrics, summarise
from evaluation.test_set import ArcTestSet, BoardTestSet, TestSet, open_test_set
from evaluation.voting import count_votes
from models.weights import MODEL_FILE
from training.checkpoints import load_trained, stored_config
from training.run_folder import default_output_dir, new_output, run_of
from training.run_log import configure_logging
from training.scores import chosen_checkpoints
from training.wandb_run import WandbConfig, WandbRun, without_seed

log = logging.getLogger(__name__)


@exit_cleanly
def main() -> None:
    config = load_config("evaluate", EvaluateConfig, __doc__ or "", sys.argv[1:])
    with start_ranks(config.device) as ranks:
        configure_logging(ranks.is_main)
        if config.predictions is not None:
            recount_predictions(config, as_list(config.predictions), ranks)
        else:
            evaluate_checkpoints(config, as_list(config.checkpoint), ranks)


def evaluate_checkpoints(config: EvaluateConfig, paths: Sequence[Path], ranks: Ranks) -> None:
    """Predict with every checkpoint, pool their votes, and write the results."""
    # A path or a configuration that is wrong should show before the first is predicted with.
    options = config.eval
    chosen = [chosen_checkpoints(path, options.best, options.pool_last) for path in paths]
    found = list(chain(*chosen))
    stored = [stored_config(path, TrainedAs) for path in found]
    split = config.eval.resolved(stored[0].data.canvas).split
    kind = "evaluation" if options.puzzle_id == "own" else f"evaluation_{options.puzzle_id}"
    output_dir = config.output_dir or default_output_dir(found, kind, split)
    if ranks.is_main and (output_dir / METRICS_FILE).is_file():
        drop_unfinished(output_dir)
    with new_output(output_dir, ranks):
        predict_and_write(config, found, stored, output_dir, ranks)


def predict_and_write(
    config: EvaluateConfig,
    found: Sequence[Path],
    stored: Sequence[TrainedAs],
    output_dir: Path,
    ranks: Ranks,
) -> None:
    """Predict with checkpoints, of which `stored` are the configurations, and write the results."""
    started = time.perf_counter()
    data_path = config.data.resolved(stored[0], found[0])
    asked = [config.eval.resolved(trained_as.data.canvas) for trained_as in stored]
    split = asked[0].split
    needed = "window" if "window" in {options.canvas for options in asked} else "whole"
    test_set = open_test_set(data_path, config.eval.max_variants, needed, split)
    if isinstance(test_set, BoardTestSet) and len(found) > 1:
        raise UserError("checkpoint: nothing votes on boards, so several cannot be pooled there")
    answered: list[Answers] = []
    checkpoints: list[dict[str, Any]] = []
    unfinished = unfinished_folder(output_dir)
    for number, (path, trained_as) in enumerate(zip(found, stored, strict=True)):
        kept = unfinished / str(number)
        answers, facts = predict_with(path, trained_as, test_set, config, kept, ranks)
        if answers is not None:
            answered.append(answers)
            checkpoints.append(facts)
    if not ranks.is_main:
        return
    described = {
        "checkpoints": checkpoints,
        "options": config.eval.model_dump(mode="json"),
        "num_ranks": ranks.world_size,
        "device": ranks.device.type,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started, 1),
    }
    if isinstance(test_set, BoardTestSet):
        document = write_boards(config, output_dir, test_set, answered[0], described)
    else:
        document = write_votes(config, output_dir, test_set, answered, stored[0], described)
    drop_unfinished(output_dir)
    tell_wandb(config.wandb, found, output_dir, document)


def predict_with(
    path: Path,
    trained_as: TrainedAs,
    test_set: TestSet,
    config: EvaluateConfig,
    kept: Path,
    ranks: Ranks,
) -> tuple[Answers | None, dict[str, Any]]:
    """What one checkpoint answers (on the main rank), and the facts that go with its score.

    `kept`: folder for what is answered, from which it goes on if it is cut off.
    """
    asked = config.eval.resolved(trained_as.data.canvas)
    trained, facts = load_trained(
        path,
        trained_as.arch,
        trained_as.supervision,
        test_set.fingerprint,
        test_set.puzzle_factors,
        asked.weights,
        config,
        ranks.device,
    )

    depends_on = {
        **facts,
        "written": (path / MODEL_FILE).stat().st_mtime_ns,
        "options": asked.model_dump(mode="json"),
        "dataset": test_set.fingerprint,
        "split": test_set.split_name,
    }
    answers = predict_in_shards(
        lambda rows: predict(
            trained, test_set, asked, ranks, f"predicting, {path.name}", rows
        ),
        len(test_set), kept, depends_on, ranks,
    )  # fmt: skip
    sizes = trained.sizes(asked.num_supervision_steps)
    return answers, {**facts, "canvas": asked.canvas, **sizes}


def write_votes(
    config: EvaluateConfig,
    output_dir: Path,
    test_set: ArcTestSet,
    answered: Sequence[Answers],
    first_trained_as: TrainedAs,
    described: dict[str, Any],
) -> dict[str, Any]:
    """Count the votes of all checkpoints together, score them, and write everything."""
    tasks = test_set.tasks
    predictions = pool_predictions([predictions_of(test_set, answers) for answers in answered])
    votes = count_votes(predictions, tasks)
    metrics = score_document(votes, tasks, test_set.path, test_set.split_name)
    if len(answered) == 1:
        metrics |= answer_metrics(answered[0])
    else:  # What single answers are like is each checkpoint's own.
        for facts, answers in zip(described["checkpoints"], answered, strict=True):
            facts |= summarise(test_set, answers)
    document = {**metrics, "num_predictions": len(predictions), **described}
    first = first_trained_as  # How answers developed is shown of the first checkpoint alone.
    steps = step_answers_of(
        test_set, answered[0], first.supervision, first.arch.num_supervision_steps
    )
    write_arc_results(output_dir, tasks, predictions, votes, steps, document, config.report)
    return document


def write_boards(
    config: EvaluateConfig,
    output_dir: Path,
    test_set: BoardTestSet,
    answers: Answers,
    described: dict[str, Any],
) -> dict[str, Any]:
    """Score answers to boards and write everything."""
    path = test_set.path
    document = {
        **summarise(test_set, answers),
        "test_set": {
            "name": path.name,
            "split": test_set.split_name,
            "dataset": str(path),
            "puzzle": test_set.puzzle,
        },
        "num_predictions": len(answers.rows),
        **described,
    }
    write_board_results(output_dir, test_set, answers, document, config.report)
    return document


def tell_wandb(
    config: WandbConfig, found: Sequence[Path], output_dir: Path, document: dict[str, Any]
) -> None:
    """Record the scores and keep the page, in a run of its own beside that of the training."""
    name = run_of(found[0]).resolve().name
    facts = {key: value for key, value in document.items() if not isinstance(value, float)}
    group = config.model_copy(update={"group": config.group or without_seed(name)})
    run = WandbRun(output_dir, group, facts, "evaluate", f"{name} {output_dir.name}")
    scores = {key: value for key, value in document.items() if isinstance(value, float)}
    run.record(0, {f"eval/{key}": value for key, value in scores.items()}, media={})
    if (page := output_dir / REPORT_FILE).is_file():
        run.attach(page, "report")
    run.finish()


def recount_predictions(config: EvaluateConfig, paths: Sequence[Path], ranks: Ranks) -> None:
    """Vote again on saved predictions; several files are pooled."""
    output_dir = config.output_dir or paths[0].with_name("recount")
    with new_output(output_dir, ranks):
        if ranks.is_main:  # Counting is quick; the other ranks have nothing to do.
            recount_and_write(config, paths, output_dir)


def recount_and_write(config: EvaluateConfig, paths: Sequence[Path], output_dir: Path) -> None:
    """Count the votes of saved predictions and write the results."""
    predictions = pool_predictions([load_predictions(path) for path in paths])
    if config.eval.max_variants is not None:
        predictions = first_variants(predictions, config.eval.max_variants)
    recorded = recorded_test_set(paths[0].parent)
    if config.data.path is None and "dataset" not in recorded:
        raise UserError(
            f"data.path is needed: there is no {paths[0].with_name(METRICS_FILE)} that records it"
        )
    data_path = config.data.path or Path(recorded["dataset"])
    # Earlier versions predicted no other split, and did not record it.
    split = recorded.get("split", "test") if config.eval.split == "auto" else config.eval.split
    tasks = load_tasks(data_path / puzzles_file(split))
    votes = count_votes(predictions, tasks)
    document = {
        **score_document(votes, tasks, data_path, split),
        "predictions": [str(path) for path in paths],
        "num_predictions": len(predictions),
    }
    write_arc_results(output_dir, tasks, predictions, votes, None, document, config.report)


def as_list(paths: Path | list[Path] | None) -> list[Path]:
    if paths is None:
        return []
    return paths if isinstance(paths, list) else [paths]


if __name__ == "__main__":
    main()
