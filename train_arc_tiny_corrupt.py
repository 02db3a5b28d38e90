"""Train a tiny recursive transformer on ARC-AGI with a target for every improvement step.

    torchrun --nproc_per_node=4 train_arc_tiny_corrupt.py
    torchrun --nproc_per_node=4 train_arc_tiny_corrupt.py resume=auto
    python train_arc_tiny_corrupt.py arch=medium data.path=data/my-dataset run_dir=runs/mine
    python train_arc_tiny_corrupt.py -m seed=0,1,2 arch=compact,medium    # one after another

Without overrides this trains the compact model (0.86M parameters) on data/arc1concept-aug-1000.
The run folder receives config.yaml, metrics.jsonl, answers/, wandb/ and checkpoints/.
"""

import logging
import math
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch

from common.distributed import Ranks, start_ranks
from common.errors import exit_cleanly
from common.progress import Progress
from config.loading import load_config
from config.schema import TrainConfig
from dataset.batches import TrainingBatches, require_shares
from dataset.boards import solution_tokens
from dataset.factors import identity_of
from dataset.loading import BatchLoader, require_compact
from dataset.splits import open_split, require_square
from evaluation.predict import predict
from evaluation.showcase import Showcase
from evaluation.summary import headline, summarise
from evaluation.test_set import AnyTestSet, open_test_set, split_while_training
from models.build import (
    build_model,
    build_supervision,
    describe,
    is_compiled,
    puzzle_embedding_of,
)
from models.flops import step_flops
from models.randomness import batch_seed
from models.steps import TrainedModel
from models.targets import TARGETS
from training.checkpoints import CheckpointFolder
from training.clock import Clock
from training.engine import Engine, is_captured
from training.memory import check_memory
from training.metrics import MetricSums, diverged, has_diverged
from training.optimizers import WeightAverage, build_optimizers, weights_in_place
from training.profiling import profiled_batches
from training.run_folder import agree_on_start, begin_run, is_inside
from training.run_log import NoLog, RunLog, configure_logging
from training.scores import Score, read_score
from training.signals import Request, SignalRequests
from training.standing import Standing
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
    standing: Standing
    folder: CheckpointFolder
    signals: SignalRequests
    showcase: Showcase | None = None
    """Where evaluations are made."""
    log: RunLog | NoLog = field(default_factory=NoLog)
    """Of the main rank; the others have one that does nothing, so that none has to ask."""
    first_step: int = 0
    """Where this process starts."""
    lacks_score: bool = False
    """Whether an evaluation of the newest checkpoint is to be made up for."""

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
    with start_ranks(config.device) as ranks, ExitStack() as owned:
        configure_logging(ranks.is_main)
        if not config.train.dry_run:
            owned.enter_context(ranks.exclusive(config.run_dir, "run_dir"))
        train(config, ranks)


