"""Deep Improvement Supervision (arXiv 2511.16886): the inner loop over supervision steps.

For a batch, a target generator lays out y†_1 ... y†_S; step s is trained towards y†_s, and an
optimizer step follows each. The loop is a generator of steps: the trainer applies each loss before
it asks for the next, so step s + 1 sees weights that step s has changed, and the trainer knows
nothing of what is supervised how. Another scheme is another `Supervision`: see `models.halting`.

    paper                  here
    Phi                    `models.targets.TARGETS[config.targets].generate`
    y†_s                   `step_targets(...)`[:, s], with y†_0 at index 0
    l_c, l_u               conditional_logits, reference_logits
    L = CE(l_c, y†_s)      objective "dis"
    eq. 9                  objective "dual": + CE(l_u, y†_{s-1}), y†_0 = x

Two readings of the published method differ, and both can be selected:
`next_input` and `pad_cells`, see `SupervisionConfig`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from common.segments import PAD, Segment
from common.settings import Settings
from models.diagnostics import Metrics, accuracy, diagnose
from models.objective import IGNORE, counted_solution, stablemax_cross_entropy
from models.puzzle_embedding import PuzzleEmbedding
from models.randomness import CellRandom
from models.recursive import RecursiveState, StepOutput, TinyRecursiveModel, run_step
from models.targets import TARGETS, TargetRequest


class SupervisionConfig(Settings):
    """What each improvement step is trained towards; the defaults are the paper's pseudocode."""

    targets: str = Field("linear", description="target generator, a name in models/targets.py")
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
        "target, the question), and not for targets=mask",
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
            raise ValueError(
                f"supervision.targets={self.targets} needs supervision.pad_cells=ignored: what it "
                f"hides is PAD and no token of the input, so there is nothing to count until "
                f"replaced"
            )
        if self.halting and not (generator.is_constant and self.objective == "dis"):
            raise ValueError(
                f"supervision.halting=true needs supervision.targets=final and objective=dis, as "
                f"examples leave when the whole answer is right; targets={self.targets} and "
                f"objective={self.objective} ask for less before the last step"
            )
        return self


class StepResult(NamedTuple):
    """One optimizer step's worth of supervision, ready for its backward pass."""

    loss: Tensor
    """Scalar with gradient: mean over the batch, step weights applied."""
    puzzle_ids: Tensor
    """[B] rows of the puzzle embedding that the step used ..."""
    puzzle_vectors: Tensor
    """... and the leaf [B, D] that collects their gradient."""
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
        model: the bare model, for its shapes and initial state.
        network: the same model as it is to be called, e.g. wrapped by DDP.
        puzzle_embedding: the table that the batch's rows are read from, anew at each step.
        colours: tokens of cells with content, see `TargetRequest`.
        diagnostics: also measure distances and margins.
    """

    def __init__(
        self,
        config: SupervisionConfig,
        model: TinyRecursiveModel,
        network: nn.Module,
        puzzle_embedding: PuzzleEmbedding,
        colours: range,
        diagnostics: bool,
    ) -> None:
        self.config = config
        self.model = model
        self.network = network
        self.puzzle_embedding = puzzle_embedding
        self.colours = colours
        self.diagnostics = diagnostics
        self.num_steps = model.config.num_supervision_steps
        weights = step_weights(config.step_weights, self.num_steps)
        # On the device once: a copy at every step would make the host wait.
        self.step_weights = torch.tensor(weights, device=puzzle_embedding.weight.device)

    @property
    @abstractmethod
    def steps_per_batch(self) -> int:
        """Optimizer steps that one batch serves."""

    @abstractmethod
    def run(self, batch: Sequence[Segment], seed: int) -> Iterator[StepResult]:
        """Yield the optimizer steps of one batch; `seed` decides what is random about it."""

    def state_dict(self) -> dict[str, Tensor]:
        """What the next batch depends on, [B, ...] each: a resumed run needs it."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` returned."""
        assert not state, "another scheme's"

    def read_answer(
        self,
        before: RecursiveState,
        output: StepOutput,
        previous: Tensor,
        target: Tensor,
        solution: Tensor,
    ) -> tuple[Tensor, Metrics]:
        """The step's answer [B, L], and what the step from the state `before` did.

        Args:
            before: state before the step.
            output: of the step.
            previous: [B, L] the answer before it; at first, the input.
            target: [B, L] of the step, IGNORE where not counted.
            solution: [B, L], IGNORE where not counted.
        """
        logits = output.conditional_logits.detach()
        answer = logits.argmax(dim=-1)
        metrics = accuracy(answer, solution)
        if self.diagnostics:
            # Read out within the step, the reference would have a backward pass, of zeros.
            with torch.no_grad():
                reference = self.model.read_out(before.y)
            metrics |= diagnose(previous, answer, target, solution, reference, logits)
        return answer, metrics


