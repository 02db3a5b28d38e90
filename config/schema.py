"""The resolved configuration of each entry point: everything is checked here, before any work.

Defaults stand in the classes, beside what they mean; the YAML files hold what a preset changes.
"""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from common.errors import UserError
from common.settings import AnyPath, PathText, Settings, expanded
from dataset.batches import DataConfig
from evaluation.predict import EvalConfig, PredictConfig
from models.build import ComputeConfig
from models.recursive import ArchConfig
from models.supervision import SupervisionConfig
from models.targets import TARGETS
from training.adaptation import AdaptConfig
from training.optimizers import OptimConfig
from training.wandb_run import TrainWandbConfig, WandbConfig

PathOrPaths = Annotated[
    Path | Annotated[list[Path], Field(min_length=1)], BeforeValidator(expanded)
]


def _require_device(name: str) -> str:
    if name == "mps":
        raise ValueError("Apple's GPUs are not supported, use device=cpu")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError("a device is auto, cpu, cuda, or cuda:N")
    return name


Device = Annotated[
    str,
    AfterValidator(_require_device),
    Field(description="auto: CUDA if there is any; cpu; cuda; or one GPU of several, cuda:1"),
]


class LoopConfig(ComputeConfig):
    """Length and rhythm of training.

    A step is an optimizer step: a batch takes N_sup of them; with supervision.halting or
    optim.update=batch, one.
    """

    max_steps: int | None = Field(
        None,
        gt=0,
        description="optimizer steps, rounded up to whole batches; null: from train.epochs",
    )
    epochs: int = Field(
        200_000,
        gt=0,
        description="length of the run as published runs count it: optimizer steps = epochs * "
        "groups * mean pairs per puzzle / global_batch_size; not used when max_steps is set",
    )
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="minutes of training, over all resumptions and without evaluations and "
        "checkpoints, that end a run which its steps have not; learning rates follow; null: steps "
        "alone end it",
    )
    stop_after_minutes: float | None = Field(
        None,
        gt=0,
        description="minutes since the configuration was read, all else included, after which this "
        "process ends with a checkpoint, at the end of a batch; resume=auto goes on; null: it ends "
        "with the run",
    )
    global_batch_size: int = Field(512, gt=0, description="examples per batch, over all ranks")
    micro_batch_tokens: int = Field(
        131_072,
        gt=0,
        description="most tokens (cells and prefixes) that a rank computes at a time; a larger "
        "share of a batch is cut into micro-batches, whose gradients add up",
    )
    graphs: Literal["auto", "on", "off"] = Field(
        "auto",
        description="capture a training step as CUDA graphs, which spares the host thousands of "
        "launches; auto: on CUDA",
    )
    log_every: int = Field(50, gt=0, description="optimizer steps between recorded metrics")
    checkpoint_every: int = Field(10_000, gt=0, description="optimizer steps between checkpoints")
    keep_checkpoints: int = Field(3, gt=0, description="newest checkpoints kept, besides the best")
    eval_every: int | None = Field(
        50_000,
        gt=0,
        description="optimizer steps between evaluations, the last at the end of the run; null "
        "disables evaluation, including the final one",
    )
    show_tasks: list[str] | None = Field(
        None,
        description="tasks whose answers are shown after each evaluation, in W&B and in the run "
        "folder's `answers`; null: eight that are evenly spread; []: none",
    )
    dry_run: bool = Field(
        False,
        description="only check everything and say what the run would be and take; nothing is "
        "trained or written",
    )
    profile: AnyPath | None = Field(
        None,
        description="folder for a profile of the first batches: trace.json (for Perfetto or "
        "chrome://tracing) and kernels.txt; null: none",
    )
    diagnostics: bool = Field(
        False,
        description="also record for each supervision step how far the answer is from solution and "
        "target, how many cells changed, and the advantage margin (models/diagnostics.py)",
    )