def train(config: TrainConfig, ranks: Ranks) -> None:
    loop = config.train
    clock = Clock(ranks, is_shared=bool(loop.max_minutes or loop.stop_after_minutes))
    # The data first: what is wrong with it should show before anything is built or written.
    batches = open_batches(config, ranks)
    test_set = showcase = None
    if loop.eval_every is not None:
        path = config.data.path
        assert path is not None, "the schema requires a path to train on"
        options = config.eval.resolved(config.data.canvas, split_while_training(path))
        test_set = open_test_set(path, options.max_variants, options.canvas, options.split)
        showcase = Showcase(
            config.run_dir, test_set, config.supervision, config.arch.num_supervision_steps,
            loop.show_tasks,
        )  # fmt: skip
    start = agree_on_start(config.run_dir, config.resume, ranks)

    run = build_run(config, ranks, batches)
    run.showcase = showcase
    describe_run(run)
    state, wandb_run_id, score = run.state, None, None
    if start is not None:
        run.loader.position, run.engine.carried, wandb_run_id = state.restore(start, ranks, config)
        if is_inside(start, config.run_dir):
            score = ranks.from_main(partial(read_score, start))
            run.lacks_score = score is None
        else:  # A fork is a run of its own.
            wandb_run_id = None
    elif config.init_from is not None:
        state.start_from(config.init_from, config.init_puzzle_embedding)
    if loop.dry_run:
        log.info("Dry run: everything was checked, nothing is trained or written.")
        return
    resolved = config.model_dump(mode="json")
    begin_run(config.run_dir, resolved, ranks)
    run.first_step = state.step

    if ranks.is_main:
        facts = {**resolved, **state.facts(), "num_ranks": ranks.world_size}
        found = None if score is None else run.standing.axes | score.metrics
        media = None if run.showcase is None else run.showcase.media
        run.log = RunLog(
            config.run_dir, config.wandb, facts, state.step, found, wandb_run_id, media
        )
    stream = iter(run.loader)
    bar = Progress("training", run.standing.total_steps, "step", state.step, ranks.is_main)
    profiling = profiled_batches(loop.profile if ranks.is_main else None, ranks.device)
    with run.signals, closing(run.log), bar, profiling as end_of_batch:
        # Rare events stand before the batch, so that the end of the run takes the same path.
        while not finish_batch(run, test_set, clock, bar):
            run.engine.begin(next(stream), batch_seed(config.seed, state.step))
            if state.step == run.first_step:
                with run.signals.interruptible():  # Compiling takes a minute.
                    run.engine.prepare()
            run.metrics.begin_batch()
            take_steps(run)
            end_of_batch()
        if run.standing.is_done and config.wandb.save_checkpoint:
            run.log.attach(run.folder.best_or_newest(), "checkpoint")
    if run.standing.is_done and not run.lacks_score:
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
    flops = partial(step_flops, config.arch, metadata.vocab_size)
    metrics = MetricSums(supervision.metric_names, supervision.num_steps, ranks.device, flops)
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
    folder = CheckpointFolder(config.run_dir, config.train.keep_checkpoints)
    signals = SignalRequests(ranks)
    per_step = config.train.global_batch_size / engine.updates_per_batch
    minutes = config.train.max_minutes
    standing = Standing(state, config.optim, ranks, total_steps, minutes, per_step)
    return Run(config, ranks, state, loader, engine, metrics, standing, folder, signals)


def describe_run(run: Run) -> None:
    """Say what the run is and what it takes.

    Raises:
        UserError: it takes more memory than the device has.
    """
    config, ranks, loader = run.config, run.ranks, run.loader
    split, batch_size = loader.batches.split, config.train.global_batch_size
    # The two kinds of parameters are counted apart in every claim.
    sizes = describe(run.state.model, run.state.puzzle_embedding)
    log.info("arch %s: %s", config.arch.name, ", ".join(f"{k} {v:,}" for k, v in sizes.items()))
    log.info(
        "%s: %s examples an epoch, %s variants; up to %s tokens in a batch of %d on each rank",
        split.path, f"{split.examples_per_epoch:,.0f}", f"{len(split.puzzle_identifiers):,}",
        f"{loader.batch_tokens:,}", batch_size,
    )  # fmt: skip
    check_memory(
        run.state, loader.batch_tokens, loader.tokens_at_a_time, loader.maker.longest, ranks.device
    )
    tokens, vocab_size = loader.batch_tokens * ranks.world_size, split.metadata.vocab_size
    flops = step_flops(config.arch, vocab_size, batch_size, tokens, tokens**2 / batch_size)
    flops *= run.engine.steps_per_update
    run.standing.say_first_step(flops, run.engine.compiled or run.engine.captured)
    steps, minutes = f"{run.standing.total_steps} steps", config.train.max_minutes
    length = steps if minutes is None else f"{steps} or {minutes:g} minutes, whichever is first"
    log.info("%d rank(s) on %s, %s", ranks.world_size, ranks.device.type, length)


