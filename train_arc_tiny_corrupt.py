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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from common.distributed import Ranks, start_ranks
from common.errors import UserError, exit_cleanly
from config.loading import load_config
from config.schema import TrainConfig
from dataset.batches import TrainingBatches
from dataset.storage import TEST_PUZZLES_FILE, DatasetMetadata, open_split
from dataset.tasks import Task, load_tasks
from evaluation import evaluator
from evaluation.predict import EvaluationSet
from models.build import build_model, describe
from models.puzzle_embedding import PuzzleEmbedding
from models.supervision import DeepImprovementSupervision, ImprovementSteps, StepResult
from models.targets import BatchRandom
from training.checkpoints import CheckpointFolder, prepare_run_dir
from training.metrics import MetricSums
from training.optimizers import (
    WeightAverage,
    build_optimizer,
    lr_factor,
    set_lr,
    weights_in_place,
)
from training.run_log import NoLog, RunLog, configure_logging
from training.sign_sgd import SparseSignSGD
from training.state import TrainingState

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What the functions below share."""

    config: TrainConfig
    ranks: Ranks
    state: TrainingState
    puzzle_optimizer: SparseSignSGD
    total_steps: int

    @property
    def lr_factor(self) -> float:
        """Of the optimizer step to come, on both peak learning rates."""
        optim = self.config.optim
        return lr_factor(self.state.step, self.total_steps, optim.warmup_steps, optim.lr_min_ratio)

    @property
    def is_done(self) -> bool:
        return self.state.step >= self.total_steps

    def is_due(self, every: int | None) -> bool:
        """Whether a multiple of `every` steps lies in the batch just done, or the run is done."""
        if every is None:
            return False
        return self.is_done or self.state.step % every < self.config.arch.num_supervision_steps


@exit_cleanly
def main() -> None:
    config = load_config("train", TrainConfig, __doc__ or "", sys.argv[1:])
    with start_ranks(config.device) as ranks:
        configure_logging(ranks.is_main)
        train(config, ranks)


def train(config: TrainConfig, ranks: Ranks) -> None:
    # The data first: what is wrong with it should show before anything is built or written.
    assert config.data.path is not None, "the schema requires a path to train on"
    split = open_split(config.data.path, "train")
    batches = TrainingBatches(
        split,
        config.train.global_batch_size,
        config.data.epochs_per_pass,
        config.seed,
        ranks.rank,
        ranks.world_size,
    )
    test_set = EvaluationSet(config.data.path, config.eval.max_variants)
    tasks = load_tasks(config.data.path / TEST_PUZZLES_FILE)
    resolved = config.model_dump(mode="json")
    resume_from = ranks.from_main(lambda: prepare_run_dir(config.run_dir, config.resume, resolved))

    run = build_run(config, ranks, batches, split.metadata)
    state, wandb_run_id = run.state, None
    if resume_from is not None:
        wandb_run_id = state.restore(resume_from, ranks, resolved)
    elif config.init_from is not None:
        state.start_from(config.init_from, config.init_puzzle_embedding)
    first_step = state.step

    network: nn.Module = state.model
    if ranks.world_size > 1:
        network = DistributedDataParallel(
            state.model,
            device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
            # The buffers (start vectors, rotary tables) never change.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    supervision = DeepImprovementSupervision(
        config.supervision, state.model, network, state.puzzle_embedding
    )
    sizes = describe(state.model, split.metadata.num_puzzle_identifiers)
    log.info("arch %s: %s", config.arch.name, ", ".join(f"{k} {v:,}" for k, v in sizes.items()))
    log.info("%d rank(s) on %s, %d steps", ranks.world_size, ranks.device.type, run.total_steps)

    run_log: RunLog | NoLog = NoLog()
    if ranks.is_main:
        described = {**resolved, **sizes}
        run_log = RunLog(config.run_dir, config.wandb, described, state.step, wandb_run_id)
    folder = CheckpointFolder(config.run_dir, config.train.keep_checkpoints)
    metrics = MetricSums(config.arch.num_supervision_steps, ranks.device)
    stream = iter(batches)
    bar = tqdm(total=run.total_steps, initial=state.step, unit="step", disable=not ranks.is_main)
    with closing(run_log), logging_redirect_tqdm(), bar:
        while True:
            # Rare events stand before the batch, so that the end of the run takes the same path.
            evaluate_now = run.is_due(config.train.eval_every)
            save_now = run.is_due(config.train.checkpoint_every)
            log_now = evaluate_now or save_now or run.is_due(config.train.log_every)
            if log_now and state.step > first_step:
                report_metrics(run, metrics, run_log, bar)
                validation = validate(run, test_set, tasks) if evaluate_now else {}
                if validation:
                    run_log.write(state.step, validation)
                if save_now:
                    state.save(folder, ranks, resolved, rating(validation), run_log.wandb_run_id)
            if run.is_done:
                break
            inputs, labels, puzzle_ids = (
                torch.from_numpy(array).to(ranks.device).long() for array in next(stream)
            )
            metrics.begin_batch()
            for result in supervision.run(inputs, labels, puzzle_ids, batch_random(run)):
                grad_norm = take_step(run, result)
                metrics.add(result, grad_norm)
    log.info("Done: %s", config.run_dir)


def take_step(run: Run, result: StepResult) -> Tensor:
    """Backward pass, then one update of network, puzzle embeddings and average.

    Returns the norm of the network's gradient, before clipping.
    """
    config, state = run.config.optim, run.state
    state.optimizer.zero_grad(set_to_none=True)
    result.loss.backward()
    parameters = list(state.model.parameters())
    grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if config.grad_clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, config.grad_clip, grad_norm)
    set_lr(state.optimizer, config.lr * run.lr_factor)
    state.optimizer.step()
    assert result.puzzle_vectors.grad is not None, "the puzzle vectors enter every step"
    run.puzzle_optimizer.step(
        result.puzzle_ids, result.puzzle_vectors.grad, config.puzzle_lr * run.lr_factor
    )
    if state.average is not None:
        state.average.update(state.model)
    state.step += 1
    return grad_norm


def batch_random(run: Run) -> BatchRandom:
    """Random numbers of the batch to come: a function of seed and step, not of what came before."""
    sequence = np.random.SeedSequence([run.config.seed, run.state.step])
    # Torch's seeds are signed 64-bit numbers.
    seed = int(sequence.generate_state(1, np.uint64)[0]) & (2**63 - 1)
    generator = torch.Generator(run.ranks.device).manual_seed(seed)
    global_rows = run.config.train.global_batch_size
    first_row = run.ranks.rank * global_rows // run.ranks.world_size
    return BatchRandom(generator, first_row, global_rows)


def report_metrics(
    run: Run, metrics: MetricSums, run_log: RunLog | NoLog, bar: "tqdm[Any]"
) -> None:
    """Log what was summed since the last time.

    Raises:
        UserError: on every rank alike, a loss or gradient was not finite. Comes before a
            checkpoint is written, so that the newest one is sound.
    """
    step = run.state.step
    since = step - metrics.num_batches * run.config.arch.num_supervision_steps
    means = metrics.read(run.ranks)
    if not means.is_finite:
        raise UserError(
            f"training diverged: a loss or gradient between optimizer steps {since} and {step} is "
            f"not finite; go on from the last checkpoint with resume=auto and a lower optim.lr, "
            f"optim.grad_clip=1.0 or a longer optim.warmup_steps"
        )
    examples_per_second = means.steps_per_second * run.config.train.global_batch_size
    rates = {
        "train/lr": run.config.optim.lr * run.lr_factor,
        "train/examples_per_second": examples_per_second,
    }
    run_log.write(step, {**means.as_dict(), **rates})
    bar.update(step - bar.n)
    bar.set_postfix_str(
        f"loss {means.loss:.3f}, exact {means.exact_accuracy[-1]:.3f}, "
        f"{examples_per_second:.0f} examples/s"
    )


def validate(run: Run, test_set: EvaluationSet, tasks: list[Task]) -> dict[str, float]:
    """Vote on (some variants of) the test set; metrics on the main rank, nothing elsewhere."""
    config, state = run.config.eval, run.state
    steps = ImprovementSteps(
        state.model,
        state.puzzle_embedding,
        run.config.supervision.next_input,
        config.num_supervision_steps,
        config.guidance_weight,
    )
    with weights_in_place(state.model, None if config.weights == "raw" else state.average):
        outcome = evaluator.evaluate(steps, test_set, tasks, config.batch_size, run.ranks)
    if outcome is None:
        return {}
    figures = evaluator.metrics(outcome)
    shown = ", ".join(f"{k} {v:.3f}" for k, v in figures.items() if k in ("pass@1", "pass@2"))
    log.info("step %d: %s", state.step, shown or "no solutions to score by")
    return {f"eval/{key}": value for key, value in figures.items()}


def rating(validation: dict[str, float]) -> tuple[float, ...] | None:
    """What the best checkpoint is chosen by: pass@2, then exact accuracy; None if not scored."""
    if "eval/pass@2" not in validation:
        return None
    return validation["eval/pass@2"], validation["eval/exact_accuracy"]


def build_run(
    config: TrainConfig, ranks: Ranks, batches: TrainingBatches, metadata: DatasetMetadata
) -> Run:
    """Model, optimizers and schedule, at step 0."""
    torch.manual_seed(config.seed)
    model = build_model(
        config.arch,
        metadata.vocab_size,
        metadata.seq_len,
        ranks.device,
        config.train.precision,
        config.train.compile,
    )
    # From here on each rank has random numbers of its own, whatever the model drew.
    torch.manual_seed(config.seed + ranks.rank)
    puzzle_embedding = PuzzleEmbedding(
        metadata.num_puzzle_identifiers, config.arch.hidden_size, ranks.device
    )
    decay = config.optim.ema_decay
    state = TrainingState(
        model,
        puzzle_embedding,
        build_optimizer(config.optim, model),
        WeightAverage(model, decay) if decay is not None else None,
        batches,
    )
    steps = config.train.max_steps
    if steps is None:
        examples = config.train.epochs * metadata.total_groups * metadata.mean_puzzle_examples
        steps = math.ceil(examples / config.train.global_batch_size)
    batch_count = math.ceil(steps / config.arch.num_supervision_steps)
    return Run(
        config,
        ranks,
        state,
        SparseSignSGD(puzzle_embedding, config.optim.puzzle_weight_decay, ranks),
        total_steps=batch_count * config.arch.num_supervision_steps,
    )


if __name__ == "__main__":
    main()
