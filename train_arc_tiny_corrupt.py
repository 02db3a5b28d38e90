"""Train a tiny recursive transformer on ARC-AGI with a target for every improvement step.

    torchrun --nproc_per_node=4 train_arc_tiny_corrupt.py
    torchrun --nproc_per_node=4 train_arc_tiny_corrupt.py resume=auto
    python train_arc_tiny_corrupt.py arch=medium data.path=data/my-dataset run_dir=runs/mine

Without overrides this trains the compact model (0.86M parameters) on data/arc1concept-aug-1000.
The run folder receives config.yaml, metrics.jsonl, wandb/ and checkpoints/.
"""

import logging
import math
import sys
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from common.distributed import Ranks, peak_memory, start_ranks
from common.errors import exit_cleanly
from config.loading import load_config
from config.schema import TrainConfig
from dataset.batches import TrainingBatches, require_shares
from dataset.boards import solution_tokens
from dataset.factors import identity_of
from dataset.loading import BatchLoader, require_compact
from dataset.splits import open_split, require_square
from evaluation.predict import predict
from evaluation.summary import headline, summarise
from evaluation.test_set import ArcTestSet, BoardTestSet, open_test_set, split_while_training
from models.build import (
    build_model,
    build_supervision,
    describe,
    is_compiled,
    puzzle_embedding_of,
)
from models.steps import TrainedModel
from models.targets import TARGETS
from training.checkpoints import CheckpointFolder, Rating
from training.clock import Clock
from training.engine import Engine, is_captured
from training.memory import estimate_memory, require_memory
from training.metrics import MetricSums, require_updates
from training.optimizers import WeightAverage, build_optimizers, lr_schedule, weights_in_place
from training.profiling import profiled_batches
from training.run_folder import find_start, is_inside, write_run_config
from training.run_log import NoLog, RunLog, configure_logging
from training.state import TrainingState

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What the functions below share."""

    config: TrainConfig
    ranks: Ranks
    state: TrainingState
    loader: BatchLoader
    engine: Engine
    metrics: MetricSums
    total_steps: int

    @property
    def lr_factor(self) -> float:
        """Of the optimizer step to come, on all peak learning rates."""
        return lr_schedule(self.config.optim, self.state.step, self.total_steps, self.time_used)

    @property
    def time_used(self) -> float:
        """Share of the run's budget of training time; 0 without one."""
        budget = self.config.train.max_minutes
        return 0.0 if budget is None else self.state.seconds / (60 * budget)

    @property
    def is_done(self) -> bool:
        return self.state.step >= self.total_steps or self.time_used >= 1

    @property
    def scored_weights(self) -> Literal["raw", "ema"]:
        """Which weights evaluations use."""
        averaged = self.state.average is not None and self.config.eval.weights != "raw"
        return "ema" if averaged else "raw"

    def is_due(self, every: int | None) -> bool:
        """Whether a multiple of `every` steps lies in the batch just done."""
        return every is not None and self.state.step % every < self.engine.updates_per_batch


@exit_cleanly
def main() -> None:
    config = load_config("train", TrainConfig, __doc__ or "", sys.argv[1:])
    with start_ranks(config.device) as ranks:
        configure_logging(ranks.is_main)
        train(config, ranks)


