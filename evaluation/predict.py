"""Run a model over the test split: every chosen variant of every test input, S steps, argmax."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from common.distributed import Ranks
from common.errors import UserError
from common.settings import Settings
from dataset.augmentation import parse_variant_name
from dataset.batches import Batch, padded_batches, select_test_examples
from dataset.canvas import PAD, read_back
from dataset.storage import TEST_PUZZLES_FILE, load_identifiers, open_split
from dataset.tasks import NUM_COLOURS, load_tasks
from evaluation.predictions import Predictions, concatenate
from evaluation.voting import grid_mask
from models.objective import log_stablemax
from models.supervision import ImprovementSteps

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Wraps an iterable of known length in a progress bar."""


class EvalConfig(Settings):
    """What is predicted, and how."""

    batch_size: int = Field(gt=0, description="variants predicted at a time on each rank")
    max_variants: int | None = Field(
        gt=0, description="variants of each task that vote, the original first; null: all"
    )
    num_supervision_steps: int | None = Field(
        gt=0, description="improvement steps at test time; null: as many as trained"
    )
    guidance_weight: float = Field(
        description="w in (1-w) l_u + w l_c (DIS eq. 5); 1 is plain decoding"
    )
    weights: Literal["auto", "raw", "ema"] = Field(
        description="which weights are scored; auto: the running mean if there is one, else raw"
    )


