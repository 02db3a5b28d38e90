"""What the best checkpoint is chosen by."""

from pathlib import Path

import pytest

from training.scores import Score, best_checkpoint, read_score, write_score


@pytest.mark.parametrize(
    ("found", "rating"),
    [
        ({"pass@2": 0.5, "exact_accuracy": 0.25, "cell_accuracy": 0.9}, (0.5, 0.25)),
        ({"pass@2": 0.5}, (0.5, 0.0)),
        ({"solved": 0.75, "exact_accuracy": 0.25}, (0.75, 0.25)),
        ({"exact_accuracy": 0.25}, (0.25, 0.25)),
        ({"whole_canvas_again": 1.0}, None),
    ],
    ids=["tasks", "votes alone", "boards", "boards without rules", "hidden solutions"],
)
def test_checkpoints_are_rated_by_what_matters_most(
    tmp_path: Path, found: dict[str, float], rating: tuple[float, float] | None
) -> None:
    score = Score("ema", {f"eval/{key}": value for key, value in found.items()})
    assert score.rating == rating
    write_score(tmp_path, score)
    assert read_score(tmp_path) == score
    assert best_checkpoint([tmp_path]) == (None if rating is None else tmp_path)