class TrainConfig(Settings):
    """`train_arc_tiny_corrupt.py`."""

    first: ClassVar = (
        "data.path",
        "arch",
        "run_dir",
        "train.global_batch_size",
        "train.max_minutes",
    )
    """What `--help` begins with, here and below: five keys or groups that people change."""
    arch: ArchConfig = ArchConfig()
    data: DataConfig = DataConfig()
    supervision: SupervisionConfig = SupervisionConfig()
    optim: OptimConfig = OptimConfig()
    train: LoopConfig = LoopConfig()
    eval: EvalConfig = EvalConfig()
    wandb: TrainWandbConfig = TrainWandbConfig()
    run_dir: AnyPath = Field(
        Path("runs/${arch.name}-seed${seed}"),  # Hydra puts the values in.
        description="folder of this run: config, metrics, checkpoints",
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="of the weights, the order of the data and the targets"
    )
    device: Device = "auto"
    resume: PathText = Field(
        "none",
        description="none; auto: go on from run_dir's newest checkpoint, or start if there is "
        "none; or the path of a checkpoint or run folder",
    )
    init_from: AnyPath | None = Field(
        None,
        description="checkpoint, run folder or exported model whose weights, averaged if it has "
        "such, a new run starts from",
    )
    init_puzzle_embedding: bool = Field(
        True, description="with init_from: also take its puzzle embeddings (same dataset only)"
    )

    @model_validator(mode="after")
    def _combinations(self) -> "TrainConfig":
        if self.data.path is None:
            raise ValueError("data.path=null: name the dataset to train on")
        if self.supervision.halting != self.arch.halting_head:
            raise ValueError(
                f"arch={self.arch.name}: supervision.halting and arch.halting_head must both be "
                f"true or both be false, as the head is trained by halting and by nothing else; "
                f"with arch=trm, trm_compact or hrm goes supervision=trm"
            )
        if self.supervision.halting and self.data.canvas != "whole":
            raise ValueError(
                f"supervision.halting=true needs data.canvas=whole, not {self.data.canvas}: "
                f"examples take the places of others, so their sequences must be equally long"
            )
        if TARGETS[self.supervision.targets].trajectories != (self.data.trajectories is not None):
            raise ValueError(
                f"supervision.targets={self.supervision.targets} and data.trajectories="
                f"{self.data.trajectories}: targets=file reads the trajectories, set both or none"
            )
        if self.eval.weights == "ema" and self.optim.ema_decay is None:
            raise ValueError("eval.weights=ema needs optim.ema_decay, e.g. 0.999")
        if self.init_from is not None and self.resume not in ("none", "auto"):
            raise ValueError(
                f"init_from={self.init_from} and resume={self.resume} exclude each other: "
                f"init_from starts a new run, resume goes on with an old one"
            )
        return self


class TrainedAs(Settings):
    """Of what a model was trained as, what the scripts that run it must know."""

    model_config = ConfigDict(extra="ignore")  # All else that a trainer's configuration holds.

    arch: ArchConfig = ArchConfig()
    data: DataConfig = DataConfig()
    """An exported model does not say where its dataset is: `path` is None."""
    supervision: SupervisionConfig = SupervisionConfig()


class AdaptedFrom(TrainedAs):
    """And what adapting it to other puzzles must know."""

    optim: OptimConfig = OptimConfig()


class EvaluationDataConfig(Settings):
    """Which dataset is scored."""

    path: AnyPath | None = Field(
        None,
        description="dataset folder; null: the one that the checkpoint was trained on or "
        "the predictions were made on; an exported model does not name one",
    )

    def resolved(self, trained_as: TrainedAs, checkpoint: Path) -> Path:
        """The folder that is named, or else that of training.

        Raises:
            UserError: neither is known.
        """
        if (path := self.path or trained_as.data.path) is None:
            raise UserError(
                f"data.path is needed: {checkpoint} does not say where its dataset is; name the "
                f"one that it was trained on"
            )
        return path


class CheckpointConfig(ComputeConfig):
    """What every script that runs a checkpoint has to know."""

    output_dir: AnyPath | None = Field(
        None,
        description="folder to create for the results; null: named by the checkpoint, in the run "
        "folder, or `recount` beside the predictions",
    )
    device: Device = "auto"
    data: EvaluationDataConfig = EvaluationDataConfig()


class PooledEvalConfig(EvalConfig):
    """Which checkpoints of a run folder vote, and what they predict."""

    best: bool = Field(
        False, description="of a run folder, score the checkpoint with the best score in validation"
    )
    pool_last: int = Field(
        1,
        gt=0,
        description="of a run folder, pool the votes of so many checkpoints, the newest (published "
        "evaluators pool those of all their evaluations)",
    )

    @model_validator(mode="after")
    def _one_choice(self) -> "PooledEvalConfig":
        if self.best and self.pool_last > 1:
            raise ValueError(f"eval.best=true and eval.pool_last={self.pool_last} exclude each "
                             f"other: the best checkpoint is one")  # fmt: skip
        return self


class EvaluateConfig(CheckpointConfig):
    """`evaluate.py`."""

    first: ClassVar = (
        "checkpoint",
        "eval.max_variants",
        "eval.pool_last",
        "data.path",
        "output_dir",
    )
    eval: PooledEvalConfig = PooledEvalConfig()
    checkpoint: PathOrPaths | None = Field(
        None,
        description="run folder (its newest checkpoint), checkpoint, exported model, or a "
        "[list,of,them] whose votes are pooled",
    )
    predictions: PathOrPaths | None = Field(
        None, description="predictions.npz, or a [list,of,them], to vote on again without a model"
    )
    report: bool = Field(True, description="also write report.html")
    wandb: WandbConfig = WandbConfig()

    @model_validator(mode="after")
    def _combinations(self) -> "EvaluateConfig":
        if (self.checkpoint is None) == (self.predictions is None):
            raise ValueError(
                "give either checkpoint=RUN_OR_CHECKPOINT or predictions=PREDICTIONS.npz"
                + (", not both" if self.checkpoint is not None else "")
            )
        # How many at a time changes nothing, so it may be anything.
        read = ("batch_tokens", "max_variants", "split")
        counted = PooledEvalConfig(**{key: getattr(self.eval, key) for key in read})
        if self.predictions is not None and self.eval != counted:
            raise ValueError(
                "predictions=... are there already: of the eval.* keys only eval.max_variants and "
                "eval.split say how they are counted"
            )
        return self