class EvaluationSet:
    """The test split of a dataset and the meaning of each row; open once, predict often."""

    def __init__(self, dataset_path: Path, max_variants: int | None) -> None:
        self.split = split = open_split(dataset_path, "test")
        self.examples = select_test_examples(split, max_variants)
        names = load_identifiers(dataset_path)
        if len(names) != split.metadata.num_puzzle_identifiers:
            raise UserError(
                f"{dataset_path}: identifiers.json names {len(names)} puzzles, dataset.json counts "
                f"{split.metadata.num_puzzle_identifiers}: the files are of different datasets"
            )
        parsed = [parse_variant_name(names[puzzle]) for puzzle in self.examples.puzzle_ids]
        self.task_ids = np.array([task_id for task_id, _, _ in parsed])
        self.dihedrals = np.array([dihedral for _, dihedral, _ in parsed], dtype=np.int8)
        self.permutations = np.array([permutation for _, _, permutation in parsed])
        self.tasks = load_tasks(dataset_path / TEST_PUZZLES_FILE)
        self._check_against_tasks(dataset_path)

    def __len__(self) -> int:
        return len(self.examples.rows)

    def _check_against_tasks(self, dataset_path: Path) -> None:
        """The split and `test_puzzles.json` must mean the same tasks, or scores mean nothing."""
        rows = zip(self.task_ids.tolist(), self.examples.test_indices.tolist(), strict=True)
        named = list(rows)
        inputs = {
            (task.task_id, index): pair.input
            for task in self.tasks
            for index, pair in enumerate(task.test)
        }
        advice = "the files are of different datasets, or of a builder with other puzzle names"
        if different := set(named) ^ set(inputs):
            task_id, index = min(different)
            raise UserError(
                f"{dataset_path}: test input {index} of task '{task_id}' is in only one of the "
                f"test split and {TEST_PUZZLES_FILE}; {advice}"
            )
        for row in np.flatnonzero(self.is_original(np.arange(len(self)))):
            shown = read_back(np.array(self.split.inputs[self.examples.rows[row]]))
            if shown is None or not np.array_equal(shown, inputs[named[row]]):
                raise UserError(
                    f"{dataset_path}: test input {named[row][1]} of task '{named[row][0]}' is "
                    f"another in the test split than in {TEST_PUZZLES_FILE}; {advice}"
                )

    def is_original(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the given rows show a test input unaugmented."""
        identity = (self.permutations[rows] == np.arange(NUM_COLOURS)).all(axis=1)
        return identity & (self.dihedrals[rows] == 0)


@dataclass(frozen=True)
class StepAnswers:
    """How the answers to the unaugmented test inputs developed."""

    task_id: npt.NDArray[np.str_]
    """[M]"""
    test_index: npt.NDArray[np.int32]
    """[M]"""
    canvas: npt.NDArray[np.uint8]
    """[M, S, cells] the argmax after each supervision step."""

    def save(self, path: Path) -> None:
        """Write the three arrays to an .npz file."""
        np.savez_compressed(
            path, task_id=self.task_id, test_index=self.test_index, canvas=self.canvas
        )


class StepAccuracy(NamedTuple):
    """Sums over predictions with a known solution; cells whose solution is PAD do not count."""

    num_scored: int
    exact: npt.NDArray[np.float64]
    """[S] predictions that are right in every cell after each step."""
    cell: npt.NDArray[np.float64]
    """[S] sum of the shares of right cells after each step."""


class RankResult(NamedTuple):
    """One rank's share of an evaluation."""

    predictions: Predictions
    step_answers: StepAnswers
    accuracy: StepAccuracy


def predict(
    steps: ImprovementSteps,
    test_set: EvaluationSet,
    batch_size: int,
    ranks: Ranks,
    progress: Progress | None = None,
) -> RankResult:
    """Predict this rank's share of the test set: rows rank, rank + world_size, ..."""
    mine = np.arange(ranks.rank, len(test_set), ranks.world_size)
    share = test_set.examples.take(mine)
    is_original = test_set.is_original(mine)
    cells = test_set.split.metadata.seq_len
    canvas = np.zeros((len(mine), cells), dtype=np.uint8)
    confidence = np.zeros(len(mine), dtype=np.float32)
    developed = [np.zeros((0, steps.num_steps, cells), dtype=np.uint8)]
    accuracy = StepAccuracy(0, np.zeros(steps.num_steps), np.zeros(steps.num_steps))
    batches = padded_batches(test_set.split, share, batch_size)
    shown = batches if progress is None else progress(batches, -(-len(mine) // batch_size))
    for positions, batch in shown:
        answers, probability = _predict_batch(steps, batch, len(positions))
        canvas[positions] = answers[:, -1]
        confidence[positions] = _mean_inside(probability, answers[:, -1])
        developed.append(answers[is_original[positions]])
        accuracy = _add(accuracy, _step_accuracy(answers, batch.labels[: len(positions)]))
    task_ids, test_indices = test_set.task_ids[mine], share.test_indices.astype(np.int32)
    predictions = Predictions(
        task_id=task_ids,
        test_index=test_indices,
        identifier=share.puzzle_ids,
        dihedral=test_set.dihedrals[mine],
        colour_permutation=test_set.permutations[mine],
        canvas=canvas,
        confidence=confidence,
        checkpoint=np.zeros(len(mine), dtype=np.int16),
    )
    step_answers = StepAnswers(
        task_ids[is_original], test_indices[is_original], np.concatenate(developed)
    )
    return RankResult(predictions, step_answers, accuracy)


def _predict_batch(
    steps: ImprovementSteps, batch: Batch, count: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Answers [count, S, cells] after each step, and the last one's probabilities [count, cells].

    Rows from `count` on are padding and are computed for the static shape alone.
    """
    inputs = torch.from_numpy(batch.inputs).to(steps.device).long()
    puzzle_ids = torch.from_numpy(batch.puzzle_ids).to(steps.device).long()
    answers: list[Tensor] = []
    # Not inference_mode, whose tensors are of another kind: compiled graphs of training serve here.
    with torch.no_grad():
        for logits in steps.run(inputs, puzzle_ids):
            answers.append(logits[:count].argmax(dim=-1).to(torch.uint8))
        probability = log_stablemax(logits[:count]).amax(dim=-1).exp()
    return torch.stack(answers, dim=1).cpu().numpy(), probability.cpu().numpy()


def _mean_inside(
    probability: npt.NDArray[np.float32], canvases: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    """Mean probability [N] over the cells of the grid that each canvas shows; 0 without a grid."""
    inside = grid_mask(canvases)
    mean: npt.NDArray[np.float32] = (probability * inside).sum(axis=1) / np.maximum(
        inside.sum(axis=1), 1
    ).astype(np.float32)
    return mean


def _step_accuracy(answers: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> StepAccuracy:
    counted = labels != PAD
    num_counted = counted.sum(axis=1)
    scored = num_counted > 0  # A hidden solution is all PAD.
    right = ((answers == labels[:, None]) & counted[:, None]).sum(axis=2)[scored]  # [n, S]
    share = right / num_counted[scored, None]
    return StepAccuracy(int(scored.sum()), (share == 1).sum(axis=0), share.sum(axis=0))


def _add(a: StepAccuracy, b: StepAccuracy) -> StepAccuracy:
    return StepAccuracy(a.num_scored + b.num_scored, a.exact + b.exact, a.cell + b.cell)


def join(results: list[RankResult]) -> RankResult:
    """One result from those of all ranks, in rank order."""
    accuracy = results[0].accuracy
    for result in results[1:]:
        accuracy = _add(accuracy, result.accuracy)
    answers = [result.step_answers for result in results]
    return RankResult(
        concatenate([result.predictions for result in results]),
        StepAnswers(
            np.concatenate([a.task_id for a in answers]),
            np.concatenate([a.test_index for a in answers]),
            np.concatenate([a.canvas for a in answers]),
        ),
        accuracy,
    )
