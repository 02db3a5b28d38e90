"""Deep Improvement Supervision (arXiv 2511.16886): the inner loop over supervision steps.

For a batch, a target generator lays out y†_1 ... y†_S; step s is trained towards y†_s, and an
optimizer step follows each. The loop is a generator of steps: the trainer applies each loss before
it asks for the next, so step s + 1 sees weights that step s has changed, and the trainer knows
nothing of what is supervised how. Another scheme (halting, say) is another class with `run`.

    paper                  here
    Phi                    `models.targets.TARGETS[config.targets]`
    y†_s                   `step_targets(...)`[:, s], with y†_0 at index 0
    l_c, l_u               conditional_logits, reference_logits
    L = CE(l_c, y†_s)      objective "dis"
    eq. 9                  objective "dual": + CE(l_u, y†_{s-1}), y†_0 = x

Two readings of the published method differ, and both can be selected:
`next_input` and `pad_cells`, see `SupervisionConfig`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from common.segments import Segment
from common.settings import Settings
from models.objective import IGNORE, guided_logits, stablemax_cross_entropy
from models.puzzle_embedding import PuzzleEmbedding
from models.randomness import CellRandom
from models.recursive import RecursiveState, StepOutput, TinyRecursiveModel
from models.targets import TARGETS

PAD = 0
"""Token of cells without content, in every dataset of this family."""


class SupervisionConfig(Settings):
    """What each improvement step is trained towards."""

    targets: str = Field(description="target generator, a name in models.targets.TARGETS")
    objective: Literal["dis", "dual"] = Field(
        description="dis: loss of the step's readout; dual: plus the incoming answer's (eq. 9)"
    )
    next_input: Literal["question", "answer"] = Field(
        description="input of step s > 1: the question again (the paper's pseudocode), or the "
        "model's own answer of step s-1 (the published code)"
    )
    pad_cells: Literal["ignored", "counted_until_replaced"] = Field(
        description="cells whose solution is PAD: never counted, or counted at the steps whose "
        "target still shows the input's token there (the published code)"
    )
    step_weights: Literal["uniform", "rising"] = Field(
        description="weight of step s: 1, or rising linearly with s at mean 1 (paper §5.3)"
    )

    @field_validator("targets")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        if name not in TARGETS:
            raise ValueError(f"no such target generator, there are {', '.join(sorted(TARGETS))}")
        return name


class StepResult(NamedTuple):
    """One supervision step, ready for its backward pass."""

    supervision_step: int
    """1..S."""
    loss: Tensor
    """Scalar with gradient: mean over the batch, step weight applied."""
    puzzle_ids: Tensor
    """[B] rows of the puzzle embedding that the step used ..."""
    puzzle_vectors: Tensor
    """... and the leaf [B, D] that collects their gradient."""
    cell_accuracy: Tensor
    """Share of counted solution cells that are right, mean over the batch; no gradient."""
    exact_accuracy: Tensor
    """Share of examples whose every counted solution cell is right; no gradient."""


def run_step(
    network: nn.Module,
    puzzle_vectors: Tensor,
    state: RecursiveState,
    inputs: Tensor,
    supervision_step: int,
    cells: Tensor | None,
    with_reference: bool,
) -> StepOutput:
    """Call the network (bare, compiled or wrapped by DDP) for one supervision step."""
    # A fill on the device: copying the number from the host would wait for the device.
    step = torch.full((), supervision_step, device=inputs.device)
    output: StepOutput = network(state, inputs, puzzle_vectors, step, cells, with_reference)
    return output


class DeepImprovementSupervision:
    """Turns batches into supervision steps.

    Args:
        config: what to train towards.
        model: the bare model, for its shapes and initial state.
        network: the same model as it is to be called, e.g. wrapped by DDP.
        puzzle_embedding: the table that the batch's rows are read from, anew at each step.
    """

    def __init__(
        self,
        config: SupervisionConfig,
        model: TinyRecursiveModel,
        network: nn.Module,
        puzzle_embedding: PuzzleEmbedding,
    ) -> None:
        self.config = config
        self.model = model
        self.network = network
        self.puzzle_embedding = puzzle_embedding
        self.num_steps = model.config.num_supervision_steps
        self.step_weights = step_weights(config.step_weights, self.num_steps)

    def run(self, batch: Sequence[Segment], seed: int) -> Iterator[StepResult]:
        """Yield the S steps of one batch; `seed` decides its targets. See the module docstring."""
        pupils = [self._begin(segment, seed) for segment in batch]
        sizes = [len(segment.puzzle_ids) for segment in batch]
        puzzle_ids = torch.cat([segment.puzzle_ids for segment in batch])
        for s in range(1, self.num_steps + 1):
            # Read anew: the optimizer step that follows each supervision step changes these rows.
            vectors = self.puzzle_embedding.lookup(puzzle_ids)
            parts = zip(pupils, vectors.split(sizes), strict=True)
            columns = zip(*(self._step(pupil, part, s) for pupil, part in parts), strict=True)
            losses, cell_accuracy, exact_accuracy = (torch.cat(column) for column in columns)
            yield StepResult(
                s,
                losses.mean() * self.step_weights[s - 1],
                puzzle_ids,
                vectors,
                cell_accuracy.mean(),
                exact_accuracy.mean(),
            )

    def _begin(self, segment: Segment, seed: int) -> "_Pupil":
        """Targets and states of a segment before its first step."""
        inputs, labels = segment.inputs, segment.labels
        return _Pupil(
            targets=segment_targets(self.config, segment, self.num_steps, self.model.seq_len, seed),
            solution=labels.masked_fill(labels == PAD, IGNORE),
            cells=segment.cells,
            state=self.model.initial_state(*inputs.shape),
            inputs=inputs,
        )

    def _step(
        self, pupil: "_Pupil", puzzle_vectors: Tensor, s: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take step s; loss with gradient, cell accuracy and exactness [B] of each example."""
        dual = self.config.objective == "dual"
        output = run_step(
            self.network, puzzle_vectors, pupil.state, pupil.inputs, s, pupil.cells, dual
        )
        losses = stablemax_cross_entropy(output.conditional_logits, pupil.targets[:, s])
        if output.reference_logits is not None:
            losses = losses + stablemax_cross_entropy(
                output.reference_logits, pupil.targets[:, s - 1]
            )
        answer = output.conditional_logits.detach().argmax(dim=-1)
        pupil.state = output.state
        if self.config.next_input == "answer":
            pupil.inputs = answer
        return losses, *accuracy(answer, pupil.solution)


