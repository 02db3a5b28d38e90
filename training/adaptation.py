"""Adaptation: a trained network learns the vectors of puzzles that it was not trained on.

The network reads no demonstrations: what it knows of a puzzle is the puzzle's vector (see
`models.puzzle_embedding`). So new puzzles get new vectors, which start at the mean of those that
were trained, and training goes on as it was, on batches of the new puzzles' demonstrations:

    vectors   the puzzles' vectors alone; the network stays as it is
    all       the network's weights too, at the rates of the training (or another share of them)
    none      nothing: the mean vector answers

Which pairs there are in the batches is the caller's to decide.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from pydantic import Field, model_validator
from torch import Tensor

from common.distributed import Ranks
from common.errors import UserError
from common.packed import PackedBatch
from common.progress import Progress
from common.settings import Settings
from models.build import ComputeConfig, build_supervision, is_compiled
from models.pretrained import StoredModel
from models.randomness import batch_seed
from models.recursive import TinyRecursiveModel
from models.steps import TrainedModel
from training.clock import Clock
from training.engine import Engine, is_captured
from training.metrics import MetricSums, TrainingMetrics, has_diverged
from training.optimizers import OptimConfig, build_optimizers
from training.standing import Standing
from training.state import TrainingState

TASK_VECTORS = "puzzle_embedding.task.weight"
"""Of factored puzzle embeddings, what a task has of its own; the rest all puzzles share."""
TAIL_SHARE = 0.5
"""Share of the adaptation over which rates fall to 0: vectors that take steps of one size must come
to rest."""
REPORT_EVERY = 40
"""Optimizer steps between two looks at the loss, each of which waits for the device."""


class AdaptConfig(Settings):
    """What learns from the demonstrations, how fast and for how long."""

    weights: Literal["all", "vectors", "none"] = Field(
        "all",
        description="what learns; all: the network and the puzzles' vectors; vectors: these alone "
        "(of factored ones the tasks'); none: nothing, the mean of the trained vectors answers",
    )
    max_steps: int | None = Field(
        800,
        gt=0,
        description="optimizer steps, rounded up to whole batches; null: adapt.max_minutes alone "
        "ends it",
    )
    max_minutes: float | None = Field(
        None, gt=0, description="minutes that end it earlier; rates follow; null: no limit of time"
    )
    batch_size: int = Field(64, gt=0, description="demonstration pairs per batch, over all ranks")
    micro_batch_tokens: int = Field(
        131_072, gt=0, description="most tokens computed at a time, as train.micro_batch_tokens"
    )
    warmup_steps: int = Field(20, ge=0, description="optimizer steps of linear warm-up")
    lr_factor: float = Field(
        1.0, gt=0, description="learning rates of the network, as a multiple of those in training"
    )
    puzzle_lr_factor: float = Field(
        1.0, gt=0, description="learning rate of the vectors, as a multiple of that in training"
    )

    @model_validator(mode="after")
    def _ends(self) -> "AdaptConfig":
        if self.max_steps is None and self.max_minutes is None:
            raise ValueError("adapt.max_steps=null needs adapt.max_minutes, or nothing ends it")
        return self

    def optim(self, trained_by: OptimConfig) -> OptimConfig:
        """How to train on, after a training by `trained_by`."""
        return trained_by.model_copy(
            update={
                "lr": trained_by.lr * self.lr_factor,
                "muon_lr": trained_by.muon_lr * self.lr_factor,
                "puzzle_lr": trained_by.puzzle_lr * self.puzzle_lr_factor,
                "warmup_steps": self.warmup_steps,
                "schedule": "linear_tail",
                "tail_share": TAIL_SHARE,
            }
        )


class Adapted(NamedTuple):
    """What an adaptation came to."""

    weights: str
    """That were trained, see `AdaptConfig`."""
    parameters: int = 0
    """How many numbers these are."""
    steps: int = 0
    """Optimizer steps."""
    seconds: float = 0.0
    loss: float | None = None
    """Mean over the last batches."""
    exact_accuracy: float | None = None
    """Share of the last batches' demonstration pairs that were answered right."""


# ---- new puzzles -----------------------------------------------------------------------------


def with_new_puzzles(
    stored: StoredModel, num_puzzles: int, task_names: Sequence[str]
) -> StoredModel:
    """A stored model that knows new puzzles in place of its own, each by the mean vector.

    Of factored embeddings these are the tasks' vectors; what all puzzles share is kept.

    Args:
        stored: the model.
        num_puzzles: P, the blank one included.
        task_names: of the tasks, in the order of `common.puzzles.PuzzleFactors`.
    """
    vectors = stored.weights.get(TASK_VECTORS) if stored.table is None else stored.table
    if vectors is None or vectors.ndim != 2:
        return stored  # Damaged: where it is loaded it is told what does not fit.
    if stored.table is None:
        weights = {**stored.weights, TASK_VECTORS: new_vectors(vectors, len(task_names))}
        return replace(stored, weights=weights, tasks={})
    return replace(stored, table=new_vectors(vectors, num_puzzles), tasks={})