class DeepImprovementSupervision(Supervision):
    """All examples of a batch take all S steps, each towards a target of its own."""

    @property
    def steps_per_batch(self) -> int:
        return self.num_steps

    def run(self, batch: Sequence[Segment], seed: int) -> Iterator[StepResult]:
        """Yield the S steps of one batch; `seed` decides its targets. See the module docstring."""
        states = [self._begin(segment, seed) for segment in batch]
        sizes = [len(segment.puzzle_ids) for segment in batch]
        puzzle_ids = torch.cat([segment.puzzle_ids for segment in batch])
        for s in range(1, self.num_steps + 1):
            # Read anew: the optimizer step that follows each supervision step changes these rows.
            vectors = self.puzzle_embedding.lookup(puzzle_ids)
            parts = zip(states, vectors.split(sizes), strict=True)
            taken = [self._step(state, part, s) for state, part in parts]
            losses = torch.cat([losses for losses, _ in taken])
            yield StepResult(
                losses.mean() * self.step_weights[s - 1],
                puzzle_ids,
                vectors,
                torch.full_like(puzzle_ids, s),
                torch.full_like(puzzle_ids, s == self.num_steps, dtype=torch.bool),
                joined([metrics for _, metrics in taken]),
            )

    def _begin(self, segment: Segment, seed: int) -> "SegmentState":
        """Targets and states of a segment before its first step."""
        inputs = segment.inputs
        targets = segment_targets(
            self.config, segment, self.num_steps, self.model.seq_len, self.colours, seed
        )
        return SegmentState(
            targets=targets,
            solution=counted_solution(segment.labels),
            cells=segment.cells,
            state=self.model.initial_state(*inputs.shape),
            inputs=inputs,
            answer=inputs,
        )

    def _step(
        self, segment: "SegmentState", puzzle_vectors: Tensor, s: int
    ) -> tuple[Tensor, Metrics]:
        """Take step s; loss with gradient [B] and metrics of each example."""
        dual = self.config.objective == "dual"
        output = run_step(
            self.network,
            puzzle_vectors,
            segment.state,
            segment.inputs,
            s,
            segment.cells,
            with_reference=dual,
        )
        target = segment.targets[:, s]
        losses = stablemax_cross_entropy(output.conditional_logits, target)
        if dual:
            assert output.reference_logits is not None, "it was asked for"
            before = segment.targets[:, s - 1]
            losses = losses + stablemax_cross_entropy(output.reference_logits, before)
        answer, metrics = self.read_answer(
            segment.state, output, segment.answer, target, segment.solution
        )
        segment.state, segment.answer = output.state, answer
        if self.config.next_input == "answer":
            segment.inputs = answer
        return losses, metrics


@dataclass
class SegmentState:
    """Where a segment is on its way through the supervision steps."""

    targets: Tensor
    """[B, S + 1, L], see `step_targets`."""
    solution: Tensor
    """[B, L], IGNORE where not counted."""
    cells: Tensor | None
    state: RecursiveState
    inputs: Tensor
    """[B, L] what the next step reads."""
    answer: Tensor
    """[B, L] of the step before; at first, the input."""


def joined(parts: Sequence[Metrics]) -> Metrics:
    """One segment's metrics after the other's."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def segment_targets(
    config: SupervisionConfig,
    segment: Segment,
    num_steps: int,
    num_cells: int,
    colours: range,
    seed: int,
) -> Tensor:
    """`step_targets` [B, S + 1, L] of a segment: those of its whole canvases, at its cells.

    They are drawn on the whole canvas of `num_cells`, where cells that were dropped are PAD: these
    have a place on the path too if PAD is counted until it is replaced.
    """
    cells, rows = segment.cells, segment.rows
    random = CellRandom(seed, rows, torch.arange(num_cells, device=rows.device))
    canvases = (segment.inputs, segment.labels)
    if cells is not None:
        empty = segment.inputs.new_full((len(rows), num_cells), PAD)
        canvases = (empty.scatter(1, cells, canvases[0]), empty.scatter(1, cells, canvases[1]))
    request = TargetRequest(*canvases, num_steps, random, colours, segment.path)
    targets = step_targets(config, request)
    return targets if cells is None else targets.take_along_dim(cells.unsqueeze(1), dim=2)


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


def step_weights(kind: str, num_steps: int) -> list[float]:
    """w_1 ... w_S, with mean 1 whatever the kind, so that losses stay comparable."""
    if kind == "uniform":
        return [1.0] * num_steps
    return [2 * s / (num_steps + 1) for s in range(1, num_steps + 1)]
