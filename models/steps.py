"""The improvement steps at test time: no targets, no gradient, optional guidance (DIS eq. 5)."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from models.objective import guided_logits
from models.puzzle_embedding import PuzzleEmbedding
from models.recursive import TinyRecursiveModel, run_step
from models.supervision import SupervisionConfig


class Improvement(NamedTuple):
    """What one step at test time came to."""

    logits: Tensor
    """[B, L, V] with guidance: the answer."""
    conditional_logits: Tensor
    """[B, L, V] l_c."""
    reference_logits: Tensor | None
    """[B, L, V] l_u; None unless it was needed."""


class ImprovementSteps:
    """Lets a trained model improve its answers step by step.

    Args:
        model: compiled or not, but not wrapped: it is called on each rank apart.
        puzzle_embedding: the table that the puzzles' vectors are read from.
        supervision: what the model was trained towards; says what a step reads.
        num_steps: improvement steps; None for as many as trained.
        guidance_weight: w of DIS eq. 5.
    """

    def __init__(
        self,
        model: TinyRecursiveModel,
        puzzle_embedding: PuzzleEmbedding,
        supervision: SupervisionConfig,
        num_steps: int | None = None,
        guidance_weight: float = 1.0,
    ) -> None:
        self.model = model
        self.puzzle_embedding = puzzle_embedding
        self.supervision = supervision
        self.trained_steps = model.config.num_supervision_steps
        self.num_steps = num_steps or self.trained_steps
        self.guidance_weight = guidance_weight
        self.device = puzzle_embedding.weight.device

    def run(
        self,
        inputs: Tensor,
        puzzle_ids: Tensor,
        cells: Tensor | None = None,
        with_reference: bool = False,
    ) -> Iterator[Improvement]:
        """Yield what each step came to.

        Args:
            inputs: int64 [B, L] tokens.
            puzzle_ids: int64 [B] identifiers.
            cells: int64 [B, L] cells of the canvas that the tokens are; None: all, in order.
            with_reference: also give the reference logits where guidance does not need them.
        """
        guided = self.guidance_weight != 1.0
        vectors = self.puzzle_embedding.weight[puzzle_ids]
        state = self.model.initial_state(*inputs.shape)
        reference = self.model.read_out(state.y) if guided or with_reference else None
        for s in range(1, self.num_steps + 1):
            output = run_step(self.model, vectors, state, inputs, s, cells)
            logits = output.conditional_logits
            if guided:
                assert reference is not None, "it was read out"
                logits = guided_logits(reference, logits, self.guidance_weight)
            yield Improvement(logits, output.conditional_logits, reference)
            state = output.state
            if reference is not None:
                # The weights are the same: it need not be read out again.
                reference = output.conditional_logits
            if self.supervision.next_input == "answer":
                inputs = logits.argmax(dim=-1)