def train(config: TrainConfig, ranks: Ranks) -> None:
    loop = config.train
    clock = Clock(ranks, is_shared=bool(loop.max_minutes or loop.stop_after_minutes))
    # The data first: what is wrong with it should show before anything is built or written.
    batches = open_batches(config, ranks)
    test_set = None
    if loop.eval_every is not None:
        path = config.data.path
        assert path is not None, "the schema requires a path to train on"
        options = config.eval.resolved(config.data.canvas, split_while_training(path))
        test_set = open_test_set(path, options.max_variants, options.canvas, options.split)
    # The main rank looks for all: on a shared file system, ranks may not see the same yet.
    start = ranks.from_main(lambda: find_start(config.run_dir, config.resume))

    run = build_run(config, ranks, batches)
    describe_run(run)
    state, wandb_run_id = run.state, None
    if start is not None:
        run.loader.position, run.engine.carried, wandb_run_id = state.restore(start, ranks, config)
        if not is_inside(start, config.run_dir):  # A fork is a run of its own.
            wandb_run_id = None
    elif config.init_from is not None:
        state.start_from(config.init_from, config.init_puzzle_embedding)
    if loop.dry_run:
        log.info("Dry run: everything was checked, nothing is trained or written.")
        return
    resolved = config.model_dump(mode="json")
    ranks.from_main(lambda: write_run_config(config.run_dir, resolved))
    first_step = state.step

    # Only the main rank writes; the others have a log that does nothing, so none has to ask.
    run_log: RunLog | NoLog = NoLog()
    if ranks.is_main:
        run_config = {**resolved, **describe(state.model, state.puzzle_embedding)}
        run_log = RunLog(config.run_dir, config.wandb, run_config, state.step, wandb_run_id)
    folder = CheckpointFolder(config.run_dir, loop.keep_checkpoints)
    stream = iter(run.loader)
    bar = tqdm(total=run.total_steps, initial=state.step, unit="step", disable=not ranks.is_main)
    profiling = profiled_batches(loop.profile if ranks.is_main else None, ranks.device)
    with closing(run_log), logging_redirect_tqdm(), bar, profiling as end_of_batch:
        while True:
            # Decided once a batch, by the step and the main rank's clock: all ranks decide alike.
            state.seconds += clock.lap()
            is_done = run.is_done
            # Never before a first batch, so that pieces get on however short they are.
            stop_now = state.step > first_step and clock.is_past(loop.stop_after_minutes)
            # Rare events stand before the batch, so that the end of the run takes the same path.
            evaluate_now = loop.eval_every is not None and (is_done or run.is_due(loop.eval_every))
            # What was scored is saved, so that the best weights are there to be kept.
            save_now = evaluate_now or is_done or stop_now or run.is_due(loop.checkpoint_every)
            log_now = save_now or run.is_due(loop.log_every)
            # A run that has just been resumed did all this before it ended.
            if log_now and state.step > first_step:
                report_metrics(run, run_log, bar)
                # Metrics waited for the device: that was time of training.
                state.seconds += clock.lap()
                with clock.paused():
                    scores = validate(run, test_set) if evaluate_now and test_set else {}
                    if scores:
                        run_log.write(state.step, scores)
                    if save_now:
                        rating, position = rate(run, scores), run.loader.position
                        under_way = run.engine.state_dict()
                        wandb_id = run_log.wandb_run_id
                        state.save(folder, ranks, config, position, under_way, rating, wandb_id)
            if is_done or stop_now:
                break
            run.engine.begin(next(stream), batch_seed(run))
            if state.step == first_step:
                run.engine.prepare()
            run.metrics.begin_batch()
            take_steps(run)
            end_of_batch()
    if is_done:
        log.info("Done: %s", config.run_dir)
    else:
        log.info("Stopped at step %d; the same command with resume=auto goes on", state.step)


def open_batches(config: TrainConfig, ranks: Ranks) -> TrainingBatches:
    """The training batches.

    Raises:
        UserError: the dataset is damaged or does not suit the configuration.
    """
    assert config.data.path is not None, "the schema requires a path to train on"
    split = open_split(config.data.path, "train")
    if TARGETS[config.supervision.targets].square_canvas:
        require_square(split, f"supervision.targets={config.supervision.targets}")
    require_compact(split, config.data)
    require_shares(config.train.global_batch_size, ranks.world_size)
    return TrainingBatches(split, config.train.global_batch_size, config.seed, config.data.variants)


def build_run(config: TrainConfig, ranks: Ranks, batches: TrainingBatches) -> Run:
    """Model, optimizers and schedule, at step 0."""
    assert config.data.path is not None, "the schema requires a path to train on"
    metadata = batches.split.metadata
    loader = BatchLoader(
        batches,
        config.data,
        ranks,
        config.arch.prefix_length,
        config.train.micro_batch_tokens,
        num_steps=config.arch.num_supervision_steps,
    )
    dataset, factors = identity_of(config.data.path, metadata, config.arch.is_factored)
    torch.manual_seed(config.seed)
    model = build_model(
        config.arch, metadata.vocab_size, metadata.seq_len, config.train, ranks.device, factors
    )
    puzzle_embedding = puzzle_embedding_of(model, metadata.num_puzzle_identifiers)
    supervision = build_supervision(
        config.supervision,
        model,
        puzzle_embedding,
        solution_tokens(config.data.path, metadata.vocab_size),
        config.train.diagnostics,
        config.train.global_batch_size,
    )
    decay = config.optim.ema_decay
    state = TrainingState(
        model,
        puzzle_embedding,
        build_optimizers(config.optim, model),
        WeightAverage(model, decay) if decay is not None else None,
        dataset,
    )
    steps = config.train.max_steps or batches.steps_in(config.train.epochs)
    metrics = MetricSums(supervision.metric_names, supervision.num_steps, ranks.device)
    engine = Engine(
        supervision,
        state,
        config.optim,
        metrics,
        ranks,
        compiled=is_compiled(config.train, ranks.device),
        captured=is_captured(config.train.graphs, model),
    )
    # A batch is used for all its supervision steps, so a run ends at the end of one.
    total_steps = math.ceil(steps / engine.updates_per_batch) * engine.updates_per_batch
    return Run(config, ranks, state, loader, engine, metrics, total_steps)


