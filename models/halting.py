"""Deep supervision with halting: the TRM baseline (arXiv 2510.04871 §2, HRM's ACT simplified).

Every optimizer step takes one supervision step with all slots of the batch, each at a step of its
own. A slot's example leaves when the halting logit predicts that its answer is correct, or after S
steps; a fresh example then takes the slot, from the same place of the next batch. So a batch serves
one optimizer step, and of a batch only the examples whose slots are free are seen, as in the
published runs. At test time nothing halts.

    paper (TRM)                     here
    q                               StepOutput.halting_logits; above 0 it predicts "correct"
    BCE(q, y == y_true)             halting_loss_weight * ...
    exploration                     an example may not leave before `earliest`
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from common.segments import Segment
from models.objective import counted_solution, stablemax_cross_entropy
from models.randomness import CellRandom
from models.recursive import RecursiveState, run_step
from models.supervision import StepResult, Supervision


@dataclass
class _Slots:
    """The examples under way, one in each slot."""

    puzzle_ids: Tensor
    """int64 [B]"""
    solution: Tensor
    """int64 [B, L], IGNORE where not counted."""
    inputs: Tensor
    """int64 [B, L] what the next step reads."""
    answer: Tensor
    """int64 [B, L] of the step before; at first, the input."""
    y: Tensor
    """[B, T, D]"""
    z: Tensor
    """[B, T, D]"""
    steps: Tensor
    """int64 [B] supervision steps taken."""
    earliest: Tensor
    """int64 [B] the first step after which the example may leave."""
    free: Tensor
    """bool [B] whether the example has left."""


class HaltingSupervision(Supervision):
    """Examples leave when they are done, for which the model needs a halting head."""

    steps_per_batch = 1
    _slots: _Slots | None = None

    def run(self, batch: Sequence[Segment], seed: int) -> Iterator[StepResult]:
        """Fill the free slots from the batch, on whole canvases, and yield one step of all."""
        (segment,) = batch
        slots = self._fill(segment, seed)
        vectors = self.puzzle_embedding.lookup(slots.puzzle_ids)
        slots.steps = slots.steps + 1
        state = RecursiveState(slots.y, slots.z)
        output = run_step(self.network, vectors, state, slots.inputs, slots.steps)
        assert output.halting_logits is not None, "arch.halting_head goes with supervision.halting"
        answer, metrics = self.read_answer(
            state, output, slots.answer, slots.solution, slots.solution
        )
        is_correct = metrics["exact_accuracy"]
        halting = F.binary_cross_entropy_with_logits(
            output.halting_logits, is_correct, reduction="none"
        )
        losses = stablemax_cross_entropy(output.conditional_logits, slots.solution)
        losses = losses * self.step_weights[slots.steps - 1]
        losses = losses + self.config.halting_loss_weight * halting
        predicts_correct = output.halting_logits.detach() > 0
        metrics |= {
            "steps_taken": slots.steps.float(),
            "halting_accuracy": (predicts_correct == is_correct.bool()).float(),
        }
        may_leave = slots.steps >= slots.earliest
        slots.free = (predicts_correct & may_leave) | (slots.steps >= self.num_steps)
        slots.y, slots.z = output.state
        slots.answer = answer
        if self.config.next_input == "answer":
            slots.inputs = answer
        yield StepResult(losses.mean(), slots.puzzle_ids, vectors, slots.steps, slots.free, metrics)

    def _fill(self, segment: Segment, seed: int) -> _Slots:
        """Let the batch's examples take the free slots; at first, all are."""
        fresh = self._fresh(segment, seed)
        if self._slots is None:
            # As all later states are: other strides would be another compiled graph.
            fresh.y, fresh.z = fresh.y.contiguous(), fresh.z.contiguous()
            self._slots = fresh
        else:
            free = self._slots.free
            for field in fields(_Slots):
                old, new = getattr(self._slots, field.name), getattr(fresh, field.name)
                # A choice on the device: the host need not know which slots are free.
                chosen = torch.where(free.view(-1, *[1] * (old.ndim - 1)), new, old)
                setattr(self._slots, field.name, chosen)
        return self._slots

    def _fresh(self, segment: Segment, seed: int) -> _Slots:
        """The batch's examples before their first step."""
        inputs, rows = segment.inputs, segment.rows
        coin, which = (
            CellRandom(seed, rows, torch.arange(2, device=rows.device)).uniform().unbind(dim=1)
        )
        # From 2 to S, each as likely.
        explored = 2 + (which * (self.num_steps - 1)).long()
        # One for all: only where a slot takes it is it written.
        state = self.model.initial_state(1, inputs.shape[1])
        return _Slots(
            puzzle_ids=segment.puzzle_ids,
            solution=counted_solution(segment.labels),
            inputs=inputs,
            answer=inputs,
            y=state.y.expand(len(inputs), -1, -1),
            z=state.z.expand(len(inputs), -1, -1),
            steps=torch.zeros_like(rows),
            earliest=torch.where(coin < self.config.halting_exploration, explored, 1),
            free=torch.zeros_like(rows, dtype=torch.bool),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The examples under way."""
        if self._slots is None:
            return {}
        return {field.name: getattr(self._slots, field.name) for field in fields(_Slots)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put the examples back into their slots."""
        if state:
            device, dtype = self.puzzle_embedding.weight.device, self.model.compute_dtype
            slots = _Slots(**{name: value.to(device) for name, value in state.items()})
            # The run may go on in another precision: the states' would spread to all that follows.
            slots.y, slots.z = slots.y.to(dtype), slots.z.to(dtype)
            self._slots = slots
