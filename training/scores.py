"""The score of a checkpoint, `score.json` in its folder, and which checkpoint is the best.

A checkpoint is written before it is evaluated: an evaluation that fails costs no training, and one
that is missing is made up for when the run is resumed.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import UserError
from common.files import atomic_write
from common.json_files import read_object
from models.weights import MODEL_FILE
from training.run_folder import checkpoints_of, find_checkpoint

SCORE_FILE = "score.json"


@dataclass(frozen=True)
class Score:
    """What an evaluation while training found."""

    weights: Literal["raw", "ema"]
    """Which were scored."""
    metrics: dict[str, float]
    """Under the names of the log."""

    @property
    def rating(self) -> tuple[float, float] | None:
        """What the best checkpoint is chosen by, higher is better; None without known solutions.

        For tasks that is pass@2, for boards the share solved; then exact accuracy.
        """
        exact = self.metrics.get("eval/exact_accuracy")
        first = self.metrics.get("eval/pass@2", self.metrics.get("eval/solved", exact))
        return None if first is None else (first, exact or 0.0)


def write_score(checkpoint: Path, score: Score) -> None:
    """Put the score into the checkpoint's folder."""
    atomic_write(checkpoint / SCORE_FILE, json.dumps(asdict(score), indent=1))


def read_score(checkpoint: Path) -> Score | None:
    """The score of a checkpoint; None if it has none.

    Raises:
        UserError: the file is damaged.
    """
    path = checkpoint / SCORE_FILE
    if not path.is_file():
        return None
    remedy = "remove it; a resumed run scores its newest checkpoint again"
    stored: dict[str, Any] = read_object(path, remedy)
    metrics = stored.get("metrics")
    if (
        stored.keys() != Score.__dataclass_fields__.keys()
        or stored["weights"] not in ("raw", "ema")
        or not isinstance(metrics, dict)
        or not all(isinstance(value, int | float) for value in metrics.values())
    ):
        raise UserError(f"{path} is not one that the trainer wrote: {remedy}")
    return Score(**stored)


def chosen_checkpoints(path: Path, best: bool, pool_last: int) -> list[Path]:
    """The checkpoints that `checkpoint=path` means: of a run folder the best, or the newest.

    Raises:
        UserError: there are not so many, none was scored, or a single checkpoint is named.
    """
    if not best and pool_last == 1:
        return [find_checkpoint(path, "checkpoint")]
    option = "eval.best=true" if best else f"eval.pool_last={pool_last}"
    if (path / MODEL_FILE).is_file():
        raise UserError(f"{option} chooses from a run folder, checkpoint={path} is one checkpoint")
    found = checkpoints_of(path, "checkpoint")
    if not best:
        if len(found) < pool_last:
            raise UserError(
                f"{option}: {path} holds {len(found)}; a run keeps train.keep_checkpoints of them"
            )
        return found[-pool_last:]
    if (chosen := best_checkpoint(found)) is None:
        raise UserError(f"{option}: no checkpoint of {path} was scored, see train.eval_every")
    return [chosen]


def best_checkpoint(checkpoints: Sequence[Path]) -> Path | None:
    """The one with the highest rating, the first of several; None if none is rated."""
    best, highest = None, None
    for path in checkpoints:
        score = read_score(path)
        rating = _earlier_rating(path) if score is None else score.rating
        if rating is not None and (highest is None or rating > highest):
            best, highest = path, rating
    return best


def _earlier_rating(checkpoint: Path) -> tuple[float, ...] | None:
    """Its rating if `best.json` beside it, where earlier versions kept the best one's, is of it."""
    path = checkpoint.with_name("best.json")
    if not path.is_file():
        return None
    remedy = "remove it, and what was the best is not kept"
    stored = read_object(path, remedy)
    score = stored.get("score")
    if not isinstance(score, list) or not all(isinstance(value, int | float) for value in score):
        raise UserError(f"{path} holds no score: {remedy}")
    return tuple(score) if stored.get("checkpoint") == checkpoint.name else None