def finish_batch(run: Run, test_set: AnyTestSet | None, clock: Clock, bar: Progress) -> bool:
    """Log, save and score what is due after a batch; whether training is to end."""
    loop, state = run.config.train, run.state
    # By the step, the main rank's clock, and what any rank was asked for: all ranks decide alike.
    state.seconds += clock.lap()
    request, is_done = run.signals.agreed(), run.standing.is_done
    is_new = state.step > run.first_step
    is_asked = request is Request.STOP
    # Never before a first batch, so that pieces get on however short they are.
    stop_now = is_new and (is_asked or clock.is_past(loop.stop_after_minutes))
    evaluate_now = test_set is not None and (is_done or run.is_due(loop.eval_every))
    # What is scored is saved, so that the best weights are there to be kept.
    save_now = evaluate_now or is_done or stop_now or run.is_due(loop.checkpoint_every)
    save_now |= request is Request.SAVE
    # A run that has just been resumed did this before it ended ...
    if is_new and (save_now or run.is_due(loop.log_every)):
        is_sound = report_metrics(run, bar)
        # Metrics waited for the device: that was time of training.
        state.seconds += clock.lap()
        if save_now or not is_sound:
            with clock.paused():
                place, under_way = run.loader.position, run.engine.state_dict()
                wandb_id = run.log.wandb_run_id
                state.save(run.folder, run.ranks, run.config, place, under_way, wandb_id)
        if not is_sound:
            raise diverged(state.step)  # On every rank alike.
    # ... but not always this, which comes last: an evaluation that fails costs no training.
    run.lacks_score = evaluate_now and (is_new or run.lacks_score)
    if test_set and run.lacks_score and not is_asked:
        with clock.paused():
            evaluate(run, test_set)
    return is_done or stop_now


def take_steps(run: Run) -> None:
    """Train on the batch that has begun."""
    # An optimizer step follows each supervision step, so the next one sees new weights; with
    # optim.update=batch there is one after all of them.
    for _ in range(run.engine.updates_per_batch):
        run.engine.step(run.standing.lr_factor)
        run.state.step += 1


def report_metrics(run: Run, bar: Progress) -> bool:
    """Log what was summed since the last time; False if no step since then made an update."""
    step, num_steps = run.state.step, run.metrics.num_steps
    means = run.metrics.read(run.ranks)
    if has_diverged(means.skipped_steps, step - num_steps + 1, step):
        return False
    run.log.write(step, means.as_dict() | run.standing.metrics(means))
    exact = means.finished.get("exact_accuracy", 0.0)
    bar.reach(step, means.examples_per_second, f"loss {means.loss:.3f}, exact {exact:.3f}")
    return True


def evaluate(run: Run, test_set: AnyTestSet) -> None:
    """Score (some variants of) what is held out, and record it with the checkpoint."""
    config, state = run.config.eval.resolved(run.config.data.canvas), run.state
    # What training fits into the device is what is predicted at a time, beside it.
    config = config.at_most(run.config.train.micro_batch_tokens)
    trained = TrainedModel(state.model, state.puzzle_embedding, run.config.supervision)
    # The running mean generalises better, and it is what will be scored in the end.
    average = state.average if run.scored_weights == "ema" else None
    with weights_in_place(state.model, average), run.signals.interruptible():
        answers = predict(trained, test_set, config, run.ranks, "evaluating")
    found = summarise(test_set, answers)
    score = Score(run.scored_weights, {f"eval/{key}": value for key, value in found.items()})
    run.ranks.from_main(lambda: run.folder.rate(state.step, score))
    if run.showcase is not None and answers is not None:
        run.showcase.record(state.step, answers)
    run.log.write(state.step, run.standing.axes | score.metrics)
    run.log.summarise({"best checkpoint": str(run.folder.best_or_newest())})
    run.lacks_score = False
    scored = f"{score.weights} weights on the {test_set.split_name} split"
    log.info("step %d, %s: %s", state.step, scored, headline(found))


if __name__ == "__main__":
    main()
