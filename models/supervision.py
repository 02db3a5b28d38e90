"""Deep Improvement Supervision (arXiv 2511.16886): the steps that a batch is supervised by.

For a batch, a target generator lays out y†_1 ... y†_S (`begin`); step s is trained towards y†_s
(`step`: forward and backward pass), and an optimizer step follows each, so step s + 1 sees weights
that step s has changed (`optim.update=batch`: one follows all). Another scheme is another
`Supervision`: see `models.halting`.

    paper                  here
    Phi                    `models.targets.TARGETS[config.targets].generate`
    y†_s                   `step_targets(...)`[s], with y†_0 at index 0
    l_c, l_u               conditional_logits, reference_logits
    L = CE(l_c, y†_s)      objective "dis"
    eq. 9                  objective "dual": + CE(l_u, y†_{s-1}), y†_0 = x
    E[CE(l_c, y†_s)]       targets "expected": over the orders of the path, see docs/targets.md

Two readings of the published method differ, and both can be selected:
`next_input` and `pad_cells`, see `SupervisionConfig`.

Everything that a step reads and changes stays where it is in memory, and nothing waits for the
device, so a step can be captured as a CUDA graph (see `training.engine`).

Shape letters: N tokens, B sequences, S supervision steps, F frames of targets, L cells of the whole
canvas.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from common.packed import PackedBatch
from common.settings import Settings
from models.diagnostics import (
    ACCURACY,
    DIAGNOSTICS,
    Metrics,
    accuracy,
    margins,
    movement,
)
from models.objective import (
    IGNORE,
    counted_solution,
    mixture_cross_entropy,
    shares_of_mean,
    stablemax_cross_entropy,
)
from models.puzzle_embedding import PuzzleEmbedding
from models.randomness import CellRandom
from models.recursive import RecursiveState, StepOutput, TinyRecursiveModel, run_step
from models.targets import TARGETS, TargetRequest


class SupervisionConfig(Settings):
    """What each improvement step is trained towards; the defaults are the paper's pseudocode."""

    targets: str = Field("linear", description="target generator, a name in models/targets.py")
    path_power: float = Field(
        1.0,
        gt=0,
        description="p: of the cells that differ, step s of S has replaced the share "
        "1 - (1 - s/S)^p; 1: evenly over the steps (the paper), large: as targets=final; not of "
        "trajectories from a file",
    )
    objective: Literal["dis", "dual"] = Field(
        "dis",
        description="dis: loss of the step's readout; dual: plus the incoming answer's (eq. 9)",
    )
    next_input: Literal["question", "answer"] = Field(
        "question",
        description="input of step s > 1: the question again (the paper's pseudocode), or the "
        "model's own answer of step s-1 (the published code)",
    )
    pad_cells: Literal["ignored", "counted_until_replaced"] = Field(
        "ignored",
        description="cells whose solution is PAD: never counted, or counted at the steps whose "
        "target still shows the input's token there (the published code); the same where no "
        "target ever does (targets final and replace; but objective=dual counts them in its first "
        "target, the question), and not for targets mask and expected",
    )
    step_weights: Literal["uniform", "rising"] = Field(
        "uniform",
        description="weight of step s: 1, or rising linearly with s at mean 1 (paper §5.3)",
    )
    halting: bool = Field(
        False,
        description="an example leaves the batch when the network predicts that its answer is "
        "correct, and a fresh one takes its place (TRM); false: all take N_sup steps",
    )
    halting_loss_weight: float = Field(
        0.5, ge=0, description="with halting: weight of the halting logit's cross-entropy"
    )
    halting_exploration: float = Field(
        0.1,
        ge=0,
        le=1,
        description="with halting: probability that an example may not leave before a random step "
        "from 2 to N_sup",
    )

    @field_validator("targets")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        if name not in TARGETS:
            raise ValueError(f"no such target generator, there are {', '.join(sorted(TARGETS))}")
        return name

    @model_validator(mode="after")
    def _suits_the_target_generator(self) -> "SupervisionConfig":
        generator = TARGETS[self.targets]
        if generator.pad_ignored and self.pad_cells != "ignored":
            reason = (
                "what it hides is PAD and no token of the input, so there is nothing to count "
                "until replaced"
                if generator.certainty is None
                else "the order of replacement is random, so the number of cells that count would "
                "be random too"
            )
            raise ValueError(
                f"supervision.targets={self.targets} needs supervision.pad_cells=ignored: {reason}"
            )
        if self.halting and not (generator.is_constant and self.objective == "dis"):
            raise ValueError(
                f"supervision.halting=true needs supervision.targets=final and objective=dis, as "
                f"examples leave when the whole answer is right; targets={self.targets} and "
                f"objective={self.objective} ask for less before the last step"
            )
        return self


