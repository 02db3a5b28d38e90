"""Answer your own ARC puzzles with a trained model: adapt to their demonstrations, then vote.

    python predict.py checkpoint=runs/compact-seed0 puzzles=my_task.json
    python predict.py checkpoint=exported/compact puzzles=folder/of/tasks adapt.weights=all
    python predict.py checkpoint=runs/compact-seed0 puzzles=arc-agi_test_challenges.json \
        num_aug=100 adapt.max_steps=null adapt.max_minutes=30

The model knows a puzzle by its vector, which training on the puzzle's demonstrations makes. So the
puzzles' variants get new vectors, the mean of those that were trained; these (or all weights) learn
from the demonstrations; the variants of each test input are answered, and vote. The output folder
receives metrics.json, submission.json, predictions.npz, step_answers.npz, test_puzzles.json and
report.html. Solutions, where the files have them, only score.
"""

import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from common.distributed import Ranks, start_ranks
from common.errors import UserError, exit_cleanly
from common.files import atomic_write
from config.loading import load_config
from config.schema import AdaptedFrom, OwnPuzzlesConfig
from dataset.batches import TrainingBatches, require_shares
from dataset.build_arc_dataset import build
from dataset.build_plan import BuildOptions
from dataset.canvas import ARC_COLOURS, VOCAB_SIZE
from dataset.factors import identity_of
from dataset.loading import BatchLoader
from dataset.splits import open_split
from dataset.task_files import subset_files, without_solutions
from dataset.task_sources import read_tasks
from dataset.tasks import LeftOut, Task, TaskError, count_left_out
from evaluation.predict import Answers, predict
from evaluation.predictions import predictions_of
from evaluation.results import REPORT_FILE, score_document, step_answers_of, write_arc_results
from evaluation.shards import unfinished_folder
from evaluation.summary import answer_metrics
from evaluation.test_set import ArcTestSet, open_test_set
from evaluation.voting import count_votes
from models.pretrained import StoredModel
from models.steps import TrainedModel
from training.adaptation import Adapted, adapt, with_new_puzzles
from training.checkpoints import load_stored, stored_config
from training.run_folder import default_output_dir, find_checkpoint, new_output
from training.run_log import configure_logging

SUBSET = "puzzles"
"""What the builder calls them."""

log = logging.getLogger(__name__)


@exit_cleanly
def main() -> None:
    config = load_config("predict", OwnPuzzlesConfig, __doc__ or "", sys.argv[1:])
    with start_ranks(config.device) as ranks:
        configure_logging(ranks.is_main)
        answer_puzzles(config, ranks)


def answer_puzzles(config: OwnPuzzlesConfig, ranks: Ranks) -> None:
    """Adapt a checkpoint to the puzzles, predict, and write the results."""
    assert config.checkpoint is not None, "the schema requires one"
    started = time.perf_counter()
    # What is wrong with the model or with the puzzles should show before anything takes time.
    path = find_checkpoint(config.checkpoint, "checkpoint")
    trained_as = stored_config(path, AdaptedFrom)
    stored = load_stored(path, trained_as.arch, trained_as.supervision, config.eval.weights)
    tasks = read_puzzles(config, canvas_side_of(stored))
    say_what_is_known(stored, tasks)
    require_shares(config.adapt.batch_size, ranks.world_size, "adapt.batch_size")
    name = name_of(config)
    output_dir = config.output_dir or default_output_dir([path], f"predictions_{name}", "test")
    with new_output(output_dir, ranks), scratch_folder(output_dir, ranks) as folder:
        data_path = folder / "dataset"
        ranks.from_main(lambda: build_blind(folder, data_path, tasks, stored, config))
        asked = config.eval.resolved(trained_as.data.canvas)
        test_set = open_test_set(data_path, asked.max_variants, asked.canvas)
        assert isinstance(test_set, ArcTestSet), "it was built of tasks"
        trained, adapted = adapted_model(data_path, stored, trained_as, config, ranks)
        # All that is learned is learned now: the solutions can do no more than score.
        test_set.reveal(tasks)

        answers = predict(trained, test_set, asked, ranks, "predicting")
        if answers is None:  # All but the main rank have only helped.
            return
        facts = {"checkpoint": str(path), "weights": stored.kind, "canvas": asked.canvas}
        described = {
            "checkpoints": [facts | trained.sizes(asked.num_supervision_steps)],
            "adaptation": adapted._asdict(),
            "options": config.model_dump(mode="json"),
            "num_ranks": ranks.world_size,
            "device": ranks.device.type,
            "torch": torch.__version__,
            "seconds": round(time.perf_counter() - started, 1),
        }
        write_votes(config, output_dir, test_set, answers, trained, described)
    if config.report:
        log.info("Open %s to see the answers.", output_dir / REPORT_FILE)


# ---- the puzzles -----------------------------------------------------------------------------


def canvas_side_of(stored: StoredModel) -> int:
    """The side of the canvas that the model reads; UserError if it does not read ARC's grids."""
    facts = stored.facts()
    side = round(facts.seq_len**0.5)
    if facts.vocab_size != VOCAB_SIZE or side**2 != facts.seq_len:
        raise UserError(
            f"{stored.source} reads {facts.seq_len} cells of {facts.vocab_size} tokens, and no ARC "
            f"grids (those have {VOCAB_SIZE}): give one that was trained on ARC tasks"
        )
    return side


