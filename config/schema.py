"""The resolved configuration of each entry point: everything is checked here, before any work."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.settings import AnyPath, Settings
from dataset.batches import DataConfig
from evaluation.predict import EvalConfig, PredictConfig
from models.recursive import ArchConfig
from models.supervision import SupervisionConfig
from training.optimizers import OptimConfig
from training.run_log import WandbConfig

Paths = Annotated[list[AnyPath], Field(min_length=1)]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "bf16", "fp32"]
Switch = Literal["auto", "on", "off"]
AttentionBackend = Literal["auto", "default", "flash", "cudnn", "efficient", "matmul"]

DEVICE = "auto: CUDA if there is any; cpu; cuda"
PRECISION = "dtype of activations (weights stay fp32); auto: bf16 on CUDA, fp32 on CPU"
COMPILE = "torch.compile the network; auto: on CUDA only"
ATTENTION = (
    "kernel of the attention (models/attention.py); auto: on CUDA the fastest for sequences of a "
    "typical length, timed at the start, on CPU PyTorch's own choice"
)


class LoopConfig(Settings):
    """Length and rhythm of training.

    A step is an optimizer step: a batch takes N_sup of them, with supervision.halting one.
    """

    max_steps: int | None = Field(
        gt=0, description="optimizer steps, rounded up to whole batches; null: from train.epochs"
    )
    epochs: int = Field(
        gt=0,
        description="length of the run as published runs count it: optimizer steps = epochs * "
        "groups * mean pairs a puzzle / global_batch_size; not used when max_steps is set",
    )
    global_batch_size: int = Field(gt=0, description="examples a batch, over all ranks")
    log_every: int = Field(gt=0, description="optimizer steps between recorded metrics")
    checkpoint_every: int = Field(gt=0, description="optimizer steps between checkpoints")
    keep_checkpoints: int = Field(gt=0, description="newest checkpoints kept, besides the best")
    eval_every: int | None = Field(
        gt=0,
        description="optimizer steps between evaluations; null: only none, not even at the end",
    )
    diagnostics: bool = Field(
        description="also record for each supervision step how far the answer is from solution and "
        "target, how many cells changed, and the advantage margin (models/diagnostics.py)"
    )
    precision: Precision = Field(description=PRECISION)
    compile: Switch = Field(description=COMPILE)
    attention: AttentionBackend = Field(description=ATTENTION)


class TrainConfig(Settings):
    """`train_arc_tiny_corrupt.py`."""

    arch: ArchConfig
    data: DataConfig
    supervision: SupervisionConfig
    optim: OptimConfig
    train: LoopConfig
    eval: EvalConfig
    wandb: WandbConfig
    run_dir: AnyPath = Field(description="folder of this run: config, metrics, checkpoints")
    seed: int = Field(
        ge=0, lt=2**63, description="of the weights, the order of the data and the targets"
    )
    device: Device = Field(description=DEVICE)
    resume: str = Field(
        description="none; auto: go on from run_dir's newest checkpoint, or start if there is "
        "none; or the path of a checkpoint or run folder"
    )
    init_from: AnyPath | None = Field(
        description="checkpoint or run folder whose weights, averaged if it has such, a new run "
        "starts from"
    )
    init_puzzle_embedding: bool = Field(
        description="with init_from: also take its puzzle embeddings (same dataset only)"
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
        if (self.supervision.targets == "file") != (self.data.trajectories is not None):
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


class EvaluationDataConfig(Settings):
    """Which dataset is scored."""

    path: AnyPath | None = Field(
        description="dataset folder; null: the one that the checkpoint was trained on"
    )


class CheckpointConfig(Settings):
    """What every script that runs a checkpoint has to know."""

    output_dir: AnyPath | None = Field(
        description="folder to create for the results; null: named by the checkpoint, in the run "
        "folder"
    )
    device: Device = Field(description=DEVICE)
    compile: Switch = Field(description=COMPILE)
    attention: AttentionBackend = Field(description=ATTENTION)
    precision: Precision = Field(description=PRECISION)
    data: EvaluationDataConfig


class EvaluateConfig(CheckpointConfig):
    """`evaluate.py`."""

    eval: EvalConfig
    checkpoint: AnyPath | Paths | None = Field(
        description="run folder (its newest checkpoint), checkpoint, or a [list,of,them] whose "
        "votes are pooled"
    )
    predictions: AnyPath | Paths | None = Field(
        description="predictions.npz, or a [list,of,them], to vote on again without a model"
    )
    report: bool = Field(description="also write report.html")

    @model_validator(mode="after")
    def _combinations(self) -> "EvaluateConfig":
        if (self.checkpoint is None) == (self.predictions is None):
            raise ValueError(
                "give either checkpoint=RUN_OR_CHECKPOINT or predictions=PREDICTIONS.npz"
                + (", not both" if self.checkpoint is not None else "")
            )
        asked = self.eval
        if self.predictions is not None and (
            asked.num_supervision_steps is not None
            or asked.guidance_weight != 1
            or asked.diagnostics
            or (asked.weights, asked.canvas, asked.voting) != ("auto", "auto", "full")
        ):
            raise ValueError(
                "predictions=... are there already: of the eval.* keys only eval.max_variants "
                "changes how they are counted"
            )
        return self


class DiagnoseConfig(CheckpointConfig):
    """`diagnose.py`."""

    eval: PredictConfig
    checkpoint: AnyPath | None = Field(
        description="run folder (its newest checkpoint) or checkpoint"
    )
    num_steps: int | None = Field(
        gt=0, description="steps to follow the answers for; null: twice as many as trained"
    )
    guidance_weights: list[float] = Field(
        min_length=1, description="values of w in (1-w) l_u + w l_c (DIS eq. 5)"
    )
    variant_draws: int = Field(
        gt=0, description="random choices of variants whose votes are averaged, for each number"
    )

    @model_validator(mode="after")
    def _has_a_checkpoint(self) -> "DiagnoseConfig":
        if self.checkpoint is None:
            raise ValueError("give checkpoint=RUN_OR_CHECKPOINT")
        return self

    @property
    def evaluation(self) -> EvalConfig:
        """What is asked of each prediction: all variants vote, and everything is measured."""
        return EvalConfig(
            **dict(self.eval),
            voting="full",
            voting_error=0.01,
            voting_min_share=0,
            voting_seed=0,
            num_supervision_steps=None,
            guidance_weight=1,
            diagnostics=True,
        )


class DemoConfig(Settings):
    """`demo.py`."""

    output_dir: AnyPath = Field(description="folder for everything that the demo makes")
    experiment: str = Field(description="the trainer's experiment group")
    max_steps: int | None = Field(
        gt=0, description="optimizer steps; null: as many as the experiment says"
    )
    task_ids: list[str] = Field(min_length=1, description="ARC-AGI-1 training tasks to learn")
    num_aug: int = Field(ge=0, description="augmented variants of each task")
    canvas_side: int = Field(gt=0, le=30, description="side of the canvas in cells")
