"""A trained model on its own: without a trainer or a dataset, it predicts.

`TinyRecursiveModel.from_pretrained(OUT)` gives a `PretrainedModel`; `models.exported` has the files
of OUT.

A model knows a task by its vector, which training on the demonstrations has made; it reads no
demonstrations. Of a task that it was not trained on there is no vector: the mean of all is the best
guess without one.

Shape letters: B canvases, S supervision steps, L cells of the whole canvas, D width, P puzzles.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from common.errors import UserError
from common.packed import pack_whole
from common.puzzles import PuzzleFactors
from common.settings import validate
from models.build import ComputeConfig, build_model
from models.puzzle_embedding import NUM_COLOURS, PuzzleEmbedding, PuzzleTable
from models.recursive import ArchConfig, TinyRecursiveModel
from models.steps import TrainedModel
from models.supervision import SupervisionConfig
from models.weights import load_table, load_weights, require_fitting

USE_ANOTHER = "use another checkpoint, or export the model again"


class DatasetFacts(BaseModel):
    """What predicting needs of a dataset's fingerprint, which holds more."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    vocab_size: int = Field(ge=2, le=255)
    seq_len: int = Field(gt=0, le=2**16)
    num_puzzle_identifiers: int = Field(gt=0, le=2**32)
    tasks: tuple[str, ...] | None = None
    """Of factored puzzle embeddings, in their order."""


@dataclass(frozen=True)
class StoredModel:
    """What a checkpoint or an exported model holds of the model, on the CPU."""

    arch: ArchConfig
    supervision: SupervisionConfig
    weights: dict[str, Tensor]
    kind: Literal["raw", "ema"]
    """Which weights they are."""
    table: Tensor | None
    """Puzzle embeddings [P, D]; None: factored ones are among the weights."""
    dataset: dict[str, Any]
    """Fingerprint of the dataset that the puzzle embeddings belong to; `tasks` of factored ones."""
    tasks: dict[str, int]
    """Of a table: a task's id -> the identifier of its unaugmented puzzle, as far as known."""
    source: str
    """For messages."""

    def facts(self) -> DatasetFacts:
        """What predicting needs of the fingerprint; UserError if it is damaged."""
        return validate(DatasetFacts, self.dataset, f"{self.source}: dataset")

    def network(
        self,
        vocab_size: int,
        seq_len: int,
        compute: ComputeConfig,
        device: torch.device,
        factors: PuzzleFactors | None,
    ) -> TinyRecursiveModel:
        """The network with its weights; for the arguments see `build_model`.

        Raises:
            UserError: the weights are of another architecture.
        """
        with torch.device("meta"):  # Only an outline: a damaged size may be beyond all memory.
            num_tasks = 0 if factors is None else len(factors.task_names)
            outline = TinyRecursiveModel(self.arch, vocab_size, seq_len, torch.float32, num_tasks)
        require_fitting(outline, self.weights, self.source)
        model = build_model(self.arch, vocab_size, seq_len, compute, device, factors)
        load_weights(model, self.weights, self.source)
        return model

    def embedding(
        self, model: TinyRecursiveModel, num_puzzles: int, remedy: str
    ) -> PuzzleEmbedding:
        """The model's own, or else the table; UserError if that is not for so many puzzles."""
        if model.puzzle_embedding is not None:
            return model.puzzle_embedding
        width = model.config.hidden_size
        # An outline first: a damaged number may be beyond all memory.
        outline = torch.empty(num_puzzles, width, device="meta")
        load_table(outline, self.table, self.source, remedy)
        table = PuzzleTable(num_puzzles, width, model.y_init.device)
        load_table(table.weight, self.table, self.source, remedy)
        return table

    def build(self, compute: ComputeConfig, device: torch.device) -> "PretrainedModel":
        """The model without a dataset: its puzzles are those that it knows itself.

        These are the rows of the table, or of factored embeddings the unaugmented tasks.

        Raises:
            UserError: a part is damaged or does not fit the others.
        """
        facts, factors, tasks = self.facts(), None, self.tasks
        if self.arch.is_factored:
            if facts.tasks is None:
                raise UserError(f"{self.source} does not name its tasks; {USE_ANOTHER}")
            factors = unaugmented(facts.tasks)
            tasks = {name: number for number, name in enumerate(facts.tasks)}
        num_puzzles = len(tasks) if self.arch.is_factored else facts.num_puzzle_identifiers
        if wrong := [name for name, puzzle in tasks.items() if not 0 <= puzzle < num_puzzles]:
            raise UserError(f"{self.source}: task '{wrong[0]}' has no row; {USE_ANOTHER}")
        model = self.network(facts.vocab_size, facts.seq_len, compute, device, factors)
        embedding = self.embedding(model, num_puzzles, USE_ANOTHER)
        return PretrainedModel(
            model, embedding, self.supervision, tasks, num_puzzles, facts.vocab_size
        )