def read_puzzles(config: OwnPuzzlesConfig, side: int) -> list[Task]:
    """The puzzles that fit a canvas, as far as their demonstrations and test inputs show.

    Raises:
        UserError: there are none, or one cannot be used and is not to be left out.
    """
    assert config.puzzles is not None, "the schema requires them"
    left_out: LeftOut = {}
    tasks = read_tasks(config.puzzles, left_out, is_test=True)
    kept = []
    for task, shown in zip(tasks, without_solutions(tasks), strict=True):
        if shown.max_side <= side:
            kept.append(task)
            continue
        left_out[task.task_id] = TaskError(
            f"{config.puzzles}: task '{task.task_id}' has a grid of {shown.max_side} cells a side, "
            f"and the checkpoint's canvas has {side}",
            f"grid over {side} cells a side",
        )
    if not config.skip_invalid and left_out:
        first = next(iter(left_out.values()))
        raise UserError(
            f"{first} ({len(left_out)} of {len(left_out) + len(kept)} tasks cannot be used); "
            f"skip_invalid=true leaves such tasks out"
        )
    for reason, count in count_left_out(left_out.values()).items():
        log.info("Left out: %d (%s)", count, reason)
    if not kept:
        raise UserError(f"puzzles={config.puzzles}: no task is left")
    num_inputs = sum(len(task.test) for task in kept)
    log.info("%s: %d tasks, %d test inputs", config.puzzles, len(kept), num_inputs)
    return kept


def say_what_is_known(stored: StoredModel, tasks: list[Task]) -> None:
    """A puzzle may have the name of one that was trained on, and need not be the same."""
    named = {*stored.tasks, *(stored.facts().tasks or ())}
    if known := [task.task_id for task in tasks if task.task_id in named]:
        log.info(
            "Named as tasks that the model was trained on, and taken for new all the same: %s",
            ", ".join(known),
        )


def name_of(config: OwnPuzzlesConfig) -> str:
    assert config.puzzles is not None, "the schema requires them"
    return config.puzzles.resolve().name.removesuffix(".gz").removesuffix(".json")


@contextmanager
def scratch_folder(output_dir: Path, ranks: Ranks) -> Iterator[Path]:
    """A folder beside the results while they are made; also that of a killed process goes."""
    folder = unfinished_folder(output_dir)

    def make() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    ranks.from_main(make)
    try:
        yield folder
    finally:
        if ranks.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def build_blind(
    folder: Path, data_path: Path, tasks: list[Task], stored: StoredModel, config: OwnPuzzlesConfig
) -> None:
    """Build a dataset of the puzzles' variants from files in which there are no solutions.

    So nothing that is trained, chosen or drawn can depend on them: not even the variants, of which
    the builder leaves out those that look the same in all pairs.
    """
    prefix = str(folder / "arc")
    for path, content in subset_files(prefix, SUBSET, without_solutions(tasks)).items():
        atomic_write(path, content)
    build(
        BuildOptions(
            input_file_prefix=prefix,
            output_dir=data_path,
            subsets=(SUBSET,),
            test_set_name=SUBSET,
            num_aug=config.num_aug,
            seed=config.seed,
            canvas_side=canvas_side_of(stored),
            layout="compact",
            workers=0,
        )
    )


# ---- the model -------------------------------------------------------------------------------


def adapted_model(
    data_path: Path,
    stored: StoredModel,
    trained_as: AdaptedFrom,
    config: OwnPuzzlesConfig,
    ranks: Ranks,
) -> tuple[TrainedModel, Adapted]:
    """The model with vectors for the puzzles of a dataset, adapted to its train split."""
    split = open_split(data_path, "train")
    metadata, arch = split.metadata, trained_as.arch
    _, factors = identity_of(data_path, metadata, arch.is_factored)
    task_names = factors.task_names if factors is not None else ()
    fresh = with_new_puzzles(stored, metadata.num_puzzle_identifiers, task_names)
    model = fresh.network(metadata.vocab_size, metadata.seq_len, config, ranks.device, factors)
    embedding = fresh.embedding(model, metadata.num_puzzle_identifiers, "use another checkpoint")
    trained = TrainedModel(model, embedding, trained_as.supervision)
    if config.adapt.weights == "none":
        return trained, Adapted("none")
    # Cells and variants are shown as in training; trajectories are of the tasks of training.
    data = trained_as.data.model_copy(update={"trajectories": None})
    batches = TrainingBatches(split, config.adapt.batch_size, config.seed, data.variants)
    loader = BatchLoader(
        batches, data, ranks, arch.prefix_length, config.adapt.micro_batch_tokens,
        key="adapt.micro_batch_tokens",
    )  # fmt: skip
    adapted = adapt(
        trained, config.adapt, trained_as.optim, ARC_COLOURS, iter(loader), config.seed, ranks,
        config,
    )  # fmt: skip
    return trained, adapted


# ---- the results -----------------------------------------------------------------------------


def write_votes(
    config: OwnPuzzlesConfig,
    output_dir: Path,
    test_set: ArcTestSet,
    answers: Answers,
    trained: TrainedModel,
    described: dict[str, Any],
) -> None:
    """Count the votes, score them as far as solutions are known, and write everything."""
    predictions = predictions_of(test_set, answers)
    votes = count_votes(predictions, test_set.tasks)
    document = {
        **score_document(votes, test_set.tasks, output_dir, test_set.split_name),
        **answer_metrics(answers),
        "num_predictions": len(predictions),
        **described,
    }
    document["test_set"] |= {"name": name_of(config), "puzzles": str(config.puzzles)}
    steps = step_answers_of(test_set, answers, trained.supervision, trained.trained_steps)
    write_arc_results(
        output_dir, test_set.tasks, predictions, votes, steps, document, config.report,
        with_puzzles=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
