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

Canvases are whole, so the tokens of a slot are the same places in every batch.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.packed import PackedBatch
from models.objective import counted_solution, shares_of_mean, stablemax_cross_entropy
from models.randomness import CellRandom
from models.recursive import RecursiveState, run_step
from models.supervision import Progress, StepResult, Supervision, gradient_of


@dataclass
class SlotProgress(Progress):
    """The examples under way, one in each slot; `targets` and `shares` are [1, N]."""

    earliest: Tensor
    """int64 [B] the first step after which the example may leave."""
    free: Tensor
    """bool [B] whether the example has left."""


PER_TOKEN = ("solution", "inputs", "answer")
PER_SLOT = ("puzzle_ids", "steps", "earliest", "free")
"""What a checkpoint holds of the examples under way, besides their states."""


class HaltingSupervision(Supervision):
    """Examples leave when they are done, for which the model needs a halting head."""

    steps_per_batch = 1

    @property
    def metric_names(self) -> tuple[str, ...]:
        return (*super().metric_names, "steps_taken", "halting_accuracy")

    def begin(self, batch: PackedBatch, seed: int, before: Progress | None) -> SlotProgress:
        """Let the batch's examples take the free slots; at first, all are."""
        fresh = self._fresh(batch, seed)
        if before is None:
            return fresh
        assert isinstance(before, SlotProgress), "another scheme's"
        # Choices on the device: the host need not know which slots are free.
        free, free_tokens = before.free, before.free[batch.sequence]
        for name in PER_SLOT:
            new, old = getattr(fresh, name), getattr(before, name)
            setattr(fresh, name, torch.where(free, new, old))
        for name in PER_TOKEN:
            new, old = getattr(fresh, name), getattr(before, name)
            setattr(fresh, name, torch.where(free_tokens, new, old))
        states = zip(fresh.state, before.state, strict=True)
        is_free = free_tokens.unsqueeze(1)
        fresh.state = RecursiveState(*(torch.where(is_free, new, old) for new, old in states))
        return self._supervised(fresh)

    def step(self, progress: Progress) -> StepResult:
        assert isinstance(progress, SlotProgress), "another scheme's"
        batch = progress.batch
        progress.steps += 1
        vectors = self.puzzle_embedding.lookup(progress.puzzle_ids)
        output = run_step(
            self.model, vectors, progress.state, progress.inputs, progress.steps, batch
        )
        assert output.halting_logits is not None, "arch.halting_head goes with supervision.halting"
        answer, metrics = self.measure(progress, output, progress.solution)
        is_correct = metrics["exact_accuracy"]
        losses = stablemax_cross_entropy(output.conditional_logits, progress.solution)
        weights = self.step_weights[progress.steps.clamp(max=self.num_steps) - 1]
        loss = (losses * progress.shares[0] * weights[batch.sequence]).sum()
        halting = F.binary_cross_entropy_with_logits(
            output.halting_logits, is_correct, reduction="none"
        )
        halting_loss = (halting * batch.is_example).sum() / self.global_batch_size
        loss = loss + self.config.halting_loss_weight * halting_loss
        loss.backward()
        predicts_correct = output.halting_logits.detach() > 0
        metrics |= {
            "steps_taken": progress.steps.float(),
            "halting_accuracy": (predicts_correct == is_correct.bool()).float(),
        }
        may_leave = progress.steps >= progress.earliest
        progress.free.copy_((predicts_correct & may_leave) | (progress.steps >= self.num_steps))
        self.advance(progress, output, answer)
        # Copies: what is under way may have moved on when the result is read.
        steps, finished = progress.steps.clone(), progress.free.clone()
        return StepResult(loss.detach(), gradient_of(vectors), steps, finished, metrics)

    def carried(self, progress: Progress) -> dict[str, Tensor]:
        """The examples under way [E, ...] and their places in the global batch, `rows`."""
        batch = progress.batch
        count = int(batch.is_example.sum())  # They come first.
        num_tokens = int(batch.offsets[count])
        per_token = {name: getattr(progress, name) for name in PER_TOKEN}
        per_token |= progress.state._asdict()
        per_slot = {"rows": batch.rows} | {name: getattr(progress, name) for name in PER_SLOT}
        return {
            name: tensor[:num_tokens].unflatten(0, (count, -1))
            for name, tensor in per_token.items()
        } | {name: tensor[:count] for name, tensor in per_slot.items()}

    def resumed(self, batch: PackedBatch, carried: dict[str, Tensor]) -> SlotProgress:
        progress = self._fresh(batch, seed=0)
        count = int(batch.is_example.sum())
        # A checkpoint has the examples of all ranks in the order of the global batch.
        mine = batch.rows[:count].cpu()
        per_token = {name: getattr(progress, name) for name in PER_TOKEN}
        per_token |= progress.state._asdict()
        for name, tensor in per_token.items():
            rows = carried[name][mine].flatten(0, 1)
            tensor[: len(rows)].copy_(rows)
        for name in PER_SLOT:
            getattr(progress, name)[:count].copy_(carried[name][mine])
        return self._supervised(progress)

    def _fresh(self, batch: PackedBatch, seed: int) -> SlotProgress:
        """The batch's examples before their first step."""
        rows = batch.rows
        coin, which = (
            CellRandom(seed, rows, torch.arange(2, device=rows.device)).uniform().unbind(dim=1)
        )
        # From 2 to S, each as likely.
        explored = 2 + (which * (self.num_steps - 1)).long()
        solution = counted_solution(batch.labels)
        return self._supervised(
            SlotProgress(
                batch=batch,
                puzzle_ids=batch.puzzle_ids.clone(),
                targets=solution.unsqueeze(0),
                shares=torch.empty(0),
                certainty=None,
                solution=solution,
                state=self.model.initial_state(len(batch.inputs)),
                inputs=batch.inputs.clone(),
                answer=batch.inputs.clone(),
                steps=torch.zeros_like(rows),
                earliest=torch.where(coin < self.config.halting_exploration, explored, 1),
                free=torch.zeros_like(rows, dtype=torch.bool),
            )
        )

    def _supervised(self, progress: SlotProgress) -> SlotProgress:
        """With what follows from the solutions that are under way."""
        batch = progress.batch
        progress.targets = progress.solution.unsqueeze(0)
        shares = shares_of_mean(progress.targets, batch.sequence, batch.offsets)
        progress.shares = shares / self.global_batch_size
        return progress
