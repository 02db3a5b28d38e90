"""Score checkpoints by voting over augmentations, or recount the votes of saved predictions.

    torchrun --nproc_per_node=4 evaluate.py checkpoint=runs/compact-seed0
    python evaluate.py checkpoint=runs/compact-seed0/checkpoints/step_00010000 eval.max_variants=64
    python evaluate.py checkpoint=[runs/compact-seed0,runs/compact-seed1]
    python evaluate.py predictions=runs/compact-seed0/evaluation_step_00010000/predictions.npz

The output folder receives metrics.json, submission.json, predictions.npz, step_answers.npz and
report.html; for boards (N-Queens, Sudoku), on which nothing votes, metrics.json, boards.npz and
report.html.
"""

import logging
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.distributed import Ranks, start_ranks
from common.errors import UserError, exit_cleanly
from common.files import require_new_directory
from common.settings import validate
from config.loading import load_config
from config.schema import CheckpointConfig, EvaluateConfig
from dataset.batches import DataConfig
from dataset.storage import TEST_PUZZLES_FILE, fingerprint, read_json
from dataset.tasks import Task, load_tasks
from dataset.windows import typical_length
from evaluation.boards import BoardAnswers, BoardSet
from evaluation.evaluator import Outcome, metrics, vote
from evaluation.predict import EvalConfig
from evaluation.predictions import (
    first_variants,
    load_predictions,
    pool_predictions,
)
from evaluation.results_folder import (
    METRICS_FILE,
    describe_test_set,
    write_board_results,
    write_results,
)
from evaluation.validation import Answered, TestSet, answer_test_set, open_test_set
from models.build import build_model, choose_attention, describe
from models.puzzle_embedding import PuzzleEmbedding
from models.recursive import ArchConfig
from models.steps import ImprovementSteps
from models.supervision import SupervisionConfig
from training import checkpoints
from training.run_folder import CHECKPOINTS_FOLDER, find_checkpoint
from training.run_log import configure_logging

log = logging.getLogger(__name__)


@exit_cleanly
def main() -> None:
    config = load_config("evaluate", EvaluateConfig, __doc__ or "", sys.argv[1:])
    with start_ranks(config.device) as ranks:
        configure_logging(ranks.is_main)
        if config.predictions is not None:
            if ranks.is_main:  # Counting is quick; the other ranks have nothing to do.
                recount_predictions(config, as_list(config.predictions))
        else:
            evaluate_checkpoints(config, as_list(config.checkpoint), ranks)


def evaluate_checkpoints(config: EvaluateConfig, paths: Sequence[Path], ranks: Ranks) -> None:
    """Predict with every checkpoint, pool their votes, and write the results."""
    started = time.perf_counter()
    if len(paths) > 1 and config.eval.voting != "full":
        raise UserError(
            f"eval.voting={config.eval.voting} with {len(paths)} checkpoints: each would stop on "
            f"its own, and the surest would have the fewest votes; pool with eval.voting=full"
        )
    found = [find_checkpoint(path, "checkpoint") for path in paths]
    data_path = config.data.path or trained_on(found[0])
    output_dir = config.output_dir or default_output_dir(found)
    ranks.from_main(lambda: require_new_output(output_dir))
    test_set = open_test_set(data_path, config.eval)
    if isinstance(test_set, BoardSet) and len(paths) > 1:
        raise UserError("checkpoint: nothing votes on boards, so several cannot be pooled there")
    answered: list[Answered | None] = []
    facts: list[dict[str, Any]] = []
    for path in found:
        steps, about = load_model(config, config.eval, path, data_path, test_set, ranks)

        def progress(batches: Iterable[Any], total: int, path: Path = path) -> Iterable[Any]:
            unit = "batch" if config.eval.voting == "full" else "test input"
            return tqdm(batches, path.name, total, unit=unit, disable=not ranks.is_main)

        canvas = about["canvas"]
        answered.append(answer_test_set(steps, test_set, config.eval, canvas, ranks, progress))
        facts.append(about)
    if not ranks.is_main:
        return
    document = {
        "checkpoints": facts,
        "options": config.eval.model_dump(mode="json"),
        "num_ranks": ranks.world_size,
        "device": ranks.device.type,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started, 1),
    }
    if isinstance(test_set, BoardSet):
        (boards,) = (found for found in answered if isinstance(found, BoardAnswers))
        write_board_results(output_dir, data_path, boards, document, config.report)
        return
    done = [outcome for outcome in answered if isinstance(outcome, Outcome)]
    if len(done) > 1:
        for about, outcome in zip(facts, done, strict=True):
            about |= metrics(outcome)
    pooled = done[0] if len(done) == 1 else pool(done, test_set.tasks)
    document = {
        **metrics(pooled),
        "test_set": describe_test_set(data_path, test_set.tasks),
        "num_predictions": len(pooled.predictions),
        **document,
    }
    write_results(output_dir, test_set.tasks, pooled, document, config.report)


