"""What the best checkpoint is chosen by."""

import json
from pathlib import Path

import pytest

from common.errors import UserError
from training.run_folder import MODEL_FILE, step_of
from training.scores import (
    Score,
    best_checkpoint,
    chosen_checkpoints,
    read_score,
    write_score,
)


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


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with three checkpoints, of which the first two were scored."""
    for step, value in ((100, 0.5), (200, 0.25), (300, None)):
        path = tmp_path / "checkpoints" / f"step_{step:08}"
        path.mkdir(parents=True)
        (path / MODEL_FILE).touch()
        if value is not None:
            write_score(path, Score("ema", {"eval/pass@2": value}))
    return tmp_path


@pytest.mark.parametrize(
    ("best", "pool_last", "steps"),
    [(False, 1, [300]), (True, 1, [100]), (False, 2, [200, 300]), (False, 3, [100, 200, 300])],
)
def test_a_run_folder_means_its_newest_checkpoints_or_its_best(
    run: Path, best: bool, pool_last: int, steps: list[int]
) -> None:
    for path in (run, run / "checkpoints"):
        assert [step_of(p) for p in chosen_checkpoints(path, best, pool_last)] == steps


@pytest.mark.parametrize(
    ("folder", "best", "pool_last", "message"),
    [
        ("", False, 4, r"eval\.pool_last=4: .* holds 3; a run keeps train\.keep_checkpoints"),
        ("checkpoints/step_00000300", True, 1, r"eval\.best=true chooses from a run folder"),
        ("checkpoints/step_00000300", False, 2, r"eval\.pool_last=2 chooses from a run folder"),
        ("checkpoints/best", False, 1, "no checkpoint there.*eval.best=true scores the best"),
    ],
)
def test_what_cannot_be_chosen_is_refused_with_what_can(
    run: Path, folder: str, best: bool, pool_last: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        chosen_checkpoints(run / folder, best, pool_last)


def test_without_a_score_there_is_no_best(run: Path) -> None:
    for step in (100, 200):
        (run / "checkpoints" / f"step_{step:08}" / "score.json").unlink()
    with pytest.raises(UserError, match=r"no checkpoint of .* was scored, see train\.eval_every"):
        chosen_checkpoints(run, True, 1)


def test_the_best_of_an_earlier_version_is_not_forgotten(run: Path) -> None:
    """It kept the score of the best checkpoint beside all of them."""
    earlier = {"checkpoint": "step_00000300", "score": [0.75, 0.5], "weights": "ema"}
    (run / "checkpoints" / "best.json").write_text(json.dumps(earlier))
    assert [step_of(path) for path in chosen_checkpoints(run, True, 1)] == [300]
    (run / "checkpoints" / "best.json").write_text('{"checkpoint": "step_00000300"}')
    with pytest.raises(UserError, match=r"best\.json holds no score: remove it"):
        chosen_checkpoints(run, True, 1)