@dataclass
class Progress:
    """Where the sequences of a micro-batch are on their way through the supervision steps."""

    batch: PackedBatch
    puzzle_ids: Tensor
    """int64 [B] of the examples under way."""
    targets: Tensor
    """int64 [F, N] of the steps, IGNORE where not counted."""
    shares: Tensor
    """[F, N] what each token's loss counts for in the mean over the global batch."""
    certainty: Tensor | None
    """[F, B] probability that a cell's target is the solution and not the question, where these
    differ; None: the targets are certain."""
    solution: Tensor
    """int64 [N], IGNORE where not counted."""
    state: RecursiveState
    inputs: Tensor
    """int64 [N] what the next step reads."""
    answer: Tensor
    """int64 [N] of the step before; at first, the input."""
    steps: Tensor
    """int64, supervision steps taken: one number for all, or [B]."""

    def tensors(self) -> Iterator[Tensor]:
        """All of them, in one order."""
        for field in fields(self):
            value = getattr(self, field.name)
            parts = value if isinstance(value, tuple) else (value,)
            yield from (part for part in parts if part is not None)

    def copy_(self, other: "Progress") -> None:
        """Take over the values of another of the same shapes, each into its place in memory."""
        for own, new in zip(self.tensors(), other.tensors(), strict=True):
            own.copy_(new)


class StepResult(NamedTuple):
    """What one supervision step did with a micro-batch; its gradients are in the parameters."""

    loss: Tensor
    """Scalar: this micro-batch's part of the mean over the global batch, step weights applied."""
    puzzle_gradient: Tensor | None
    """[B, D] of the rows of the table of puzzle embeddings that the step used; None: no table."""
    supervision_steps: Tensor
    """int64 [B] the step that each example has just taken, 1..S."""
    finished: Tensor
    """bool [B] whether it was the example's last."""
    metrics: Metrics
    """What the step did to each example, see `models.diagnostics`."""