@dataclass
class PretrainedModel(TrainedModel):
    """A trained model that predicts without a dataset."""

    tasks: dict[str, int]
    """A task's id -> its puzzle's identifier here; empty where no task has a name."""
    num_puzzles: int
    vocab_size: int

    def vectors_of(self, task_ids: Sequence[str]) -> Tensor:
        """The vectors [B, D] of tasks as they are, unaugmented.

        Raises:
            UserError: the model was not trained on a task.
        """
        for task_id in task_ids:
            if task_id not in self.tasks:
                close = difflib.get_close_matches(task_id, self.tasks, n=1)
                hint = f"did you mean '{close[0]}'? " if close else ""
                raise UserError(
                    f"the model has no vector for task '{task_id}': {hint}`tasks` names the "
                    f"{len(self.tasks)} that it knows by name, and `mean_vector` stands for a task "
                    f"that it does not know"
                )
        identifiers = [self.tasks[task_id] for task_id in task_ids]
        numbers = torch.tensor(identifiers, dtype=torch.int64, device=self.device)
        return self.puzzle_embedding.lookup(numbers).detach()

    @cached_property
    def mean_vector(self) -> Tensor:
        """[D] the mean of the puzzles' vectors, those left out that are zero as before training."""
        every = torch.arange(self.num_puzzles, device=self.device)
        vectors = self.puzzle_embedding.lookup(every).detach()
        return vectors.sum(dim=0) / vectors.any(dim=1).sum().clamp(min=1)

    @torch.no_grad()
    def answer(
        self,
        inputs: npt.ArrayLike,
        puzzle_vectors: Tensor | None = None,
        num_steps: int | None = None,
    ) -> npt.NDArray[np.uint8]:
        """The answers [B, S, L] after each step, tokens as the questions `inputs` [B, L] are.

        Args:
            inputs: whole canvases, all computed at once; `dataset.canvas` makes them of grids.
            puzzle_vectors: [B, D], for example of `vectors_of`; None: the mean vector.
            num_steps: S; None: as many as trained.

        Raises:
            UserError: the inputs are of another shape or vocabulary.
        """
        tokens = torch.as_tensor(np.asarray(inputs), device=self.device).long()
        cells = self.model.seq_len
        is_shaped = tokens.ndim == 2 and tokens.shape[1] == cells and len(tokens) > 0
        if not is_shaped or tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise UserError(
                f"inputs of shape {list(tokens.shape)}: the model reads canvases [B, {cells}] of "
                f"tokens 0 to {self.vocab_size - 1}; `place` of dataset.canvas makes them of grids"
            )
        if puzzle_vectors is None:
            puzzle_vectors = self.mean_vector.expand(len(tokens), -1)
        given = PuzzleTable(len(tokens), self.model.config.hidden_size, self.device)
        load_table(given.weight, puzzle_vectors, "puzzle_vectors", "give a vector for each canvas")
        asked = replace(self, puzzle_embedding=given)
        batch = pack_whole(tokens, self.model.config.prefix_length)
        steps = asked.improve(batch, num_steps or self.trained_steps)
        answers = [batch.to_canvas(step.logits.argmax(dim=-1), cells) for step in steps]
        return torch.stack(answers, dim=1).to(torch.uint8).cpu().numpy()


def unaugmented(task_names: tuple[str, ...]) -> PuzzleFactors:
    """The factors of puzzles that are the tasks themselves, in their order."""
    count = len(task_names)
    return PuzzleFactors(
        task_names,
        torch.arange(count),
        torch.zeros(count, dtype=torch.int64),
        torch.arange(NUM_COLOURS).expand(count, -1),
    )