def recount_predictions(config: EvaluateConfig, paths: Sequence[Path]) -> None:
    """Vote again on saved predictions; several files are pooled."""
    predictions = pool_predictions([load_predictions(path) for path in paths])
    if config.eval.max_variants is not None:
        for path in paths:
            require_all_variants(path)
        predictions = first_variants(predictions, config.eval.max_variants)
    data_path = config.data.path or recorded_data_path(paths[0])
    output_dir = config.output_dir or paths[0].with_name("recount")
    require_new_output(output_dir)
    tasks = load_tasks(data_path / TEST_PUZZLES_FILE)
    outcome = vote(predictions, tasks)
    document = {
        **metrics(outcome),
        "test_set": describe_test_set(data_path, tasks),
        "predictions": [str(path) for path in paths],
        "num_predictions": len(predictions),
    }
    write_results(output_dir, tasks, outcome, document, config.report)


def load_model(
    config: CheckpointConfig,
    asked: EvalConfig,
    path: Path,
    data_path: Path,
    test_set: TestSet,
    ranks: Ranks,
) -> tuple[ImprovementSteps, dict[str, Any]]:
    """The checkpoint's model, ready to predict, and the facts that go with its score.

    Raises:
        UserError: the checkpoint is damaged, or was not trained on this dataset.
    """
    stored = checkpoints.load_checkpoint(path)
    metadata = test_set.split.metadata
    dataset = fingerprint(data_path, metadata)
    checkpoints.require_same_dataset(stored.dataset, dataset, f"checkpoint {path}")
    arch = validate(ArchConfig, stored.config.get("arch"), f"{path}: arch")
    data = validate(DataConfig, stored.config.get("data"), f"{path}: data")
    supervision = validate(
        SupervisionConfig, stored.config.get("supervision"), f"{path}: supervision"
    )
    if asked.weights == "ema" and stored.ema is None:
        raise UserError(f"eval.weights=ema: {path} holds no running mean, only raw weights")
    use_average = asked.weights != "raw" and stored.ema is not None
    weights = stored.ema if use_average and stored.ema is not None else stored.model
    canvas = asked.canvas_for(data.canvas)
    num_cells = typical_length(canvas, metadata.seq_len)
    attention = ranks.from_main(
        lambda: choose_attention(config.attention, arch, num_cells, config.precision, ranks.device)
    )
    model = build_model(
        arch,
        metadata.vocab_size,
        metadata.seq_len,
        ranks.device,
        config.precision,
        config.compile,
        attention,
    )
    checkpoints.load_weights(model, weights, str(path))
    puzzle_embedding = PuzzleEmbedding(
        metadata.num_puzzle_identifiers, arch.hidden_size, ranks.device
    )
    checkpoints.load_table(
        puzzle_embedding.weight,
        stored.puzzle_embedding,
        str(path),
        "data.path must name the dataset that the checkpoint was trained on",
    )
    steps = ImprovementSteps(
        model,
        puzzle_embedding,
        supervision,
        asked.num_supervision_steps,
        asked.guidance_weight,
    )
    about = {
        "checkpoint": str(path),
        "canvas": canvas,
        "attention": attention,
        "weights": "ema" if use_average else "raw",
        **describe(model, metadata.num_puzzle_identifiers, steps.num_steps),
    }
    return steps, about


def pool(outcomes: Sequence[Outcome], tasks: Sequence[Task]) -> Outcome:
    """One outcome from the votes of several checkpoints.

    Each one's accuracy stays its own; the developing answers are the first one's.
    """
    predictions = pool_predictions([outcome.predictions for outcome in outcomes])
    return vote(predictions, tasks)._replace(step_answers=outcomes[0].step_answers)


def default_output_dir(found: Sequence[Path], kind: str = "evaluation") -> Path:
    """In the first checkpoint's run folder, named by what it is and by the checkpoint."""
    run_dir = found[0].parent
    if run_dir.name == CHECKPOINTS_FOLDER:
        run_dir = run_dir.parent
    pooled = f"_and_{len(found) - 1}_more" if len(found) > 1 else ""
    return run_dir / f"{kind}_{found[0].name}{pooled}"


def trained_on(checkpoint: Path) -> Path:
    """The dataset that a checkpoint's configuration names."""
    data = checkpoints.stored_config(checkpoint).get("data")
    if not isinstance(data, dict) or not data.get("path"):
        raise UserError(f"data.path is needed: {checkpoint} does not record its dataset")
    return Path(data["path"])


def recorded_data_path(predictions: Path) -> Path:
    """The dataset that predictions were made on, from the metrics.json beside them."""
    path = predictions.with_name(METRICS_FILE)
    recorded = read_json(path) if path.is_file() else None
    if not isinstance(recorded, dict) or "dataset" not in recorded.get("test_set", {}):
        raise UserError(f"data.path is needed: there is no {path} that records it")
    return Path(recorded["test_set"]["dataset"])


def require_all_variants(predictions: Path) -> None:
    """Raise UserError for predictions of which voting that stopped early left some out."""
    path = predictions.with_name(METRICS_FILE)
    recorded = read_json(path) if path.is_file() else {}
    voting = recorded.get("options", {}).get("voting", "full")
    if voting != "full":
        raise UserError(
            f"eval.max_variants: {predictions} was made with eval.voting={voting}, it holds some "
            f"variants of each task and not the first ones"
        )


def require_new_output(output_dir: Path) -> None:
    require_new_directory(output_dir, "output_dir", "remove it or set output_dir=...")


def as_list(paths: Path | list[Path] | None) -> list[Path]:
    if paths is None:
        return []
    return paths if isinstance(paths, list) else [paths]


if __name__ == "__main__":
    main()