class DiagnoseConfig(CheckpointConfig):
    """`diagnose.py`."""

    first: ClassVar = (
        "checkpoint",
        "eval.max_variants",
        "num_steps",
        "guidance_weights",
        "output_dir",
    )
    eval: PredictConfig = PredictConfig()
    checkpoint: AnyPath | None = Field(
        None, description="run folder (its newest checkpoint), checkpoint, or exported model"
    )
    num_steps: int | None = Field(
        None, gt=0, description="steps to follow the answers for; null: twice as many as trained"
    )
    guidance_weights: list[float] = Field(
        [0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0],
        min_length=1,
        description="values of w in (1-w) l_u + w l_c (DIS eq. 5)",
    )
    variant_draws: int = Field(
        5,
        gt=0,
        description="random choices of variants whose votes are averaged, for each number",
    )

    @model_validator(mode="after")
    def _has_a_checkpoint(self) -> "DiagnoseConfig":
        if self.checkpoint is None:
            raise ValueError("give checkpoint=RUN_OR_CHECKPOINT")
        return self


class OwnPuzzlesConfig(ComputeConfig):
    """`predict.py`."""

    first: ClassVar = ("checkpoint", "puzzles", "num_aug", "adapt.weights", "adapt.max_minutes")
    checkpoint: AnyPath | None = Field(
        None, description="run folder (its newest checkpoint), checkpoint, or exported model"
    )
    puzzles: AnyPath | None = Field(
        None,
        description="ARC tasks in JSON: a file of one task, a folder of such files, or a file of "
        "tasks by id (Kaggle), with its solutions file beside it if there is one",
    )
    num_aug: int = Field(
        32,
        ge=0,
        description="variants of each task besides the original, which are adapted to and vote; "
        "in a table of puzzle embeddings each has a vector of its own to learn",
    )
    skip_invalid: bool = Field(
        False, description="leave out tasks that cannot be used, or are too large for the canvas"
    )
    adapt: AdaptConfig = AdaptConfig()
    eval: EvalConfig = EvalConfig()
    seed: int = Field(0, ge=0, lt=2**63, description="of variants, batches and targets")
    output_dir: AnyPath | None = Field(
        None,
        description="folder to create for the results; null: named by puzzles and checkpoint, in "
        "the run folder",
    )
    report: bool = Field(True, description="also write report.html")
    device: Device = "auto"

    @model_validator(mode="after")
    def _combinations(self) -> "OwnPuzzlesConfig":
        if self.checkpoint is None or self.puzzles is None:
            raise ValueError("give checkpoint=RUN_OR_CHECKPOINT and puzzles=FILE_OR_FOLDER")
        if self.eval.split == "validation":
            raise ValueError("eval.split=validation: your own puzzles have test inputs alone")
        return self


DEMO_TASKS = (
    "0d3d703e",
    "67385a82",
    "9565186b",
    "aedd82e4",
    "b1948b0a",
    "c8f0f002",
    "d511f180",
    "e9afcf9a",
)
"""The small recolouring tasks of ARC-AGI-1's training set.

Every task that fits a 6x6 canvas and in whose demonstrations cells change colour but none appears
or disappears, leaving out those that are a mere rotation or reflection. The rule looks at
demonstrations alone (and at the size of the canvas), and tests/test_demo.py applies it again. The
reason for it: what is learned in minutes is to copy a grid and change some colours; moving things
around takes longer. (Rules that admitted rotations or counting were tried before: less than half
came out right in the same time.)
"""


class DemoConfig(Settings):
    """`demo.py`: minutes on two CPU cores, from raw tasks to a page with the answers."""

    first: ClassVar = ("output_dir", "task_ids", "num_aug", "max_steps", "experiment")
    output_dir: AnyPath = Field(
        Path("demo_output"), description="folder for everything that the demo makes"
    )
    experiment: str = Field("demo", description="the trainer's experiment group")
    max_steps: int | None = Field(
        None, gt=0, description="optimizer steps; null: as many as the experiment says"
    )
    task_ids: list[str] = Field(
        list(DEMO_TASKS), min_length=1, description="ARC-AGI-1 training tasks to learn"
    )
    num_aug: int = Field(32, ge=0, description="augmented variants of each task")
    canvas_side: int = Field(6, gt=0, le=30, description="side of the canvas in cells")
