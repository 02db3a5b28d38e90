"""What a model predicted, one row for each variant of each test input, as `predictions.npz`.

The canvases are kept as predicted, before the augmentation is inverted, so that anyone can recount
the votes without the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from common.files import read_arrays
from dataset.augmentation import NUM_DIHEDRALS
from dataset.canvas import VOCAB_SIZE
from dataset.tasks import NUM_COLOURS
from evaluation.predict import Answers
from evaluation.test_set import ArcTestSet

PREDICTIONS_FILE = "predictions.npz"


@dataclass(frozen=True)
class Predictions:
    """Parallel arrays of N rows."""

    task_id: npt.NDArray[np.str_]
    """[N] the task that the predicted variant belongs to."""
    test_index: npt.NDArray[np.int32]
    """[N] which of the task's test inputs."""
    identifier: npt.NDArray[np.int32]
    """[N] puzzle identifier of the variant."""
    dihedral: npt.NDArray[np.int8]
    """[N] dihedral transform of the variant, 0-7."""
    colour_permutation: npt.NDArray[np.uint8]
    """[N, 10] colour permutation of the variant."""
    canvas: npt.NDArray[np.uint8]
    """[N, cells] predicted tokens."""
    confidence: npt.NDArray[np.float32]
    """[N] mean probability of the predicted tokens over the grid read back; 0 without a grid."""
    checkpoint: npt.NDArray[np.int16]
    """[N] index of the checkpoint that predicted the row, in the order they were given."""

    def __len__(self) -> int:
        return len(self.task_id)

    def select(self, rows: Any) -> "Predictions":
        """The given rows (an index array, mask or slice)."""
        return Predictions(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What `predictions.npz` holds."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def predictions_of(test_set: ArcTestSet, answers: Answers) -> Predictions:
    """The answers, each with what its row is a variant of."""
    rows, examples = answers.rows, test_set.examples.take(answers.rows)
    return Predictions(
        task_id=test_set.task_ids[rows],
        test_index=examples.test_indices.astype(np.int32),
        identifier=examples.puzzle_ids,
        dihedral=test_set.dihedrals[rows],
        colour_permutation=test_set.permutations[rows],
        canvas=answers.canvases,
        confidence=answers.confidence,
        checkpoint=np.zeros(len(rows), dtype=np.int16),
    )


def load_predictions(path: Path) -> Predictions:
    """Read and check a `predictions.npz`; the array `checkpoint` may be absent (all zero then).

    Raises:
        UserError: the file is missing or damaged, an array is missing or has another form.
    """
    names = {f.name for f in fields(Predictions)} - {"checkpoint"}
    arrays = read_arrays(path, names, f"predictions={path}", "predict again")
    rows = arrays["task_id"].shape[:1]
    arrays.setdefault("checkpoint", np.zeros(rows, dtype=np.int16))
    predictions = Predictions(**{f.name: arrays[f.name] for f in fields(Predictions)})
    for field in fields(Predictions):
        if not rows or getattr(predictions, field.name).shape[:1] != rows:
            raise UserError(
                f"predictions={path}: '{field.name}' has not {rows[0] if rows else 'any'} rows "
                f"like the rest"
            )
    if not _are_in_range(predictions):
        raise UserError(f"predictions={path} holds a value out of range: is it another format?")
    return predictions


def _are_in_range(predictions: Predictions) -> bool:
    tables = ("colour_permutation", "canvas")
    kinds = dict.fromkeys((f.name for f in fields(Predictions)), "iu")
    kinds |= {"task_id": "U", "confidence": "f"}
    if not all(
        getattr(predictions, name).dtype.kind in kind
        and getattr(predictions, name).ndim == (2 if name in tables else 1)
        for name, kind in kinds.items()
    ):
        return False
    canvas, permutation = predictions.canvas, predictions.colour_permutation
    return (
        round(canvas.shape[1] ** 0.5) ** 2 == canvas.shape[1] > 0
        and canvas.min(initial=0) >= 0
        and canvas.max(initial=0) < VOCAB_SIZE
        and permutation.shape[1] == NUM_COLOURS
        and bool((np.sort(permutation, axis=1) == np.arange(NUM_COLOURS)).all())
        and predictions.dihedral.min(initial=0) >= 0
        and predictions.dihedral.max(initial=0) < NUM_DIHEDRALS
    )


def first_variants(predictions: Predictions, max_variants: int) -> Predictions:
    """The predictions of each task's first variants, by identifier: the original comes first."""
    kept = np.zeros(len(predictions), dtype=bool)
    for task_id in np.unique(predictions.task_id):
        rows = predictions.task_id == task_id
        first = np.unique(predictions.identifier[rows])[:max_variants]
        kept |= rows & np.isin(predictions.identifier, first)
    return predictions.select(kept)


def pool_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Join predictions, numbering the checkpoints they come from through."""
    numbered, first = [], 0
    for part in parts:
        numbered.append(replace(part, checkpoint=(part.checkpoint + first).astype(np.int16)))
        first += int(part.checkpoint.max(initial=0)) + 1
    if len({part.canvas.shape[1] for part in parts}) > 1:
        raise UserError("predictions: the files have canvases of different sizes")
    return Predictions(
        **{
            f.name: np.concatenate([getattr(part, f.name) for part in numbered])
            for f in fields(Predictions)
        }
    )
