"""The improvement steps at test time: no targets, no gradient, optional guidance (DIS eq. 5).

Shape letters: N tokens, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from common.packed import PackedBatch
from models.build import describe
from models.objective import guided_logits
from models.puzzle_embedding import PuzzleEmbedding
from models.recursive import TinyRecursiveModel, run_step
from models.supervision import SupervisionConfig


class Improvement(NamedTuple):
    """What one step at test time came to; in prefixes it means nothing."""

    logits: Tensor
    """[N, V] with guidance: the answer."""
    conditional_logits: Tensor
    """[N, V] l_c."""
    reference_logits: Tensor | None
    """[N, V] l_u; None unless it was needed."""


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
        return describe(self.model, self.puzzle_embedding, num_steps)

    @property
    def device(self) -> torch.device:
        return self.model.y_init.device

    def improve(
        self,
        batch: PackedBatch,
        num_steps: int,
        guidance_weight: float = 1.0,
        with_reference: bool = False,
    ) -> Iterator[Improvement]:
        """Improve answers step by step; yield what each step came to.

        Args:
            batch: the questions.
            num_steps: fewer than trained, as many, or more.
            guidance_weight: w of DIS eq. 5.
            with_reference: also give the reference logits where guidance does not need them.
        """
        guided = guidance_weight != 1.0
        vectors = self.puzzle_embedding.lookup(batch.puzzle_ids).detach()
        inputs = batch.inputs
        state = self.model.initial_state(len(inputs))
        reference = self.model.read_out(state.y) if guided or with_reference else None
        for s in range(1, num_steps + 1):
            # A fill on the device: copying the number from the host would wait for the device.
            step = torch.full((), s, device=inputs.device)
            output = run_step(self.model, vectors, state, inputs, step, batch)
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
                inputs = torch.where(batch.is_cell, logits.argmax(dim=-1), inputs)