def describe_run(run: Run) -> None:
    """Say what the run is and what it takes.

    Raises:
        UserError: it takes more memory than the device has.
    """
    config, ranks, loader, model = run.config, run.ranks, run.loader, run.state.model
    split, batch_size = loader.batches.split, config.train.global_batch_size
    # The two kinds of parameters are counted apart in every claim.
    sizes = describe(model, run.state.puzzle_embedding)
    log.info("arch %s: %s", config.arch.name, ", ".join(f"{k} {v:,}" for k, v in sizes.items()))
    log.info(
        "%s: %s examples an epoch, %s variants; up to %s tokens in a batch of %d on each rank",
        split.path, f"{split.examples_per_epoch:,.0f}", f"{len(split.puzzle_identifiers):,}",
        f"{loader.batch_tokens:,}", batch_size,
    )  # fmt: skip
    estimate = estimate_memory(
        config.arch,
        model.compute_dtype,
        num_parameters=model.num_parameters,
        puzzle_parameters=run.state.puzzle_embedding.num_parameters,
        is_averaged=run.state.average is not None,
        batch_tokens=loader.batch_tokens,
        tokens_at_a_time=loader.tokens_at_a_time,
    )
    log.info("memory: %s, %s tokens at a time", estimate, f"{loader.tokens_at_a_time:,}")
    if ranks.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(ranks.device)
        held = torch.cuda.memory_allocated(ranks.device)  # The network and the table are there.
        require_memory(estimate, loader.tokens_at_a_time, loader.maker.longest, free + held)
    steps, minutes = f"{run.total_steps} steps", config.train.max_minutes
    length = steps if minutes is None else f"{steps} or {minutes:g} minutes, whichever is first"
    log.info("%d rank(s) on %s, %s", ranks.world_size, ranks.device.type, length)


def take_steps(run: Run) -> None:
    """Train on the batch that has begun."""
    # An optimizer step follows each supervision step, so the next one sees new weights; with
    # optim.update=batch there is one after all of them.
    for _ in range(run.engine.updates_per_batch):
        run.engine.step(run.lr_factor)
        run.state.step += 1


def batch_seed(run: Run) -> int:
    """Seed of the next batch's targets: a function of seed and step, not of what came before."""
    sequence = np.random.SeedSequence([run.config.seed, run.state.step])
    # Torch's integers are signed.
    return int(sequence.generate_state(1, np.uint64)[0]) & (2**63 - 1)


def report_metrics(run: Run, run_log: RunLog | NoLog, bar: "tqdm[Any]") -> None:
    """Log what was summed since the last time.

    Raises:
        UserError: on every rank alike, training diverged. Comes before a checkpoint is written.
    """
    step, num_steps = run.state.step, run.metrics.num_steps
    means = run.metrics.read(run.ranks)
    require_updates(means.skipped_steps, step - num_steps + 1, step)
    more = {
        "train/lr": run.config.optim.lr * run.lr_factor,
        "train/minutes": run.state.seconds / 60,
        "train/peak_memory_gb": peak_memory(run.ranks.device) / 1e9,
    }
    run_log.write(step, {**means.as_dict(), **more})
    bar.update(step - bar.n)
    bar.set_postfix_str(
        f"loss {means.loss:.3f}, exact {means.finished.get('exact_accuracy', 0.0):.3f}, "
        f"{means.examples_per_second:.3g} examples/s"
    )


def validate(run: Run, test_set: ArcTestSet | BoardTestSet) -> dict[str, float]:
    """Score (some variants of) what is held out; metrics on the main rank, nothing elsewhere."""
    config, state = run.config.eval.resolved(run.config.data.canvas), run.state
    # What training fits into the device is what is predicted at a time, beside it.
    tokens = min(config.batch_tokens, run.config.train.micro_batch_tokens)
    config = config.model_copy(update={"batch_tokens": tokens})
    trained = TrainedModel(state.model, state.puzzle_embedding, run.config.supervision)
    # The running mean generalises better, and it is what will be scored in the end.
    with weights_in_place(state.model, state.average if run.scored_weights == "ema" else None):
        answers = predict(trained, test_set, config, run.ranks)
    metrics = summarise(test_set, answers)
    if answers is not None:
        scored = f"{run.scored_weights} weights on the {test_set.split_name} split"
        log.info("step %d, %s: %s", state.step, scored, headline(metrics))
    return {f"eval/{key}": value for key, value in metrics.items()}


def rate(run: Run, scores: dict[str, float]) -> Rating | None:
    """What the best checkpoint is chosen by, then by exact accuracy; None if not scored.

    For tasks that is pass@2, for boards the share solved.
    """
    exact = scores.get("eval/exact_accuracy")
    first = scores.get("eval/pass@2", scores.get("eval/solved", exact))
    return None if first is None else Rating((first, exact or 0.0), run.scored_weights)


if __name__ == "__main__":
    main()