class Supervision(ABC):
    """A scheme: turns batches into supervision steps.

    Args:
        config: what to train towards.
        model: the model, compiled or not.
        puzzle_embedding: where the puzzles' vectors are from, anew at each step.
        colours: tokens of cells with content, see `TargetRequest`.
        diagnostics: also measure distances and margins.
        global_batch_size: examples that the loss is a mean over.
    """

    def __init__(
        self,
        config: SupervisionConfig,
        model: TinyRecursiveModel,
        puzzle_embedding: PuzzleEmbedding,
        colours: range,
        diagnostics: bool,
        global_batch_size: int,
    ) -> None:
        self.config = config
        self.model = model
        self.puzzle_embedding = puzzle_embedding
        self.colours = colours
        self.diagnostics = diagnostics
        self.global_batch_size = global_batch_size
        self.num_steps = model.config.num_supervision_steps
        weights = step_weights(config.step_weights, self.num_steps)
        # On the device once: a copy at every step would make the host wait.
        self.step_weights = torch.tensor(weights, device=model.y_init.device)

    @property
    @abstractmethod
    def steps_per_batch(self) -> int:
        """Supervision steps that one batch serves."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What is measured of each example."""
        return ACCURACY + DIAGNOSTICS if self.diagnostics else ACCURACY

    @abstractmethod
    def begin(self, batch: PackedBatch, seed: int, before: Progress | None) -> Progress:
        """What the steps of a micro-batch start from; of the one `before` it, something may stay.

        `seed` decides what is random about the global batch.
        """

    @abstractmethod
    def step(self, progress: Progress) -> StepResult:
        """Take one supervision step: add its gradients up in the parameters, and advance."""

    def carried(self, progress: Progress) -> dict[str, Tensor]:
        """What the next batch depends on, [E, ...] each for E examples: a resumed run needs it."""
        return {}

    def resumed(self, batch: PackedBatch, carried: dict[str, Tensor]) -> Progress | None:
        """The progress before a `batch` from what `carried` returned, for the whole batch."""
        assert not carried, "another scheme's"
        return None

    def measure(
        self, progress: Progress, output: StepOutput, target: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The step's answer [N], and what the step did; `progress` is before it."""
        with torch.no_grad():
            logits = output.conditional_logits
            answer = torch.where(progress.batch.is_cell, logits.argmax(dim=-1), progress.answer)
            offsets, solution = progress.batch.offsets, progress.solution
            metrics = accuracy(answer, solution, offsets)
            if self.diagnostics:
                # Read out within the step, the reference would have a backward pass, of zeros.
                reference = self.model.read_out(progress.state.y)
                metrics |= movement(progress.answer, answer, target, solution, offsets)
                metrics |= margins(reference, logits, solution, offsets)
        return answer, metrics

    def advance(self, progress: Progress, output: StepOutput, answer: Tensor) -> None:
        """Go on to what the step left; not before its backward pass, which may need what was."""
        progress.state.y.copy_(output.state.y)
        progress.state.z.copy_(output.state.z)
        progress.answer.copy_(answer)
        if self.config.next_input == "answer":
            progress.inputs.copy_(answer)


class DeepImprovementSupervision(Supervision):
    """All examples of a batch take all S steps, each towards a target of its own."""

    @property
    def steps_per_batch(self) -> int:
        return self.num_steps

    def begin(self, batch: PackedBatch, seed: int, before: Progress | None) -> Progress:
        targets, certainty = packed_targets(
            self.config, batch, self.num_steps, self.model.seq_len, self.colours, seed
        )
        shares = shares_of_mean(targets, batch.sequence, batch.offsets)
        return Progress(
            batch=batch._replace(path=None),  # The targets have it.
            puzzle_ids=batch.puzzle_ids,
            targets=targets,
            shares=shares / self.global_batch_size,
            certainty=certainty,
            solution=counted_solution(batch.labels),
            state=self.model.initial_state(len(batch.inputs)),
            inputs=batch.inputs.clone(),
            answer=batch.inputs.clone(),
            steps=torch.zeros((), dtype=torch.int64, device=batch.inputs.device),
        )

    def step(self, progress: Progress) -> StepResult:
        progress.steps += 1
        # As a tensor of one: a number as an index would be read from the device.
        s = progress.steps.view(1)
        # Read anew: the optimizer step that follows each supervision step changes these vectors.
        vectors = self.puzzle_embedding.lookup(progress.puzzle_ids)
        dual = self.config.objective == "dual"
        output = run_step(
            self.model,
            vectors,
            progress.state,
            progress.inputs,
            progress.steps,
            progress.batch,
            with_reference=dual,
        )
        loss = weighted_loss(output.conditional_logits, progress, s)
        if dual:
            assert output.reference_logits is not None, "it was asked for"
            loss = loss + weighted_loss(output.reference_logits, progress, s - 1)
        loss = loss * self.step_weights.index_select(0, s - 1).squeeze(0)
        loss.backward()
        target = progress.targets.index_select(0, s).squeeze(0)
        answer, metrics = self.measure(progress, output, target)
        self.advance(progress, output, answer)
        steps = progress.steps.expand(progress.batch.num_sequences)
        finished = steps == self.num_steps
        return StepResult(loss.detach(), gradient_of(vectors), steps, finished, metrics)


def gradient_of(vectors: Tensor) -> Tensor | None:
    """What a backward pass left for the rows of a table; None where it went on to factors."""
    return vectors.grad if vectors.is_leaf else None


def weighted_loss(logits: Tensor, progress: Progress, s: Tensor) -> Tensor:
    """Cross-entropy of logits [N, V] against y†_s, as its part of the global batch's mean."""

    def at_step(frames: Tensor) -> Tensor:
        return frames.index_select(0, s).squeeze(0)

    if progress.certainty is None:
        losses = stablemax_cross_entropy(logits, at_step(progress.targets))
    else:
        question = progress.batch.inputs
        certainty = at_step(progress.certainty)[progress.batch.sequence]
        losses = mixture_cross_entropy(logits, progress.solution, question, certainty)
    return (losses * at_step(progress.shares)).sum()


def packed_targets(
    config: SupervisionConfig,
    batch: PackedBatch,
    num_steps: int,
    num_cells: int,
    colours: range,
    seed: int,
) -> tuple[Tensor, Tensor | None]:
    """`step_targets` of a batch [S + 1, N], and `step_certainty` [S + 1, B] if there is one.

    They are those of its whole canvases of `num_cells`, at its cells. What is not shown is PAD
    there, which has a place on the path too if PAD is counted until it is replaced.
    """
    random = CellRandom(seed, batch.rows, torch.arange(num_cells, device=batch.rows.device))
    inputs, labels = (batch.to_canvas(t, num_cells) for t in (batch.inputs, batch.labels))
    request = TargetRequest(
        inputs, labels, num_steps, random, colours, batch.path, config.path_power
    )
    targets = batch.from_canvas(step_targets(config, request), fill=IGNORE)
    certainty = step_certainty(config, request)
    return targets, None if certainty is None else certainty.T.contiguous()


def step_targets(config: SupervisionConfig, request: TargetRequest) -> Tensor:
    """y†_0 = x, y†_1 ... y†_S [B, S + 1, L], IGNORE where a cell is not counted at that step."""
    counted = counted_solution(request.solution)
    if config.pad_cells == "counted_until_replaced":
        # The solution's PAD is blanked before the path is drawn: such a cell always differs from
        # the input, and counts, towards the input's token, until the path replaces it by the blank.
        request = request._replace(solution=counted)
    path = TARGETS[config.targets].generate(request)
    frames = torch.cat([request.inputs.unsqueeze(1), path], dim=1)
    if config.pad_cells == "ignored":
        frames = frames.masked_fill((counted == IGNORE).unsqueeze(1), IGNORE)
    return frames


def step_certainty(config: SupervisionConfig, request: TargetRequest) -> Tensor | None:
    """Probability [B, S + 1] that y†_0 = x, y†_1 ... y†_S are the solution; None: they are certain.

    Of the cells that differ, as the others' targets are the same either way.
    """
    certainty = TARGETS[config.targets].certainty
    return None if certainty is None else F.pad(certainty(request), (1, 0))


def step_weights(kind: str, num_steps: int) -> list[float]:
    """w_1 ... w_S, with mean 1 whatever the kind, so that losses stay comparable."""
    if kind == "uniform":
        return [1.0] * num_steps
    return [2 * s / (num_steps + 1) for s in range(1, num_steps + 1)]