def new_vectors(trained: Tensor, count: int) -> Tensor:
    """[count, D], each the mean of the vectors `trained` [P, D], those left out that are zero.

    These are of puzzles that training has not met, or none: the blank one.
    """
    mean = trained.sum(dim=0) / trained.any(dim=1).sum().clamp(min=1)
    return mean.expand(count, -1).clone()


# ---- training on -----------------------------------------------------------------------------


def adapt(
    trained: TrainedModel,
    config: AdaptConfig,
    trained_by: OptimConfig,
    colours: range,
    batches: Iterator[Sequence[PackedBatch]],
    seed: int,
    ranks: Ranks,
    compute: ComputeConfig,
) -> Adapted:
    """Train on a model's vectors, or all of it, in place; all ranks must call it.

    Args:
        trained: the model, which knows the new puzzles.
        config: what is trained, how fast and for how long; not "none".
        trained_by: the optimizers of its training.
        colours: see `models.targets.TargetRequest`.
        batches: of the demonstrations, each rank its share, without end.
        seed: of what is random about the targets.
        ranks: that share the batches.
        compute: how the network is computed.

    Raises:
        UserError: no step had a finite loss and gradient.
    """
    engine = build_engine(trained, config, trained_by, colours, ranks, compute)
    state, metrics = engine.state, engine.metrics
    total = sys.maxsize
    if config.max_steps is not None:
        total = math.ceil(config.max_steps / engine.updates_per_batch) * engine.updates_per_batch
    per_step = config.batch_size / engine.updates_per_batch
    standing = Standing(state, engine.config, ranks, total, config.max_minutes, per_step)
    clock = Clock(ranks, is_shared=config.max_minutes is not None)
    clock.lap()
    shown = total if config.max_steps is not None else None
    with Progress("adapting", shown, "step", is_shown=ranks.is_main) as bar:
        while not standing.is_done:
            engine.begin(next(batches), batch_seed(seed, state.step))
            if state.step == 0:
                engine.prepare()
            metrics.begin_batch()
            for _ in range(engine.updates_per_batch):
                engine.step(standing.lr_factor)
                state.step += 1
            state.seconds += clock.lap()
            if standing.is_done or metrics.num_steps >= REPORT_EVERY:
                means = _read_metrics(metrics, state.step, ranks)
                exact = means.finished.get("exact_accuracy", math.nan)
                note = f"loss {means.loss:.3f}, exact {exact:.3f}"
                bar.reach(state.step, means.examples_per_second, note)
    return Adapted(
        config.weights,
        _count_trained(engine),
        state.step,
        round(state.seconds, 1),
        means.loss,
        means.finished.get("exact_accuracy"),
    )


def build_engine(
    trained: TrainedModel,
    config: AdaptConfig,
    trained_by: OptimConfig,
    colours: range,
    ranks: Ranks,
    compute: ComputeConfig,
) -> Engine:
    """What takes the steps; see `adapt` for the arguments."""
    model, embedding = trained.model, trained.puzzle_embedding
    train_only(model, config.weights)
    supervision = build_supervision(
        trained.supervision, model, embedding, colours,
        diagnostics=False, global_batch_size=config.batch_size,
    )  # fmt: skip
    optim = config.optim(trained_by)
    # No running mean: it would take longer to forget the mean vector than the adaptation takes.
    state = TrainingState(model, embedding, build_optimizers(optim, model), None, dataset={})
    metrics = MetricSums(
        supervision.metric_names, supervision.num_steps, ranks.device, flops=lambda *_: 0.0
    )
    return Engine(
        supervision,
        state,
        optim,
        metrics,
        ranks,
        compiled=is_compiled(compute, ranks.device),
        captured=is_captured("auto", model),
    )


def train_only(model: TinyRecursiveModel, weights: str) -> None:
    """Let only these of the model's weights take gradients; a table beside it always does."""
    assert weights in ("vectors", "all"), "something is trained"
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(weights == "all" or name == TASK_VECTORS)


def _count_trained(engine: Engine) -> int:
    parameters: list[Tensor] = [p for p in engine.state.model.parameters() if p.requires_grad]
    if (table := engine.state.table) is not None:
        parameters.append(table)
    return sum(parameter.numel() for parameter in parameters)


def _read_metrics(metrics: MetricSums, step: int, ranks: Ranks) -> TrainingMetrics:
    """The means since the last time; UserError if no step since then has changed anything."""
    num_steps = metrics.num_steps
    means = metrics.read(ranks)
    if has_diverged(means.skipped_steps, step - num_steps + 1, step):
        raise UserError(
            f"adaptation diverged: up to optimizer step {step} no loss and gradient was finite any "
            f"more; try a lower adapt.lr_factor, or adapt.weights=vectors"
        )
    return means
