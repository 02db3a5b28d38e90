"""The improvement steps at test time: no targets, no gradient, optional guidance (DIS eq. 5)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from models.build import describe
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


@dataclass
class TrainedModel:
    """What it takes to predict."""

    model: TinyRecursiveModel
    """Compiled or not, but not wrapped: it is called on each rank apart."""
    puzzle_embedding: PuzzleEmbedding
    supervision: SupervisionConfig
    """What the model was trained towards; says what a step reads."""

    @property
    def trained_steps(self) -> int:
        return self.model.config.num_supervision_steps

    def sizes(self, num_steps: int | None = None) -> dict[str, int]:
        """See `models.build.describe`."""
        return describe(self.model, len(self.puzzle_embedding.weight), num_steps)

    @property
    def device(self) -> torch.device:
        return self.puzzle_embedding.weight.device

    def improve(
        self,
        inputs: Tensor,
        puzzle_ids: Tensor,
        num_steps: int,
        guidance_weight: float = 1.0,
        cells: Tensor | None = None,
        with_reference: bool = False,
    ) -> Iterator[Improvement]:
        """Improve answers step by step; yield what each step came to.

        Args:
            inputs: int64 [B, L] tokens.
            puzzle_ids: int64 [B] identifiers.
            num_steps: fewer than trained, as many, or more.
            guidance_weight: w of DIS eq. 5.
            cells: int64 [B, L] cells of the canvas that the tokens are; None: all, in order.
            with_reference: also give the reference logits where guidance does not need them.
        """
        guided = guidance_weight != 1.0
        vectors = self.puzzle_embedding.weight[puzzle_ids]
        state = self.model.initial_state(*inputs.shape)
        reference = self.model.read_out(state.y) if guided or with_reference else None
        for s in range(1, num_steps + 1):
            output = run_step(self.model, vectors, state, inputs, s, cells)
            logits = output.conditional_logits
            if guided:
                assert reference is not None, "it was read out"
                logits = guided_logits(reference, logits, guidance_weight)
            yield Improvement(logits, output.conditional_logits, reference)
            state = output.state
            if reference is not None:
                # The weights are the same: it need not be read out again.
                reference = output.conditional_logits
            if self.supervision.next_input == "answer":
                inputs = logits.argmax(dim=-1)