@dataclass
class _Pupil:
    """A segment on its way through the supervision steps."""

    targets: Tensor
    """[B, S + 1, L], see `step_targets`."""
    solution: Tensor
    """[B, L], IGNORE where not counted."""
    cells: Tensor | None
    state: RecursiveState
    inputs: Tensor
    """[B, L] what the next step reads."""


class ImprovementSteps:
    """The same steps at test time: no targets, no gradient, optional guidance.

    Args:
        model: compiled or not, but not wrapped: it is called on each rank apart.
        puzzle_embedding: the table that the puzzles' vectors are read from.
        next_input: as the model was trained, see `SupervisionConfig`.
        num_steps: improvement steps; None for as many as trained.
        guidance_weight: w of DIS eq. 5.
    """

    def __init__(
        self,
        model: TinyRecursiveModel,
        puzzle_embedding: PuzzleEmbedding,
        next_input: str,
        num_steps: int | None = None,
        guidance_weight: float = 1.0,
    ) -> None:
        self.model = model
        self.puzzle_embedding = puzzle_embedding
        self.next_input = next_input
        self.num_steps = num_steps or model.config.num_supervision_steps
        self.guidance_weight = guidance_weight
        self.device = puzzle_embedding.weight.device

    def run(
        self, inputs: Tensor, puzzle_ids: Tensor, cells: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Yield the (guided) logits [B, L, V] after each step.

        Args:
            inputs: int64 [B, L] tokens.
            puzzle_ids: int64 [B] identifiers.
            cells: int64 [B, L] cells of the canvas that the tokens are; None: all, in order.
        """
        guided = self.guidance_weight != 1.0
        vectors = self.puzzle_embedding.weight[puzzle_ids]
        state = self.model.initial_state(*inputs.shape)
        for s in range(1, self.num_steps + 1):
            output = run_step(self.model, vectors, state, inputs, s, cells, guided)
            logits = output.conditional_logits
            if output.reference_logits is not None:
                logits = guided_logits(output.reference_logits, logits, self.guidance_weight)
            yield logits
            state = output.state
            if self.next_input == "answer":
                inputs = logits.argmax(dim=-1)


def segment_targets(
    config: SupervisionConfig, segment: Segment, num_steps: int, num_cells: int, seed: int
) -> Tensor:
    """`step_targets` [B, S + 1, L] of a segment: those of its whole canvases, at its cells.

    They are drawn on the whole canvas of `num_cells`, where cells that were dropped are PAD: these
    have a place on the path too if PAD is counted until it is replaced.
    """
    inputs, labels, _, rows, cells = segment
    random = CellRandom(seed, rows, torch.arange(num_cells, device=rows.device))
    if cells is None:
        return step_targets(config, inputs, labels, num_steps, random)
    empty = inputs.new_full((len(inputs), num_cells), PAD)
    inputs, labels = (empty.scatter(1, cells, tokens) for tokens in (inputs, labels))
    targets = step_targets(config, inputs, labels, num_steps, random)
    return targets.take_along_dim(cells.unsqueeze(1), dim=2)


def step_targets(
    config: SupervisionConfig, inputs: Tensor, labels: Tensor, num_steps: int, random: CellRandom
) -> Tensor:
    """y†_0 = x, y†_1 ... y†_S [B, S + 1, L], IGNORE where a cell is not counted at that step."""
    pad = labels == PAD
    generate = TARGETS[config.targets]
    if config.pad_cells == "ignored":
        path = generate(inputs, labels, num_steps, random)
        frames = torch.cat([inputs.unsqueeze(1), path], dim=1)
        return frames.masked_fill(pad.unsqueeze(1), IGNORE)
    # The solution's PAD is blanked before the path is drawn: such a cell always differs from the
    # input, and is counted, towards the input's token, until the path replaces it by the blank.
    path = generate(inputs, labels.masked_fill(pad, IGNORE), num_steps, random)
    return torch.cat([inputs.unsqueeze(1), path], dim=1)


def step_weights(kind: str, num_steps: int) -> list[float]:
    """w_1 ... w_S, with mean 1 whatever the kind, so that losses stay comparable."""
    if kind == "uniform":
        return [1.0] * num_steps
    return [2 * s / (num_steps + 1) for s in range(1, num_steps + 1)]


def accuracy(answer: Tensor, solution: Tensor) -> tuple[Tensor, Tensor]:
    """Cell accuracy [B] and exactness [B] (0 or 1) of answers [B, L] over the counted cells."""
    counted = solution != IGNORE
    right = (answer == solution) & counted
    num_counted = counted.sum(dim=1)
    num_right = right.sum(dim=1)
    exact = (num_right == num_counted) & (num_counted > 0)
    return num_right / num_counted.clamp(min=1), exact.float()
